"""Character-level recurrent language models in Keras 3.

`import keras_chargen` registers the classes that a model file needs, so
`keras.saving.load_model` works after it. What needs TensorFlow (`lines`,
`windows`, `split`, `text_dataset`) is imported on first use.
"""

import importlib
import os
import sys

from keras_chargen.version import __version__

_ROOMS = {
    "AllowCharacters": "samplers",
    "BanCharacters": "samplers",
    "BeamSearch": "samplers",
    "BitsPerCharacter": "scoring",
    "CharRNN": "model",
    "CharTokenizer": "tokenizer",
    "CharacterCount": "scoring",
    "Checkpoint": "checkpoints",
    "Context": "samplers",
    "Crossentropy": "scoring",
    "DRY": "samplers",
    "DynamicEvaluation": "dynamic",
    "DynamicTemperature": "samplers",
    "FrequencyPenalty": "samplers",
    "LogitBias": "samplers",
    "LogitTransform": "samplers",
    "MinLength": "samplers",
    "MinP": "samplers",
    "Mirostat": "samplers",
    "Muon": "optimizers",
    "NoRepeatNGram": "samplers",
    "PresencePenalty": "samplers",
    "RECIPES": "recipes",
    "Recipe": "recipes",
    "RepetitionPenalty": "samplers",
    "RunFigures": "callbacks",
    "SampleText": "callbacks",
    "Sampler": "samplers",
    "Score": "scoring",
    "Temperature": "samplers",
    "TemperatureCycle": "samplers",
    "TopK": "samplers",
    "TopNSigma": "samplers",
    "TopP": "samplers",
    "Typical": "samplers",
    "Written": "decoding",
    "XTC": "samplers",
    "block_score": "scoring",
    "keep_programs": "caching",
    "lines": "pipeline",
    "load_model": "saving",
    "open_corpus": "corpora",
    "prepare_ag_news": "corpora",
    "save_model": "saving",
    "split": "pipeline",
    "streams": "pipeline",
    "text_dataset": "pipeline",
    "windows": "pipeline",
}

__all__ = [*_ROOMS, "__version__"]


def __getattr__(name):
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = importlib.import_module(f"{__name__}.{_ROOMS[name]}")
    value = globals()[name] = getattr(room, name)
    return value


def __dir__():
    return sorted({*globals(), *__all__})


def _runs_as_command():
    # `-m` stands there while Python looks for the module to run.
    program = os.path.basename(sys.argv[0]) if sys.argv else ""
    return program in ("-m", "keras-chargen", "keras-chargen.exe")


# `--help` must answer at once and needs no Keras; a program does.
if not _runs_as_command():
    importlib.import_module(f"{__name__}.saving")
