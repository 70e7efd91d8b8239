"""Characters a second under the active backend: reading, training, writing.

    KERAS_BACKEND=jax python -m benchmarks.throughput

Every figure is the median of several runs after a warm-up; the spread beside
it is the largest minus the smallest, as a share of the median.
"""

import argparse
import json
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

UNITS = 128
BATCH_SIZE = 64


def main(arguments=None):
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument(
        "--toy", action="store_true", help="seconds, to see that it runs"
    )
    options = parser.parse_args(arguments)

    from benchmarks.environment import describe
    from keras_chargen.corpora import open_corpus

    limit = 300 if options.toy else None
    texts = list(open_corpus("python-docs", limit=limit))
    repeats = 2 if options.toy else 5
    lengths = (20, 80) if options.toy else (1000, 4000)
    figures = {
        **ids_per_second(texts, repeats),
        **batches_per_second(texts, repeats),
        **training(texts, repeats),
        **writing(texts, repeats, lengths),
    }
    if options.json:
        print(json.dumps({**describe(), "figures": figures}))
        return
    for name, value in describe().items():
        print(f"{name:<10}{value}")
    print()
    for name, (median, spread) in figures.items():
        shown = f"{median:,.2f}" if median < 10 else f"{median:,.0f}"
        print(f"{name:<48}{shown:>14}  ± {spread:.0%}")


def ids_per_second(texts, repeats):
    """Text to ids as the pipeline does it, per second of one core."""
    import tensorflow as tf

    from keras_chargen.graph_text import ragged_ids

    tokenizer = _tokenizer(texts)
    block = tf.constant([text.encode() for text in texts])
    characters = sum(map(len, texts))
    rounds = max(1, 20_000_000 // characters)

    @tf.function
    def read(texts):
        return tf.size(ragged_ids(texts, tokenizer).flat_values)

    def run():
        begin = time.process_time()
        for _ in range(rounds):
            read(block)
        return rounds * characters / (time.process_time() - begin)

    return {"text to ids, characters/s and core": _median(run, repeats)}


def batches_per_second(texts, repeats):
    """Text to batches on all cores."""
    from keras_chargen.pipeline import lines

    dataset = lines(texts, _tokenizer(texts), BATCH_SIZE)
    characters = sum(
        int(weights.sum()) for *_, weights in dataset.as_numpy_iterator()
    )

    def run():
        begin = time.perf_counter()
        for _ in dataset:
            pass
        return characters / (time.perf_counter() - begin)

    return {"text to batches, characters/s": _median(run, repeats)}


def training(texts, repeats):
    """Characters that count, without padding, in training."""
    import keras

    from keras_chargen.pipeline import lines

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.begin = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            rates.append(characters / (time.perf_counter() - self.begin))

    rates = []
    model = _model(texts)
    dataset = lines(texts, model.tokenizer, BATCH_SIZE)
    characters = sum(
        int(weights.sum()) for *_, weights in dataset.as_numpy_iterator()
    )
    model.fit(
        dataset,
        epochs=repeats + 1,
        callbacks=[Clock()],
        shuffle=False,
        verbose=0,
    )
    name = f"training, LSTM {UNITS}, batch {BATCH_SIZE}, characters/s"
    return {name: _summary(rates[1:])}


def writing(texts, repeats, lengths):
    """Characters written, and what the length does to their cost."""
    model = _model(texts)
    # No text ends by itself, so all are as long as they may be.
    kernel, bias = model.get_layer("logits").get_weights()
    bias[model.tokenizer.eos_id] = -1e9
    model.get_layer("logits").set_weights([kernel, bias])

    def rate(batch, length):
        begin = time.perf_counter()
        written = model.generate([""] * batch, length, sampler="random", seed=0)
        assert all(len(text) == length for text in written)
        return batch * length / (time.perf_counter() - begin)

    figures = {}
    for batch in (1, BATCH_SIZE):
        figures[f"writing, batch {batch}, characters/s"] = _median(
            lambda batch=batch: rate(batch, lengths[0]), repeats
        )
    short, long = lengths

    def cost():
        return rate(1, short) / rate(1, long)

    name = f"cost of a character, {long} against {short} long"
    figures[name] = _median(cost, repeats)
    return figures


def _tokenizer(texts):
    from keras_chargen import CharTokenizer

    tokenizer = CharTokenizer()
    tokenizer.adapt(texts)
    return tokenizer


def _model(texts):
    from keras_chargen import CharRNN

    model = CharRNN(_tokenizer(texts), units=UNITS)
    model.compile()
    return model


def _median(run, repeats):
    run()
    return _summary([run() for _ in range(repeats)])


def _summary(values):
    median = statistics.median(values)
    return median, (max(values) - min(values)) / median


if __name__ == "__main__":
    main()
