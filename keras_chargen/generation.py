"""The decode loop: it drives anything with `step` and `initial_state`.

One compiled loop reads the prompts and writes on: while a row's position is
inside its prompt the next input is forced, after that it is sampled. The loop
runs in stretches of `STRETCH` steps with the state carried between them, so a
character costs the same at any position, lengths are data, and calls share
compiled code by batch size (rounded up) and kind of sampler alone.
"""

import keras
import numpy as np
from keras import ops

from keras_chargen import samplers
from keras_chargen.checks import check_integer
from keras_chargen.compilation import compile_scan
from keras_chargen.samplers import Context
from keras_chargen.stopping import cut, held_back, stop_table

STRETCH = 256  # steps for which inputs are laid out at once
STREAM_STEPS = 16  # steps between two pieces of a streamed text
MAX_ROWS = 1024  # rows decoded at once; more are decoded in turn


def generate(
    model,
    prompts,
    max_new_tokens=100,
    sampler="greedy",
    temperature=None,
    seed=None,
    num_samples=1,
    stop=None,
    echo=True,
):
    """Writes on from prompts.

    Args:
        model: Has `tokenizer`, `step(ids (B,), state) -> (logits (B, V),
            state)` and `initial_state(B)`, as `CharRNN` has.
        prompts: A str, or a list of str of any lengths; `""` writes from
            nothing. Characters outside the vocabulary are read as the
            tokenizer's `oov` says.
        max_new_tokens: Non-negative integer, characters to write at most.
        sampler: `"greedy"`, `"random"` or a `Sampler`.
        temperature: Number >= 0 for a named sampler; 0 is greedy.
        seed: Non-negative integer for the whole call, or a list of one a
            prompt; None draws a fresh one. A row's text depends on its seed,
            its place (row of the call, or sample of its prompt where seeds
            are listed) and nothing else.
        num_samples: Positive integer, texts for each prompt.
        stop: Optional str or list of str: a row ends where it has written
            one, which is cut off.
        echo: Whether the prompt is part of what comes back.

    Returns:
        A str for a str, a list for a list; with `num_samples > 1` a list of
        str in each place.

    Raises:
        ValueError: An argument is out of range, or `oov="error"` and a prompt
            holds an unknown character.
    """
    alone = isinstance(prompts, str)
    prompts = _check_prompts([prompts] if alone else prompts)
    num_samples = check_integer("num_samples", num_samples, 1)
    rows = [prompt for prompt in prompts for _ in range(num_samples)]
    keys = _row_keys(seed, len(prompts), num_samples)
    stops = _check_stops(stop)
    decode = _Decoder(
        model, samplers.get(sampler, temperature), max_new_tokens, stops
    )
    ids = [decode.prompt_ids(prompt) for prompt in rows]
    texts = []
    for first in range(0, len(rows), MAX_ROWS):
        part = slice(first, first + MAX_ROWS)
        written = [""] * len(rows[part])
        for pieces in decode(ids[part], keys[part], STRETCH):
            written = [a + b for a, b in zip(written, pieces, strict=True)]
        texts += [cut(text, stops) for text in written]
    if echo:
        texts = [a + b for a, b in zip(rows, texts, strict=True)]
    if num_samples > 1:
        texts = [
            texts[i : i + num_samples]
            for i in range(0, len(texts), num_samples)
        ]
    return texts[0] if alone else texts


def stream(
    model,
    prompt,
    max_new_tokens=100,
    sampler="greedy",
    temperature=None,
    seed=None,
    stop=None,
    echo=True,
):
    """Writes on from a prompt and yields the text as it comes.

    Arguments are those of `generate`, for one str; the pieces joined equal
    its result for the same seed. Closing the iterator ends the work.

    Yields:
        Non-empty str.
    """
    if not isinstance(prompt, str):
        raise ValueError(
            f"`prompt` must be a str. Received: {type(prompt).__name__}"
        )
    stops = _check_stops(stop)
    decode = _Decoder(
        model, samplers.get(sampler, temperature), max_new_tokens, stops
    )
    ids, keys = [decode.prompt_ids(prompt)], _row_keys(seed, 1, 1)
    # Arguments are checked at the call, not at the first piece.
    return _stream(decode, ids, keys, stops, prompt if echo else "")


