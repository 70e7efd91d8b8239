"""Beam search: the likeliest whole texts, in the same compiled loop."""

import numpy as np
from keras import ops, tree

from keras_chargen import patterns
from keras_chargen.automata import follow
from keras_chargen.compilation import compile_scan, round_up
from keras_chargen.samplers import Context

OUT = -float("inf")
_OUTPUTS = {
    "ids": "int32",
    "parents": "int32",
    "log_probs": "float32",
    "sampler_log_probs": "float32",
}


def search(decode, inputs, stretch):
    """Finds the best texts of each prompt.

    Args:
        decode: The decoder of a `BeamSearch`.
        inputs: List of id arrays, what the model reads first.
        stretch: Integer, steps in one run of the compiled loop.

    Returns:
        For each prompt a list of `num_beams` or fewer dicts with `"ids"`,
        `"log_probs"` and `"sampler_log_probs"`, best first.
    """
    beams = decode.sampler.num_beams
    batch = len(inputs)
    size = round_up(batch)
    # Rows beyond the batch read what the first one reads, and are left out.
    inputs = [*inputs, *[inputs[0]] * (size - batch)]
    rows = [ids for ids in inputs for _ in range(beams)]
    carry = decode.begin(rows, size * beams)
    alone = np.where(np.arange(beams) == 0, 0.0, OUT).astype("float32")
    carry |= {
        "done": np.arange(size) >= batch,
        "written": np.zeros(size, "int32"),
        "step": np.int32(0),
        "sums": np.tile(alone, (size, 1)),
        "length_penalty": np.float32(decode.sampler.length_penalty),
        "finished": {
            "score": np.full((size, beams), OUT, "float32"),
            "step": np.zeros((size, beams), "int32"),
            "parent": np.zeros((size, beams), "int32"),
            "id": np.zeros((size, beams), "int32"),
            "log_prob": np.zeros((size, beams), "float32"),
            "sampler_log_prob": np.zeros((size, beams), "float32"),
        },
    }
    scan = decode.compiled(
        lambda: compile_scan(
            _body(decode.model, decode.sampler, decode.tokenizer.eos_id),
            _OUTPUTS,
            getattr(decode.model, "variables", ()),
        )
    )
    total = max(map(len, inputs)) - 1 + decode.length
    position, parts = 0, []
    while position < total:
        limit = min(stretch, total - position)
        at = position + np.arange(stretch)
        xs = {"forced": decode.forced(rows, at, len(rows))}
        carry, ys = scan(carry, xs, np.int32(limit))
        parts.append(
            {k: ops.convert_to_numpy(y)[:limit] for k, y in ys.items()}
        )
        if ops.convert_to_numpy(carry["done"]).all():
            break
        position += limit
    history = {
        name: np.concatenate([part[name] for part in parts]).reshape(
            -1, size, beams
        )
        for name in _OUTPUTS
    }
    finished = tree.map_structure(ops.convert_to_numpy, carry["finished"])
    return [
        [
            _trace(history, finished, row, place, len(inputs[row]) - 1)
            for place in range(beams)
            if finished["score"][row, place] > OUT
        ]
        for row in range(batch)
    ]


def _trace(history, finished, row, place, begin):
    """Follows a finished text back to where its prompt ended."""
    last = {k: v[row, place] for k, v in finished.items()}
    found = {
        "ids": [last["id"]],
        "log_probs": [last["log_prob"]],
        "sampler_log_probs": [last["sampler_log_prob"]],
    }
    beam = last["parent"]
    for step in range(last["step"] - 1, begin - 1, -1):
        for name, values in found.items():
            values.append(history[name][step, row, beam])
        beam = history["parents"][step, row, beam]
    return {
        name: np.array(values[::-1], "int32" if name == "ids" else "float32")
        for name, values in found.items()
    }


