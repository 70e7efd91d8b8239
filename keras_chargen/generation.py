"""The decode loop: it drives anything with `step` and `initial_state`.

One compiled loop reads the prompts and writes on: while a row's position is
inside its prompt the next input is forced, after that it is sampled. The loop
runs in stretches of `STRETCH` steps with the state carried between them, so a
character costs the same at any position, lengths are data, and calls share
compiled code by batch size (rounded up) and kind of sampler alone.
"""

import itertools
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_chargen import beams, hub, patterns, samplers
from keras_chargen.checks import check_integer
from keras_chargen.compilation import compile_scan
from keras_chargen.samplers import BeamSearch, Context, MinLength, Sampler
from keras_chargen.stopping import cut, held_back, stop_table, up_to_stop

STRETCH = 256  # steps for which inputs are laid out at once
STREAM_STEPS = 16  # steps between two pieces of a streamed text
MAX_ROWS = 1024  # rows decoded at once; more are decoded in turn


class Written(NamedTuple):
    """A text that was written.

    Attributes:
        text: str, with the prompt if `echo`.
        ended: `"eos"`, `"stop"` or `"length"`.
        log_probs: float32 `(n,)`, natural log of the model's probability of
            each character written, and of `<eos>` where that ended the text.
        sampler_log_probs: float32 `(n,)`, the same under what the sampler
            made of the distribution: 0 where it left no choice. For a beam
            search, the log-probabilities by which it ranked.
    """

    text: str
    ended: str
    log_probs: Any
    sampler_log_probs: Any


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
    min_new_tokens=0,
    include_stop=False,
    pattern=None,
    return_scores=False,
):
    """Writes on from prompts.

    Args:
        model: Has `tokenizer`, `step(ids (B,), state) -> (logits (B, V),
            state)` and `initial_state(B)`, as `CharRNN` has.
        prompts: A str, or a list of str of any lengths; `""` writes from
            nothing. Characters outside the vocabulary are read as the
            tokenizer's `oov` says.
        max_new_tokens: Non-negative integer, characters to write at most.
        sampler: A name (see `Sampler`; `"beam"` is `BeamSearch()`), a
            `Sampler`, or a sampler of KerasHub.
        temperature: For a named sampler: number >= 0, 0 is greedy; or a list
            of numbers > 0, taken in turn.
        seed: Non-negative integer for the whole call, or a list of one a
            prompt; None draws a fresh one. A row's text depends on its seed,
            its place (row of the call, or sample of its prompt where seeds
            are listed) and nothing else.
        num_samples: Positive integer, texts for each prompt; of a beam search
            the best ones, best first.
        stop: Optional str or list of str: a row ends where it has written
            one.
        echo: Whether the prompt is part of what comes back.
        min_new_tokens: Non-negative integer, characters before which `<eos>`
            is held back.
        include_stop: Whether the stop string stays in the text.
        pattern: Optional regular expression, in Python's syntax, that what is
            written matches in full, or, if the length runs out first, begins
            to match. Only what can be completed in the length left is begun.
        return_scores: Whether to return `Written` in the place of each str.

    Returns:
        A str for a str, a list for a list; with `num_samples > 1` a list of
        str in each place.

    Raises:
        ValueError: An argument is out of range, `oov="error"` and a prompt
            holds an unknown character, or a pattern that cannot be matched.
    """
    alone = isinstance(prompts, str)
    prompts = _check_prompts([prompts] if alone else prompts)
    if seed is not None and hub.is_sampler(sampler):
        raise ValueError(
            "`seed` does not go with a sampler of KerasHub, which has its own. "
            f"Received: {seed!r}"
        )
    seeds = _check_seeds(seed, len(prompts))
    texts = list(
        iter_generate(
            model,
            prompts,
            max_new_tokens,
            sampler=sampler,
            temperature=temperature,
            seed=seeds,
            num_samples=num_samples,
            stop=stop,
            echo=echo,
            min_new_tokens=min_new_tokens,
            include_stop=include_stop,
            pattern=pattern,
            return_scores=return_scores,
        )
    )
    if num_samples == 1:
        texts = [text for (text,) in texts]
    return texts[0] if alone else texts


