"""The decode loop: it drives anything with `step` and `initial_state`.

One compiled loop reads the prompts and writes on: while a row's position is
inside its prompt the next input is forced, after that it is sampled. The loop
runs in stretches of steps with the state carried between them, so a character
costs the same at any position, lengths are data, and calls share compiled code
by batch size (rounded up), kind of sampler and one of two stretches alone.
"""

from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_chargen import beams, hub, patterns, samplers
from keras_chargen.automata import follow
from keras_chargen.checks import check_integer
from keras_chargen.compilation import compile_scan, kept, round_up
from keras_chargen.draws import Draws
from keras_chargen.samplers import BeamSearch, Context, MinLength
from keras_chargen.stopping import cut, stop_table, up_to_stop

STRETCH = 256  # steps for which inputs are laid out at once
# A long text in few rows takes longer stretches: what is done once for each
# costs a quarter of the time of 256 steps of one row.
LONG_STRETCH = 2048
_LONG_CELLS = 1 << 16


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


def make_decoder(
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
    """Returns the decoder for some arguments of `generate`, which it checks.

    Args:
        model: As for `generate`, and so all that is not named here.
        sampler: As for `generate`.
        temperature: As for `generate`.
        max_new_tokens: As for `generate`.
        min_new_tokens: As for `generate`.
        stops: List of str.
        pattern: As for `generate`.
        scored: Whether `text` gives `Written`.
        num_samples: As for `generate`.
    """
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
        return _HubDecoder(model, sampler, length)
    sampler = samplers.get(sampler, temperature)
    if least:
        sampler = sampler.before(MinLength(least))
    kind = _LoopDecoder
    if isinstance(sampler, BeamSearch):
        kind = _BeamDecoder
        if num_samples > sampler.num_beams:
            raise ValueError(
                "`num_samples` must be at most `num_beams` of the beam "
                f"search. Received: {num_samples} and {sampler.num_beams}"
            )
    return kind(model, sampler, length, stops, pattern, scored)


class _Decoder:
    """What prompts become on the way in, and rows on the way out."""

    streams = False
    scored = False

    def __init__(self, model, sampler, length):
        self.model = model
        self.tokenizer = model.tokenizer
        self.sampler = sampler
        self.length = length
        self.starts = getattr(model, "start", True)

    @property
    def rows_per_text(self):
        """How many rows of the loop a text takes."""
        return 1

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

        Args:
            inputs: List of id arrays, what the model reads first.
            keys: List of `(seed, row)`, one for each text.
            num_samples: Integer, texts for each of `inputs`.

        Returns:
            For each of `inputs` a list of `num_samples` dicts as for `text`.
        """
        raise NotImplementedError


class _LoopDecoder(_Decoder):
    """Decodes rows with one sampler; what it compiles stays on the model."""

    streams = True

    def __init__(self, model, sampler, length, stops, pattern, scored):
        super().__init__(model, sampler, length)
        self.table = stop_table(stops, self.tokenizer)
        self.scored = scored
        self.numbers = sampler.numbers(self.tokenizer)
        self.pattern = None
        if pattern is not None:
            self.pattern = patterns.pattern_table(
                pattern, self.tokenizer, self._allowed()
            )

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

    def whole(self, inputs, keys, num_samples):
        inputs = [ids for ids in inputs for _ in range(num_samples)]
        names = _outputs(self.scored)
        none = {name: np.zeros((0, len(inputs)), names[name]) for name in names}
        parts = [none, *self(inputs, keys)]
        columns = {
            name: np.concatenate([part[name] for part in parts]).T
            for name in names
        }
        rows = []
        for i, ids in enumerate(columns["ids"]):
            wrote = ids > 0
            rows.append({name: columns[name][i][wrote] for name in names})
        return _grouped(rows, num_samples)

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

    def __call__(self, inputs, keys, steps=None):
        """Yields, stretch by stretch, what each row has written.

        Args:
            inputs: As for `whole`.
            keys: As for `whole`.
            steps: Integer, steps of a stretch; None is as many as are quick.

        Yields:
            Dict of `(K, len(inputs))`: `"ids"`, 0 where a row did not write,
            and with `scored` the log-probabilities.
        """
        if not self.length:
            return
        batch = len(inputs)
        size = round_up(batch)
        reads = np.ones(size, "int32")
        reads[:batch] = [len(row) for row in inputs]
        carry = self.begin(inputs, size)
        streams = {}
        if not self.sampler.greedy:
            streams["uniform"] = Draws(keys, size)
        if self.sampler.uses_chance:
            streams["chance"] = Draws(keys, size, stream=1)
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
        rows = STRETCH
        if steps is None:
            if total > STRETCH and size * LONG_STRETCH <= _LONG_CELLS:
                rows = LONG_STRETCH
            steps = rows
        # The first piece comes as soon as the shortest prompt is read.
        limit = min(rows, int(reads[:batch].min()) - 1 + steps)
        while position < total:
            limit = min(limit, total - position)
            at = position + np.arange(rows)
            places = at[:, None] - (reads - 1)
            xs = {name: draws.at(places) for name, draws in streams.items()}
            xs["forced"] = self.forced(inputs, at, size)
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
            limit = min(rows, steps)

    def compiled(self, make):
        """Returns what `make()` gave for this kind of decoding before."""
        key = (
            self.sampler.signature(),
            self.table is not None,
            self.pattern is not None,
            self.scored,
        )
        return kept(self.model, key, make)


class _BeamDecoder(_LoopDecoder):
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
        return _grouped([{"ids": ids} for ids in found], num_samples)


def _grouped(rows, size):
    return [rows[i : i + size] for i in range(0, len(rows), size)]


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
        ids = sampler.choose(logits, x.get("uniform"))
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
            stop = carry["stop"]
            stops = follow(stop["table"], stop["state"], ids)
            stops = ops.where(writes, stops, stop["state"])
            ended = ops.logical_or(ended, stops < 0)
            following["stop"] = {**stop, "state": ops.maximum(stops, 0)}
        if "pattern" in carry:
            following["pattern"] = patterns.advance(
                carry["pattern"], ids, writes
            )
        following["done"] = ops.logical_or(done, ended)
        ys = {"ids": ids}
        if scored:
            ys["log_probs"] = _log_prob(model_logits, ids)
            certain = ops.zeros_like(ys["log_probs"])
            ys["sampler_log_probs"] = (
                certain if sampler.greedy else _log_prob(logits, ids)
            )
        return following, ys, ops.all(following["done"])

    return body


def _log_prob(logits, ids):
    """Returns float32 `(B,)`, ln of the probability of ids under logits."""
    chosen = ops.take_along_axis(logits, ids[:, None], axis=-1)[:, 0]
    return chosen - ops.logsumexp(logits, axis=-1)