def _stream(decode, ids, keys, stops, prompt):
    if prompt:
        yield prompt
    pending = ""
    for (piece,) in decode(ids, keys, STREAM_STEPS):
        pending += piece
        ready = len(pending) - held_back(pending, stops)
        if cut(pending, stops) == pending and ready:
            yield pending[:ready]
            pending = pending[ready:]
    pending = cut(pending, stops)
    if pending:
        yield pending


class _Decoder:
    """Decodes rows with one sampler; what it compiles stays on the model."""

    def __init__(self, model, sampler, max_new_tokens, stops):
        self.model = model
        self.tokenizer = model.tokenizer
        self.sampler = sampler
        self.length = check_integer("max_new_tokens", max_new_tokens, 0)
        self.table = stop_table(stops, self.tokenizer)
        self.starts = getattr(model, "start", True)

    def prompt_ids(self, prompt):
        """Returns the ids that the model reads, the first input included."""
        ids = self.tokenizer.tokenize(prompt)
        if self.starts:
            return np.append(np.int32(self.tokenizer.eos_id), ids)
        if not ids.size:
            raise ValueError(
                "`prompts` must hold a known character: a model with "
                f"start=False cannot write from nothing. Received: {prompt!r}"
            )
        return ids

    def __call__(self, inputs, keys, steps):
        """Yields, stretch by stretch, the text that each row has written."""
        if not self.length:
            return
        batch = len(inputs)
        size = 1 << (batch - 1).bit_length()
        reads = np.ones(size, "int32")
        reads[:batch] = [len(row) for row in inputs]
        first = np.full(size, self.tokenizer.eos_id, "int32")
        first[:batch] = [row[0] for row in inputs]
        carry = {
            "done": np.arange(size) >= batch,
            "last": first,
            "state": keras.tree.map_structure(
                ops.convert_to_numpy, self.model.initial_state(size)
            ),
            "stop_state": np.zeros(size, "int32"),
            "written": np.zeros(size, "int32"),
            "max_written": np.int32(self.length),
            "numbers": self.sampler.numbers(),
            "writable": self.tokenizer.writable(),
        }
        if self.table is not None:
            carry["table"] = self.table
        draws = _Draws(keys, size)
        scan = self._scan()
        total = int(reads.max()) - 1 + self.length
        position = 0
        # The first piece comes as soon as the shortest prompt is read.
        limit = min(STRETCH, int(reads[:batch].min()) - 1 + steps)
        while position < total:
            limit = min(limit, total - position)
            at = position + np.arange(STRETCH)
            xs = {
                "forced": _forced(inputs, at, size),
                "uniform": draws.at(at[:, None] - (reads - 1)),
            }
            carry, ids = scan(carry, xs, np.int32(limit))
            ids = ops.convert_to_numpy(ids)[:limit]
            ids = np.where(at[: len(ids), None] >= reads - 1, ids, 0)
            # What follows an early stop in the buffer is zero, as padding is.
            yield [self._text(column) for column in ids.T[:batch]]
            if ops.convert_to_numpy(carry["done"]).all():
                return
            position += limit
            limit = min(STRETCH, steps)

    def _text(self, ids):
        return self.tokenizer.detokenize(ids)

    def _scan(self):
        cache = getattr(self.model, "_compiled_decoding", None)
        if cache is None:
            cache = _Programs()
            self.model._compiled_decoding = cache
        key = (self.sampler.signature(), self.table is not None)
        if key not in cache.programs:
            cache.programs[key] = compile_scan(
                _body(self.model, self.sampler, self.tokenizer.eos_id),
                getattr(self.model, "variables", ()),
            )
        return cache.programs[key]


class _Programs:
    # A plain object: Keras would look for layers in a dict of a model.
    def __init__(self):
        self.programs = {}