def iter_generate(
    model,
    prompts,
    max_new_tokens=100,
    *,
    sampler="greedy",
    temperature=None,
    seed=None,
    num_samples=1,
    stop=None,
    echo=True,
    min_new_tokens=0,
    include_stop=False,
    pattern=None,
    return_scores=False,
    first_row=0,
):
    """Writes on from any number of prompts, in constant memory.

    Args:
        model: As for `generate`, and so all that is not named here.
        prompts: Iterable of str; so many are read ahead as are decoded at
            once.
        max_new_tokens: As for `generate`.
        sampler: As for `generate`.
        temperature: As for `generate`.
        seed: As for `generate`.
        num_samples: As for `generate`.
        stop: As for `generate`.
        echo: As for `generate`.
        min_new_tokens: As for `generate`.
        include_stop: As for `generate`.
        pattern: As for `generate`.
        return_scores: As for `generate`.
        first_row: Non-negative integer, the row that the first text counts
            as: so a part of a call gives what the whole gave there.

    Yields:
        For each prompt a list of `num_samples` str or `Written`.
    """
    num_samples = check_integer("num_samples", num_samples, 1)
    if not isinstance(seed, _Seeds):
        seed = _check_seeds(seed, None)
    stops = _check_stops(stop)
    decode = _decoder(
        model,
        sampler,
        temperature,
        max_new_tokens,
        min_new_tokens,
        stops,
        pattern,
        scored=return_scores,
        num_samples=num_samples,
    )
    # Arguments are checked at the call, not at the first text.
    return _iter_generate(
        decode, prompts, seed, num_samples, stops, echo, include_stop, first_row
    )


