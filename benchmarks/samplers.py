"""What each way of choosing costs, and what it writes.

    KERAS_BACKEND=jax python -m benchmarks.samplers speed
    KERAS_BACKEND=jax python -m benchmarks.samplers text model.keras \
        --corpus test.csv --field title --columns label,title,description

`speed` needs no data: the ratio of times against greedy (or, for what draws,
against the plain draw) at batch 64, the median of several runs in turn.
`text` writes with a trained model and tells how likely and how varied the
texts are, and how well bits per character tell real texts from those with two
letters swapped.
"""

import argparse
import itertools
import statistics
import time

import numpy as np

from benchmarks.environment import describe

UNITS = 128
BATCH = 64
STEPS = 512


def chains():
    """Yields each chain by name with the one it is measured against."""
    from keras_chargen import samplers as room

    drawn = ["top-k", "top-p", "min-p", "typical", "top-n-sigma", "xtc"]
    yield "random", room.Sampler("random"), "greedy"
    for name in [*drawn, "mirostat"]:
        yield name, room.Sampler(name), "random"
    for transform in (
        room.TemperatureCycle([0.5, 1.0, 1.5]),
        room.DynamicTemperature(),
    ):
        sampler = room.Sampler("random", transforms=[transform])
        yield type(transform).__name__, sampler, "random"
    for transform in (
        room.TopK(),
        room.TopP(),
        room.MinP(),
        room.Typical(),
        room.TopNSigma(),
        room.XTC(),
        room.RepetitionPenalty(),
        room.PresencePenalty(),
        room.FrequencyPenalty(),
        room.LogitBias({"!": 1.0}),
        room.BanCharacters("!"),
        room.MinLength(10),
        room.DRY(),
        room.NoRepeatNGram(),
    ):
        sampler = room.Sampler("greedy", transforms=[transform])
        yield f"greedy, {type(transform).__name__}", sampler, "greedy"
    yield "beam search, 4 beams", room.BeamSearch(4), "greedy"


def speed(repeats):
    """Prints the cost of each chain over that of its base."""
    from keras_chargen import CharRNN, CharTokenizer
    from keras_chargen import samplers as room

    characters = [chr(code) for code in range(33, 115)]
    model = CharRNN(CharTokenizer(characters), units=UNITS)
    weights = model.get_weights()
    # No text ends by itself, so all are as long as they may be.
    weights[-1][model.tokenizer.eos_id] = -30
    model.set_weights(weights)

    def seconds(sampler):
        # Beams are rows of the batch: the rows are those of the others.
        rows = BATCH // getattr(sampler, "num_beams", 1)
        begin = time.perf_counter()
        model.generate(["!"] * rows, STEPS, sampler=sampler, seed=1)
        return time.perf_counter() - begin

    measured = [("greedy", room.Sampler("greedy"), "greedy"), *chains()]
    times = {name: [] for name, *_ in measured}
    for _, sampler, _ in measured:
        seconds(sampler)
    for _ in range(repeats):
        for name, sampler, _ in measured:
            times[name].append(seconds(sampler))
    for name, _, base in measured:
        ratios = [a / b for a, b in zip(times[name], times[base], strict=True)]
        median = statistics.median(ratios)
        spread = (max(ratios) - min(ratios)) / median
        print(f"{name:<28} {median:5.2f} of {base:<7} +-{spread / 2:4.0%}")


def distinct(texts, size):
    """Share of different n-grams of characters among all."""
    grams = [
        text[i : i + size]
        for text in texts
        for i in range(len(text) - size + 1)
    ]
    return len(set(grams)) / max(1, len(grams))


def repetition(texts, size=12):
    """Share of characters that end an n-gram which the same text had before."""
    again = total = 0
    for text in texts:
        grams = [text[i : i + size] for i in range(len(text) - size + 1)]
        again += len(grams) - len(set(grams))
        total += len(grams)
    return again / max(1, total)


def swapped(text, rng):
    """The text with two different neighbouring letters swapped, or None."""
    places = [
        i
        for i in range(len(text) - 1)
        if text[i] != text[i + 1] and text[i : i + 2].isalpha()
    ]
    if not places:
        return None
    i = int(rng.choice(places))
    return text[:i] + text[i + 1] + text[i] + text[i + 2 :]


def area_under_curve(real, garbled):
    """Chance that a garbled text scores above a real one."""
    values = np.concatenate([real, garbled])
    ranks = np.empty(len(values))
    ranks[values.argsort()] = np.arange(1, len(values) + 1)
    rank_sum = ranks[len(real) :].sum()
    count = len(garbled) * (len(garbled) + 1) / 2
    return (rank_sum - count) / (len(real) * len(garbled))


def text(path, titles, number):
    """Prints how likely and how varied what each chain writes is."""
    from keras_chargen import load_model
    from keras_chargen import samplers as room

    model = load_model(path)
    prompts = [title[:4] for title in titles[:number]]
    # Past where a title would end, where loops begin.
    for name, transforms in (("greedy", []), ("greedy, DRY", [room.DRY()])):
        sampler = room.Sampler("greedy", transforms=transforms)
        texts = model.generate(
            prompts, 200, sampler=sampler, min_new_tokens=199, echo=False
        )
        print(
            f"{name:<28} distinct-3 {distinct(texts, 3):.3f}, distinct-8 "
            f"{distinct(texts, 8):.3f}, repeats {repetition(texts):.1%}"
        )
    listed = (
        ("greedy", room.Sampler("greedy")),
        ("beam search, 4 beams", room.BeamSearch(4)),
        ("random", room.Sampler("random")),
        ("random, temperature 0.7", room.Sampler("random", 0.7)),
        *(
            (name, room.Sampler(name))
            for name in room.CUTS
            if name not in ("greedy", "random")
        ),
    )
    for name, sampler in listed:
        written = model.generate(
            prompts,
            100,
            sampler=sampler,
            seed=1,
            return_scores=True,
            echo=False,
        )
        scores = np.concatenate([one.log_probs for one in written])
        share = distinct([one.text for one in written], 3)
        print(
            f"{name:<28} mean log-probability {scores.mean():.3f}, "
            f"distinct-3 {share:.3f}"
        )
    rng = np.random.default_rng(0)
    pairs = [(title, swapped(title, rng)) for title in titles]
    pairs = [pair for pair in pairs if pair[1] is not None]
    real, garbled = (
        np.array([one.bits_per_character for one in model.score(texts)])
        for texts in zip(*pairs, strict=True)
    )
    print(
        f"two letters swapped: {len(pairs):,} titles, mean bits "
        f"{real.mean():.3f} and {garbled.mean():.3f}, area under the curve "
        f"{area_under_curve(real, garbled):.3f}, the garbled one of a pair "
        f"scores higher in {(garbled > real).mean():.1%}"
    )


def main(arguments=None):
    """Parses the command line and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    timing = commands.add_parser("speed")
    timing.add_argument("--repeats", type=int, default=7)
    writing = commands.add_parser("text")
    writing.add_argument("model")
    writing.add_argument("--corpus", required=True)
    writing.add_argument("--field")
    writing.add_argument("--columns")
    writing.add_argument("--number", type=int, default=200)
    chosen = parser.parse_args(arguments)
    for name, value in describe().items():
        print(f"{name}: {value}")
    if chosen.command == "speed":
        speed(chosen.repeats)
        return
    from keras_chargen import open_corpus

    columns = chosen.columns.split(",") if chosen.columns else None
    titles = open_corpus(chosen.corpus, field=chosen.field, columns=columns)
    text(chosen.model, list(itertools.islice(titles, 4000)), chosen.number)


if __name__ == "__main__":
    main()
