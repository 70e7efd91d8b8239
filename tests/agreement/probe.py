"""Prints what one backend makes of model files: run by test_agreement.

KERAS_BACKEND=jax python probe.py model.keras other.keras
"""

import json
import sys

import keras
import numpy as np

import keras_chargen
from keras_chargen.compilation import compile_function, has_gradients
from keras_chargen.samplers import (
    CUTS,
    DRY,
    AllowCharacters,
    BanCharacters,
    BeamSearch,
    DynamicTemperature,
    FrequencyPenalty,
    LogitBias,
    MinLength,
    NoRepeatNGram,
    PresencePenalty,
    RepetitionPenalty,
    Sampler,
    TemperatureCycle,
)

PROMPTS = ["The ", "", "A class is"]
SAMPLERS = [
    *(Sampler(name) for name in CUTS if name not in ("greedy", "random")),
    *(
        Sampler("random", 0.9, transforms=[transform])
        for transform in (
            TemperatureCycle([0.5, 1.5]),
            DynamicTemperature(),
            RepetitionPenalty(),
            PresencePenalty(),
            FrequencyPenalty(),
            DRY(allowed_length=2),
            NoRepeatNGram(3),
            LogitBias({"e": 1.0, "<eos>": -2.0}),
            BanCharacters("etaoin"),
            AllowCharacters("etaoin srhl"),
            MinLength(30),
        )
    ),
    BeamSearch(4),
    BeamSearch(3, 1.0, transforms=[FrequencyPenalty()]),
]
PATTERN = r"[a-z]+ (is|are|may be) [a-z ]{3,9}\."


def main(path, samplers):
    """Prints one JSON object on a line."""
    model = keras.saving.load_model(path)
    assert isinstance(model, keras_chargen.CharRNN)
    ids = np.random.default_rng(0).integers(1, 40, (3, 50)).astype("int32")
    state = keras.tree.map_structure(
        keras.ops.convert_to_numpy, model.initial_state(3)
    )
    read = compile_function(model.call_with_state, model.variables)
    logits = {"read": read(ids, state)[0]}
    # Keras 3.15 runs this one wrongly, as README says.
    if (keras.backend.backend(), model.cell) != ("openvino", "simple"):
        logits["call"] = model(ids)
    random = {"sampler": "random", "temperature": 0.8}
    print(
        json.dumps(
            {
                "backend": keras.backend.backend(),
                "logits": {
                    name: keras.ops.convert_to_numpy(value).tolist()
                    for name, value in logits.items()
                },
                "greedy": model.generate(PROMPTS, 80),
                "sampled": [
                    model.generate(PROMPTS, 80, seed=seed, **random)
                    for seed in (1, 2)
                ],
                "chains": {
                    repr(sampler): model.generate(
                        PROMPTS, 40, sampler=sampler, seed=4
                    )
                    for sampler in samplers
                },
                "matching": [
                    model.generate(
                        PROMPTS, 40, sampler=name, seed=5, pattern=PATTERN
                    )
                    for name in ("greedy", "random", "beam")
                ],
                "log_probs": [
                    float(one.log_probs.sum() + one.sampler_log_probs.sum())
                    for one in model.generate(
                        PROMPTS, 40, seed=6, return_scores=True, **random
                    )
                ],
                "streamed": list(model.stream("The ", 40, seed=3, **random)),
                "nats": [
                    s.nats for s in model.score(["The cat", "", "x" * 300])
                ],
                "dynamic": [
                    s.nats
                    for s in model.score(
                        PROMPTS * 9,
                        dynamic_evaluation=True,
                        learning_rate=1e-3,
                        decay=1e-2,
                    )
                ]
                if has_gradients()
                else None,
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    # What a sampler makes of logits is the same for every model.
    for number, file in enumerate(sys.argv[1:]):
        main(file, [] if number else SAMPLERS)