def _iter_generate(
    decode, prompts, seeds, num_samples, stops, echo, include_stop, first_row
):
    prompts = iter(prompts)
    at_once = max(1, MAX_ROWS // (num_samples * decode.rows_per_text))
    done = 0
    while part := list(itertools.islice(prompts, at_once)):
        ids = [decode.prompt_ids(prompt) for prompt in part]
        keys = [
            key
            for i in range(done, done + len(part))
            for key in seeds.keys(i, num_samples, first_row)
        ]
        for prompt, rows in zip(
            part, decode.whole(ids, keys, num_samples), strict=True
        ):
            yield [
                decode.text(row, prompt if echo else "", stops, include_stop)
                for row in rows
            ]
        done += len(part)


def stream(
    model,
    prompts,
    max_new_tokens=100,
    sampler="greedy",
    temperature=None,
    seed=None,
    stop=None,
    echo=True,
    min_new_tokens=0,
    include_stop=False,
    pattern=None,
):
    """Writes on from prompts and yields the text as it comes.

    Arguments are those of `generate`; the pieces of a row joined equal its
    result for the same seed. Closing the iterator ends the work.

    Yields:
        Non-empty str for a str; for a list `(row, str)`.
    """
    alone = isinstance(prompts, str)
    prompts = _check_prompts([prompts] if alone else prompts)
    seeds = _check_seeds(seed, len(prompts))
    stops = _check_stops(stop)
    decode = _decoder(
        model,
        sampler,
        temperature,
        max_new_tokens,
        min_new_tokens,
        stops,
        pattern,
    )
    if not decode.streams:
        raise ValueError(
            f"{sampler!r} cannot stream: its texts are known at the end alone"
        )
    if len(prompts) > MAX_ROWS:
        raise ValueError(
            f"`prompts` to stream must be at most {MAX_ROWS}. "
            f"Received: {len(prompts)}"
        )
    ids = [decode.prompt_ids(prompt) for prompt in prompts]
    keys = [key for i in range(len(prompts)) for key in seeds.keys(i, 1, 0)]
    # Arguments are checked at the call, not at the first piece.
    pieces = _stream(
        decode, ids, keys, stops, include_stop, prompts if echo else ()
    )
    return (piece for _, piece in pieces) if alone else pieces


def _stream(decode, ids, keys, stops, include_stop, prompts):
    for row, prompt in enumerate(prompts):
        if prompt:
            yield row, prompt
    if not ids:
        return

    def trim(text):
        return text if include_stop else cut(text, stops)

    pending = [""] * len(ids)
    for part in decode(ids, keys, STREAM_STEPS):
        for row, column in enumerate(part["ids"].T):
            pending[row] += decode.tokenizer.detokenize(column)
            text = pending[row]
            ready = len(text) - held_back(text, stops)
            if trim(text) == text and ready:
                yield row, text[:ready]
                pending[row] = text[ready:]
    for row, text in enumerate(pending):
        if trim(text):
            yield row, trim(text)


def _decoder(
    model,
    sampler,
    temperature,
    max_new_tokens,
    min_new_tokens,
    stops,
    pattern,
    scored=False,
    num_samples=1,
):
    length = check_integer("max_new_tokens", max_new_tokens, 0)
    least = check_integer("min_new_tokens", min_new_tokens, 0)
    if least > length:
        raise ValueError(
            "`min_new_tokens` must be at most `max_new_tokens`. Received: "
            f"{least} and {length}"
        )
    if hub.is_sampler(sampler):
        for name, value in (
            ("temperature", temperature),
            ("min_new_tokens", least),
            ("pattern", pattern),
            ("return_scores", scored),
        ):
            if value:
                raise ValueError(
                    f"`{name}` does not go with a sampler of KerasHub. "
                    f"Received: {value!r}"
                )
        decoder = _HubDecoder(model, Sampler(), length, stops, None, False)
        decoder.sampler = sampler
        return decoder
    sampler = samplers.get(sampler, temperature)
    if least:
        sampler = sampler.before(MinLength(least))
    kind = _Decoder
    if isinstance(sampler, BeamSearch):
        kind = _BeamDecoder
        if num_samples > sampler.num_beams:
            raise ValueError(
                "`num_samples` must be at most `num_beams` of the beam "
                f"search. Received: {num_samples} and {sampler.num_beams}"
            )
    return kind(model, sampler, length, stops, pattern, scored)


class _Decoder:
    """Decodes rows with one sampler; what it compiles stays on the model."""

    streams = True

    def __init__(self, model, sampler, length, stops, pattern, scored):
        self.model = model
        self.tokenizer = model.tokenizer
        self.sampler = sampler
        self.length = length
        self.table = stop_table(stops, self.tokenizer)
        self.starts = getattr(model, "start", True)
        self.scored = scored
        self.numbers = sampler.numbers(self.tokenizer)
        self.pattern = None
        if pattern is not None:
            self.pattern = patterns.pattern_table(
                pattern, self.tokenizer, self._allowed()
            )

    @property
    def rows_per_text(self):
        """How many rows of the loop a text takes."""
        return 1

    def _allowed(self):
        # What the chain forbids outright must not be on a pattern's way.
        allowed = self.tokenizer.writable()
        for transform in self.sampler.chain:
            if isinstance(transform, MinLength | samplers.NoRepeatNGram):
                raise ValueError(
                    "`pattern` says itself how a text may go on: it goes "
                    f"without {transform!r}"
                )
            if hasattr(transform, "allowed"):
                allowed &= transform.allowed(self.tokenizer)
        return allowed

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

    def text(self, row, prompt, stops, include_stop):
        """Returns what became of a row, as str or `Written`.

        Args:
            row: Dict with `"ids"` `(n,)` and the scores of each.
            prompt: str to put in front.
            stops: List of str.
            include_stop: Whether the one that ended the text stays.
        """
        ids = row["ids"]
        text = self.tokenizer.detokenize(ids)
        trimmed = cut(text, stops)
        ended = "length"
        if len(ids) and ids[-1] == self.tokenizer.eos_id:
            ended, trimmed = "eos", text
        elif trimmed != text:
            ended = "stop"
        count = len(ids) - (0 if include_stop else len(text) - len(trimmed))
        text = prompt + (text if include_stop else trimmed)
        if not self.scored:
            return text
        scores = (row[k][:count] for k in ("log_probs", "sampler_log_probs"))
        return Written(text, ended, *scores)

    def whole(self, inputs, keys, num_samples):
        """Decodes to the end.

        Returns:
            For each of `inputs` a list of `num_samples` dicts as for `text`.
        """
        inputs = [ids for ids in inputs for _ in range(num_samples)]
        names = _outputs(self.scored)
        none = {name: np.zeros((0, len(inputs)), names[name]) for name in names}
        parts = [none, *self(inputs, keys, STRETCH)]
        columns = {
            name: np.concatenate([part[name] for part in parts]).T
            for name in names
        }
        rows = []
        for i, ids in enumerate(columns["ids"]):
            wrote = ids > 0
            rows.append({name: columns[name][i][wrote] for name in names})
        return [
            rows[i : i + num_samples] for i in range(0, len(rows), num_samples)
        ]

    def begin(self, inputs, size):
        """Returns the state of the loop before the first step.

        Args:
            inputs: List of id arrays, one a row.
            size: Integer, rows of the loop; those beyond `inputs` are done.
        """
        batch = len(inputs)
        first = np.full(size, self.tokenizer.eos_id, "int32")
        first[:batch] = [row[0] for row in inputs]
        carry = {
            "done": np.arange(size) >= batch,
            "last": first,
            "state": _to_numpy(self.model.initial_state(size)),
            "sampler": self._sampler_state(first),
            "written": np.zeros(size, "int32"),
            "max_written": np.int32(self.length),
            "numbers": self.numbers,
            "writable": self.tokenizer.writable(),
        }
        if self.table is not None:
            carry["stop"] = {
                "table": self.table,
                "state": np.zeros(size, "int32"),
            }
        if self.pattern is not None:
            carry["pattern"] = patterns.begin(self.pattern, size, self.length)
        return carry

    def _sampler_state(self, first):
        size = self.tokenizer.vocabulary_size()
        state = self.sampler.initial_state(len(first), size)
        if self.starts or not self.sampler.chain:
            return state
        # The first character of the text is an input before the first step.
        convert = ops.convert_to_tensor
        rows = len(first)
        reading = convert(np.zeros(rows, bool))
        context = Context(convert(np.zeros(rows, "int32")), writes=reading)
        return _to_numpy(
            self.sampler.remember(
                [convert(np.zeros((rows, size), "float32"))]
                * len(self.sampler.chain),
                convert(first),
                context,
                keras.tree.map_structure(convert, self.numbers),
                keras.tree.map_structure(convert, state),
            )
        )

    @staticmethod
    def forced(inputs, at, size):
        """Returns int32 `(K, size)`: what rows read at steps `at`, else 0."""
        # At position t the model reads input t; input t + 1 is what comes out.
        forced = np.zeros((len(at), size), "int32")
        for row, ids in enumerate(inputs):
            ahead = ids[at[0] + 1 : at[-1] + 2]
            forced[: len(ahead), row] = ahead
        return forced

    def __call__(self, inputs, keys, steps):
        """Yields, stretch by stretch, what each row has written.

        Yields:
            Dict of `(K, len(inputs))`: `"ids"`, 0 where a row did not write,
            and with `scored` the log-probabilities.
        """
        if not self.length:
            return
        batch = len(inputs)
        size = 1 << (batch - 1).bit_length()
        reads = np.ones(size, "int32")
        reads[:batch] = [len(row) for row in inputs]
        carry = self.begin(inputs, size)
        draws = _Draws(keys, size)
        coins = _Draws(keys, size, stream=1)
        scan = self.compiled(
            lambda: compile_scan(
                _body(
                    self.model, self.sampler, self.tokenizer.eos_id, self.scored
                ),
                _outputs(self.scored),
                getattr(self.model, "variables", ()),
            )
        )
        total = int(reads.max()) - 1 + self.length
        position = 0
        # The first piece comes as soon as the shortest prompt is read.
        limit = min(STRETCH, int(reads[:batch].min()) - 1 + steps)
        while position < total:
            limit = min(limit, total - position)
            at = position + np.arange(STRETCH)
            places = at[:, None] - (reads - 1)
            xs = {
                "forced": self.forced(inputs, at, size),
                "uniform": draws.at(places),
            }
            if self.sampler.uses_chance:
                xs["chance"] = coins.at(places)
            carry, ys = scan(carry, xs, np.int32(limit))
            # What follows an early stop in the buffer is zero, as padding is.
            ys = {
                name: ops.convert_to_numpy(y)[:limit, :batch]
                for name, y in ys.items()
            }
            reading = at[: len(ys["ids"]), None] < reads[:batch] - 1
            ys["ids"] = np.where(reading, 0, ys["ids"])
            yield ys
            if ops.convert_to_numpy(carry["done"]).all():
                return
            position += limit
            limit = min(STRETCH, steps)

    def compiled(self, make):
        """Returns what `make()` gave for this kind of decoding before."""
        cache = getattr(self.model, "_compiled_decoding", None)
        if cache is None:
            cache = _Programs()
            self.model._compiled_decoding = cache
        key = (
            self.sampler.signature(),
            self.table is not None,
            self.pattern is not None,
            self.scored,
        )
        if key not in cache.programs:
            cache.programs[key] = make()
        return cache.programs[key]


class _BeamDecoder(_Decoder):
    """Decodes whole texts by beam search."""

    streams = False

    @property
    def rows_per_text(self):
        return self.sampler.num_beams

    def whole(self, inputs, keys, num_samples):
        if not self.length:
            return super().whole(inputs, keys, num_samples)
        return [
            found[:num_samples] for found in beams.search(self, inputs, STRETCH)
        ]


class _HubDecoder(_Decoder):
    """Decodes with a sampler of KerasHub."""

    streams = False

    def text(self, row, prompt, stops, include_stop):
        # Its loop knows no stop strings: it wrote on.
        text = self.tokenizer.detokenize(row["ids"])
        ended = up_to_stop(text, stops)
        if cut(ended, stops) != ended:
            row = {"ids": row["ids"][: len(ended)]}
        return super().text(row, prompt, stops, include_stop)

    def whole(self, inputs, keys, num_samples):
        rows = [ids for ids in inputs for _ in range(num_samples)]
        found = hub.write(self.model, self.sampler, rows, self.length)
        found = [{"ids": ids} for ids in found]
        return [
            found[i : i + num_samples]
            for i in range(0, len(found), num_samples)
        ]


class _Programs:
    # A plain object: Keras would look for layers in a dict of a model.
    def __init__(self):
        self.programs = {}


def _outputs(scored):
    scores = ("log_probs", "sampler_log_probs") if scored else ()
    return {"ids": "int32", **dict.fromkeys(scores, "float32")}


def _to_numpy(values):
    return keras.tree.map_structure(ops.convert_to_numpy, values)


def _body(model, sampler, eos_id, scored):
    def body(carry, x):
        done, written = carry["done"], carry["written"]
        forced = x["forced"]  # (B,), 0 where the row writes
        reading = forced > 0
        writes = ops.logical_not(ops.logical_or(reading, done))
        logits, state = model.step(carry["last"], carry["state"])  # (B, V)
        model_logits = ops.cast(logits, "float32")
        logits = ops.where(carry["writable"], model_logits, -float("inf"))
        if "pattern" in carry:
            left = carry["max_written"] - written - 1
            logits = patterns.permit(logits, carry["pattern"], left)
        numbers = carry["numbers"]
        context = Context(written, chance=x.get("chance"), writes=writes)
        logits, outputs = sampler.transform(
            logits, context, numbers, carry["sampler"]
        )
        ids = sampler.choose(logits, x["uniform"])
        ids = ops.where(reading, forced, ids)
        ids = ops.where(done, ops.zeros_like(ids), ids)
        written = written + ops.cast(writes, "int32")
        ended = ops.logical_or(ids == eos_id, written >= carry["max_written"])
        following = {
            **carry,
            "last": ids,
            "state": state,
            "sampler": sampler.remember(
                outputs, ids, context, numbers, carry["sampler"]
            ),
            "written": written,
        }
        if "stop" in carry:
            stop = _advance_stop(carry["stop"], ids, writes)
            ended = ops.logical_or(ended, stop < 0)
            following["stop"] = {
                **carry["stop"],
                "state": ops.maximum(stop, 0),
            }
        if "pattern" in carry:
            following["pattern"] = patterns.advance(
                carry["pattern"], ids, writes
            )
        following["done"] = ops.logical_or(done, ended)
        ys = {"ids": ids}
        if scored:
            ys["log_probs"] = log_prob(model_logits, ids)
            certain = ops.zeros_like(ys["log_probs"])
            ys["sampler_log_probs"] = (
                certain if sampler.greedy else log_prob(logits, ids)
            )
        return following, ys, ops.all(following["done"])

    return body


def _advance_stop(stop, ids, writes):
    table = stop["table"]  # (S, V)
    place = stop["state"] * table.shape[1] + ids
    following = ops.take(ops.reshape(table, (-1,)), place)
    return ops.where(writes, following, stop["state"])


def log_prob(logits, ids):
    """Returns float32 `(B,)`, ln of the probability of ids under logits."""
    chosen = ops.take_along_axis(logits, ids[:, None], axis=-1)[:, 0]
    return chosen - ops.logsumexp(logits, axis=-1)


class _Draws:
    """One uniform number per row and character, equal under every backend.

    NumPy's Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2,
    3", 2011) keyed by (seed, row) gives each row a stream of its own; stream 1
    is far from stream 0.
    """

    def __init__(self, keys, size, stream=0):
        self.generators = [
            np.random.Generator(
                np.random.Philox(key=np.array(key, "uint64")).jumped(stream)
            )
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


class _Seeds:
    """The keys of the rows' random numbers."""

    def __init__(self, seed):
        self.seed = seed

    def keys(self, prompt, num_samples, first_row):
        """Returns `(seed, row)` for the samples of a prompt."""
        if isinstance(self.seed, list):
            return [(self.seed[prompt], i) for i in range(num_samples)]
        row = first_row + prompt * num_samples
        return [(self.seed, row + i) for i in range(num_samples)]


def _check_seeds(seed, num_prompts):
    if seed is None:
        seed = int(np.random.SeedSequence().generate_state(1, "uint64")[0])
    if not isinstance(seed, list | tuple):
        return _Seeds(_check_seed(seed))
    if num_prompts is not None and len(seed) != num_prompts:
        raise ValueError(
            "`seed` must be one integer, or one a prompt. Received "
            f"{len(seed)} for {num_prompts} prompts"
        )
    return _Seeds([_check_seed(one) for one in seed])


def _check_seed(seed):
    seed = check_integer("seed", seed, 0)
    if seed >= 1 << 64:
        raise ValueError(f"`seed` must be below 2**64. Received: {seed}")
    return seed