def _body(model, sampler, eos_id):
    beams = sampler.num_beams

    def body(carry, x):
        sums, done, written = carry["sums"], carry["done"], carry["written"]
        batch = sums.shape[0]
        forced = ops.reshape(x["forced"], (batch, beams))
        reading = forced[:, 0] > 0
        writes = ops.logical_not(ops.logical_or(reading, done))
        new_length = written + ops.cast(writes, "int32")
        is_last = new_length >= carry["max_written"]

        logits, state = model.step(carry["last"], carry["state"])  # (B*N, V)
        logits = ops.cast(logits, "float32")
        size = logits.shape[-1]
        model_scores = logits - ops.logsumexp(logits, axis=-1, keepdims=True)
        scores = ops.where(carry["writable"], model_scores, OUT)
        if "pattern" in carry:
            left = ops.repeat(carry["max_written"] - written - 1, beams)
            scores = patterns.permit(scores, carry["pattern"], left)
        context = Context(
            ops.repeat(written, beams), writes=ops.repeat(writes, beams)
        )
        numbers = carry["numbers"]
        scores, outputs = sampler.transform(
            scores, context, numbers, carry["sampler"]
        )

        # The best 2N of all N * V ways on: N of them do not end.
        ways = sums[:, :, None] + ops.reshape(scores, (batch, beams, size))
        ways = ops.reshape(ways, (batch, beams * size))
        values, places = ops.top_k(ways, 2 * beams)
        places = ops.cast(places, "int32")
        parents, ids = places // size, places % size
        details = {
            "parent": parents,
            "id": ids,
            "log_prob": _pick(model_scores, places, batch),
            "sampler_log_prob": _pick(scores, places, batch),
        }
        ends = ids == eos_id
        if "stop" in carry:
            states = _pick_rows(carry["stop"]["state"], parents)
            stops = follow(carry["stop"]["table"], states, ids)
            ends = ops.logical_or(ends, stops < 0)

        # A text may end where it is among the best N, and at the last step.
        among = ops.arange(2 * beams) < beams
        goes_on = ops.where(ends, OUT, values)
        alive, chosen = ops.top_k(goes_on, beams)
        border = ops.where(
            is_last[:, None], alive[:, -1:], ops.full_like(alive[:, -1:], -OUT)
        )
        closes = ops.logical_or(
            ops.logical_and(ends, among),
            ops.logical_and(ops.logical_not(ends), values >= border),
        )
        closes = ops.logical_and(closes, writes[:, None])
        power = carry["length_penalty"]
        # Not 0, while a prompt is read.
        length = ops.cast(ops.maximum(new_length, 1), "float32")[:, None]
        finished = _merge(
            carry["finished"],
            {
                **details,
                "score": ops.where(closes, values / length**power, OUT),
                "step": ops.zeros_like(ids) + carry["step"],
            },
            beams,
        )

        # Beams that read or are done stay as they are.
        own = ops.zeros_like(chosen) + ops.arange(beams)
        chosen = ops.cast(chosen, "int32")
        moves = writes[:, None]
        beam_parents = ops.where(
            moves, ops.take_along_axis(parents, chosen, axis=1), own
        )
        beam_ids = ops.take_along_axis(ids, chosen, axis=1)
        beam_ids = ops.where(moves, beam_ids, forced)
        sums = ops.where(moves, alive, sums)
        flat = ops.reshape(beam_ids, (-1,))

        def move(values):
            return _pick_rows(values, beam_parents, flat=True)

        # Whether more writing could beat the worst of N finished texts.
        most = ops.cast(carry["max_written"], "float32")
        bound = sums[:, 0] / ops.where(power > 0, most, length[:, 0]) ** power
        beaten = ops.min(finished["score"], axis=1) >= bound
        stuck = ops.logical_or(beaten, sums[:, 0] == OUT)
        over = ops.logical_and(writes, ops.logical_or(is_last, stuck))
        following = {
            **carry,
            "done": ops.logical_or(done, over),
            "last": flat,
            "state": _map(move, state),
            "sampler": sampler.remember(
                _map(move, outputs),
                flat,
                context,
                numbers,
                _map(move, carry["sampler"]),
            ),
            "written": new_length,
            "step": carry["step"] + 1,
            "sums": sums,
            "finished": finished,
        }
        flat_writes = ops.repeat(writes, beams)
        if "stop" in carry:
            states = ops.reshape(
                ops.take_along_axis(stops, chosen, axis=1), (-1,)
            )
            states = ops.where(flat_writes, states, carry["stop"]["state"])
            following["stop"] = {
                **carry["stop"],
                "state": ops.maximum(states, 0),
            }
        if "pattern" in carry:
            pattern = carry["pattern"]
            pattern = {**pattern, "state": move(pattern["state"])}
            following["pattern"] = patterns.advance(pattern, flat, flat_writes)
        ys = {"ids": flat, "parents": ops.reshape(beam_parents, (-1,))}
        for name in ("log_prob", "sampler_log_prob"):
            picked = ops.take_along_axis(details[name], chosen, axis=1)
            ys[f"{name}s"] = ops.reshape(picked, (-1,))
        return following, ys, ops.all(following["done"])

    return body


def _map(function, values):
    return tree.map_structure(function, values)


def _pick(scores, places, batch):
    """`(B * N, V)` at places of `(B, N * V)`."""
    return ops.take_along_axis(ops.reshape(scores, (batch, -1)), places, axis=1)


def _pick_rows(values, parents, flat=False):
    """`(B * N, …)` at the rows of `(B, M)` parents of each group of N."""
    batch = parents.shape[0]
    beams = values.shape[0] // batch
    rows = ops.arange(batch, dtype="int32")[:, None] * beams + parents
    rows = ops.reshape(rows, (-1,)) if flat else rows
    return ops.take(values, rows, axis=0)


def _merge(finished, candidates, beams):
    """The best N of N finished texts and 2N candidates."""
    both = {
        k: ops.concatenate([finished[k], candidates[k]], axis=1)
        for k in finished
    }
    scores, chosen = ops.top_k(both["score"], beams)
    chosen = ops.cast(chosen, "int32")
    merged = {k: ops.take_along_axis(both[k], chosen, axis=1) for k in finished}
    return {**merged, "score": scores}
