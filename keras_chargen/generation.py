"""Writing: `generate`, `iter_generate` and `stream`, and their arguments."""

import itertools

import numpy as np

from keras_chargen import hub
from keras_chargen.checks import check_integer
from keras_chargen.decoding import make_decoder
from keras_chargen.stopping import cut, held_back

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
    decode = make_decoder(
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
    decode = make_decoder(
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
