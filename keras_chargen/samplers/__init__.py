"""What turns logits and one uniform number into an id."""

from keras_chargen.samplers.base import Context, LogitTransform
from keras_chargen.samplers.constraints import (
    AllowCharacters,
    BanCharacters,
    LogitBias,
    MinLength,
)
from keras_chargen.samplers.cuts import (
    XTC,
    MinP,
    TopK,
    TopNSigma,
    TopP,
    Typical,
)
from keras_chargen.samplers.mirostat import Mirostat
from keras_chargen.samplers.penalties import (
    DRY,
    FrequencyPenalty,
    NoRepeatNGram,
    PresencePenalty,
    RepetitionPenalty,
)
from keras_chargen.samplers.sampler import (
    CUTS,
    BeamSearch,
    Sampler,
    get,
    invert_distribution,
)
from keras_chargen.samplers.temperatures import (
    DynamicTemperature,
    Temperature,
    TemperatureCycle,
)

__all__ = [
    "CUTS",
    "DRY",
    "XTC",
    "AllowCharacters",
    "BanCharacters",
    "BeamSearch",
    "Context",
    "DynamicTemperature",
    "FrequencyPenalty",
    "LogitBias",
    "LogitTransform",
    "MinLength",
    "MinP",
    "Mirostat",
    "NoRepeatNGram",
    "PresencePenalty",
    "RepetitionPenalty",
    "Sampler",
    "Temperature",
    "TemperatureCycle",
    "TopK",
    "TopNSigma",
    "TopP",
    "Typical",
    "get",
    "invert_distribution",
]
