"""Writing with the samplers of KerasHub, which need not be installed."""

import keras
import numpy as np
from keras import ops

from keras_chargen.compilation import (
    compile_function,
    kept,
    runs_loops_eagerly,
)


def is_sampler(value):
    """Whether this is a sampler of KerasHub, asked without importing it."""
    return any(
        kind.__name__ == "Sampler" and kind.__module__.startswith("keras_hub.")
        for kind in type(value).__mro__
    )


def write(model, sampler, inputs, length):
    """Writes on with the sampler's own loop.

    Args:
        model: As for `generation.generate`.
        sampler: A `keras_hub.samplers.Sampler`.
        inputs: List of id arrays, what the model reads first.
        length: Integer, characters to write at most.

    Returns:
        For each of `inputs` int32 `(n,)`, n <= length, `<eos>` included where
        it was written. Of several beams the best.

    Raises:
        ValueError: The backend is OpenVINO.
    """
    if not runs_loops_eagerly():
        raise ValueError(
            "samplers of KerasHub run under TensorFlow, JAX, Torch and NumPy. "
            f"Received: KERAS_BACKEND={keras.backend.backend()}"
        )
    results: list = [None] * len(inputs)
    # KerasHub's beams count forced characters as choices: rows of one length
    # have none.
    for size in sorted(set(map(len, inputs))):
        places = [i for i, ids in enumerate(inputs) if len(ids) == size]
        rows = np.stack([inputs[i] for i in places])
        written = (
            _write(model, sampler, rows, length) if length else rows[:, :0]
        )
        for place, ids in zip(places, written, strict=True):
            ends = np.flatnonzero(ids == model.tokenizer.eos_id)
            results[place] = ids[: ends[0] + 1] if ends.size else ids
    return results


def _write(model, sampler, rows, length):
    batch, read = rows.shape
    writable = ops.convert_to_tensor(model.tokenizer.writable())
    step = kept(
        model,
        "step",
        lambda: compile_function(model.step, getattr(model, "variables", ())),
    )
    state = keras.tree.map_structure(
        ops.convert_to_numpy, model.initial_state(batch)
    )
    for column in rows[:, :-1].T:
        _, state = step(np.ascontiguousarray(column), state)
    state = keras.tree.map_structure(ops.convert_to_tensor, state)

    def following(prompt, cache, index):
        ids = ops.take(prompt, index - 1, axis=1)
        logits, cache = model.step(ids, cache)
        return ops.where(writable, logits, -float("inf")), None, cache

    prompt = np.zeros((batch, read + length), "int32")
    prompt[:, :read] = rows
    written = sampler(
        following,
        ops.convert_to_tensor(prompt),
        cache=state,
        index=read,
        # The first `<eos>` is a beginning and stops nothing.
        mask=ops.convert_to_tensor(prompt > 0),
        stop_token_ids=[model.tokenizer.eos_id],
        model=model if isinstance(model, keras.Model) else None,
    )
    if isinstance(written, tuple):
        written = written[0][:, 0]
    return ops.convert_to_numpy(written)[:, read:]