def _body(model, sampler, eos_id):
    def body(carry, x):
        done, written = carry["done"], carry["written"]
        forced = x["forced"]  # (B,), 0 where the row writes
        logits, state = model.step(carry["last"], carry["state"])  # (B, V)
        logits = ops.where(
            carry["writable"], ops.cast(logits, "float32"), -float("inf")
        )
        ids = sampler(logits, x["uniform"], Context(written), carry["numbers"])
        reading = forced > 0
        ids = ops.where(reading, forced, ids)
        ids = ops.where(done, ops.zeros_like(ids), ids)
        written = written + ops.cast(
            ops.logical_not(ops.logical_or(reading, done)), "int32"
        )
        ended = ops.logical_or(ids == eos_id, written >= carry["max_written"])
        stop_state = carry["stop_state"]
        if "table" in carry:
            table = carry["table"]  # (S, V)
            place = stop_state * ops.shape(table)[1] + ids
            following = ops.take(ops.reshape(table, (-1,)), place)
            following = ops.where(reading, stop_state, following)
            ended = ops.logical_or(ended, following < 0)
            stop_state = ops.maximum(following, 0)
        done = ops.logical_or(done, ended)
        carry = {
            **carry,
            "done": done,
            "last": ids,
            "state": state,
            "stop_state": stop_state,
            "written": written,
        }
        return carry, ids, ops.all(done)

    return body


class _Draws:
    """One uniform number per row and character, equal under every backend.

    NumPy's Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2,
    3", 2011) keyed by (seed, row) gives each row a stream of its own.
    """

    def __init__(self, keys, size):
        self.generators = [
            np.random.Generator(np.random.Philox(key=np.array(key, "uint64")))
            for key in keys
        ]
        # Numbers drawn and not yet past, and the place of the first.
        self.drawn = [np.zeros(0, "float32") for _ in keys]
        self.passed = [0] * len(keys)
        self.size = size

    def at(self, places):
        """Returns float32 `(K, B)`: for each row its numbers `places`.

        A row's places ascend by one from step to step and from call to call;
        negative ones, where a prompt is read, give 0.
        """
        uniform = np.zeros((len(places), self.size), "float32")
        for row, generator in enumerate(self.generators):
            first, last = places[0, row], places[-1, row]
            if last < 0:
                continue
            begin = max(first, 0)
            drawn = self.drawn[row][begin - self.passed[row] :]
            more = last + 1 - begin - len(drawn)
            if more > 0:
                # 24 bits: float32 holds each exactly, and all are below 1.
                bits = generator.integers(0, 1 << 24, more, dtype="uint32")
                fresh = bits.astype("float32") / np.float32(1 << 24)
                drawn = np.append(drawn, fresh)
            self.drawn[row], self.passed[row] = drawn, begin
            uniform[begin - first :, row] = drawn[: last + 1 - begin]
        return uniform


def _forced(inputs, at, size):
    # At position t the model reads input t; input t + 1 is what comes out.
    forced = np.zeros((len(at), size), "int32")
    for row, ids in enumerate(inputs):
        ahead = ids[at[0] + 1 : at[-1] + 2]
        forced[: len(ahead), row] = ahead
    return forced


def _check_prompts(prompts):
    if not isinstance(prompts, list | tuple):
        raise ValueError(
            "`prompts` must be a str or a list of str. Received: "
            f"{type(prompts).__name__}"
        )
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise ValueError(
                f"`prompts` must hold str. Received: {type(prompt).__name__}"
            )
    return list(prompts)


def _check_stops(stop):
    stops = [stop] if isinstance(stop, str) else list(stop or ())
    for text in stops:
        if not isinstance(text, str) or not text:
            raise ValueError(
                f"`stop` must be non-empty str or a list of them. "
                f"Received: {stop!r}"
            )
    return stops


def _row_keys(seed, num_prompts, num_samples):
    if seed is None:
        seed = int(np.random.SeedSequence().generate_state(1, "uint64")[0])
    if not isinstance(seed, list | tuple):
        seed = _check_seed(seed)
        return [(seed, row) for row in range(num_prompts * num_samples)]
    if len(seed) != num_prompts:
        raise ValueError(
            "`seed` must be one integer, or one a prompt. Received "
            f"{len(seed)} for {num_prompts} prompts"
        )
    return [
        (_check_seed(s), sample) for s in seed for sample in range(num_samples)
    ]


def _check_seed(seed):
    seed = check_integer("seed", seed, 0)
    if seed >= 1 << 64:
        raise ValueError(f"`seed` must be below 2**64. Received: {seed}")
    return seed
