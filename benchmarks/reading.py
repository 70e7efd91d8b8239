"""Characters a second from a file to batches of ids, beside what else reads.

    python -m benchmarks.reading

A row without "later epochs" is the whole way of a program that meets the file
for the first time: reading it, learning its characters, fitting what is to be
fitted and one epoch of batches. The others repeat the epoch alone. Ours is
shuffled, fitted to the lengths and weighted; the peers read in order.
"""

import os
import tempfile
import time
from pathlib import Path

from benchmarks.protocols import DATA, TITLES
from benchmarks.race import Row, race
from benchmarks.report import log, make_parser, publish

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

BATCH_SIZE = 64
LENGTH = 256
PEERS = {
    "TextVectorization": "text_vectorization",
    "unicode_split + StringLookup": "string_lookup",
    "tokenizers": "HuggingFace",
    "legacy Tokenizer": "legacy",
}


def main(arguments=None):
    """Measures and prints."""
    parser = make_parser(__doc__)
    parser.add_argument("--size", type=int, help="characters of the text")
    parser.add_argument("--only", help="the title of one table")
    options = parser.parse_args(arguments)
    repeats = options.repeats or (1 if options.toy else 3)
    size = options.size or (20_000 if options.toy else 20_000_000)
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "docs.txt")
        write_text(text, size)
        tables = {"file to batches": lines_rows(text)}
        if not options.toy:
            titles = Path(folder, "titles.csv")
            if write_titles(titles):
                tables["file to batches, AG News titles"] = lines_rows(
                    titles, column=1
                )
            tables["file to batches, windows"] = windows_rows(text)
            tables["text to ids, one core"] = ids_rows(text)
        if options.only:
            tables = {options.only: tables[options.only]}
        for title, rows in tables.items():
            log(title)
            found = race(rows, repeats, log, apart=not options.toy)
            for result in found.values():
                result["unit"] = "characters/s"
            tables[title] = found
    settings = {
        "batch_size": BATCH_SIZE,
        "sequence_length": LENGTH,
        "characters": size,
        "repeats": repeats,
    }
    return publish("reading", settings, tables, options.json)


def write_text(path, size):
    """Writes the lines of CPython's language reference until size is full."""
    from keras_chargen.corpora import open_corpus

    lines = "".join(f"{line}\n" for line in open_corpus("python-docs"))
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        if size < len(lines):
            file.write(lines[: lines.rindex("\n", 0, size) + 1])
        else:
            for _ in range(round(size / len(lines))):
                file.write(lines)


def write_titles(path):
    """Writes AG News to the size of the full set, or tells that it cannot."""
    import gzip

    source = DATA / TITLES["train"]
    if not source.exists():
        log("no AG News beside the checkout: its table is left out")
        return False
    # 11,352 rows; the full set has 120,000.
    path.write_bytes(gzip.decompress(source.read_bytes()) * 10)
    return True


def lines_rows(path, column=None):
    """Rows of a table in which a row of a batch is a text."""
    where = {"path": str(path), "column": column}
    rows = []
    for label, function in {"ours": None, **PEERS}.items():
        target = "reading:ours" if function is None else "reading:peer"
        arguments = where if function is None else {**where, "name": function}
        for later in (False, True):
            rows.append(
                Row(
                    label + ", later epochs" * later,
                    target,
                    {**arguments, "later": later},
                )
            )
    return rows


def windows_rows(path):
    """Rows of a table in which a row of a batch is a window of the stream."""
    rows = []
    for label, target in (
        ("ours", "our_windows"),
        ("unicode_split + StringLookup", "tutorial"),
    ):
        for later in (False, True):
            rows.append(
                Row(
                    label + ", later epochs" * later,
                    f"reading:{target}",
                    {"path": str(path), "later": later},
                )
            )
    return rows


def ids_rows(path):
    """Rows of a table without files and batches: text to ids alone."""
    labels = {
        "ours, in the graph": "graph",
        "ours, on the host": "host",
        "TextVectorization": "text_vectorization",
        "unicode_split + StringLookup": "string_lookup",
        "tokenizers": "tokenizers",
        "legacy Tokenizer": "legacy",
    }
    return [
        Row(label, "reading:text_to_ids", {"path": str(path), "name": name})
        for label, name in labels.items()
    ]


def _measure(begin, later, count):
    """Returns what measures the whole way, or an epoch of what it leads to.

    Args:
        begin: Function that returns batches, beginning with the file.
        later: Whether the epoch alone is timed.
        count: Function of batches that reads them, and returns how many
            characters they have together.
    """
    batches = begin()
    characters = count(batches)

    def run():
        start = time.perf_counter()
        for _ in batches if later else begin():
            pass
        return characters / (time.perf_counter() - start)

    return run


def _in_batches(batches, eos_id):
    # Incomplete batches are left out, and `<eos>` is no character.
    return sum(
        int(((targets > 0) & (targets != eos_id)).sum())
        for _, targets, _ in batches.as_numpy_iterator()
    )


def _known(characters):
    def count(batches):
        for _ in batches:
            pass
        return characters

    return count


def _open(path, column, **options):
    from keras_chargen.corpora import open_corpus

    field = None if column is None else column + 1
    return open_corpus(path, field=field, **options)


def ours(path, column, later):
    """Measures `lines`."""
    from keras_chargen import pipeline
    from keras_chargen.tokenizer import CharacterCounts, CharTokenizer

    tokenizer = CharTokenizer()

    def begin():
        # As `keras-chargen train` does, in one pass through the file.
        counts = CharacterCounts()
        texts = pipeline.text_dataset(counts.watch(_open(path, column)))
        tokenizer.adapt_counts(counts.by_character())
        return pipeline.lines(texts, tokenizer, BATCH_SIZE)

    return _measure(
        begin, later, lambda batches: _in_batches(batches, tokenizer.eos_id)
    )


def our_windows(path, later):
    """Measures `windows`."""
    from keras_chargen import pipeline
    from keras_chargen.tokenizer import CharacterCounts, CharTokenizer

    tokenizer = CharTokenizer()

    def begin():
        corpus = _open(path, None, mode="windows")
        counts = CharacterCounts()
        texts = pipeline.text_dataset(counts.watch(corpus))
        tokenizer.adapt_counts(counts.by_character())
        return pipeline.windows(
            texts,
            tokenizer,
            BATCH_SIZE,
            sequence_length=LENGTH,
            joined=corpus.joined,
        )

    return _measure(
        begin, later, lambda batches: _in_batches(batches, tokenizer.eos_id)
    )


def peer(path, column, name, later):
    """Measures one of `benchmarks.peers.readers`."""
    from benchmarks.peers import readers

    characters = sum(map(len, _open(path, column)))
    function = getattr(readers, name)
    return _measure(
        lambda: function(path, column, BATCH_SIZE), later, _known(characters)
    )


def tutorial(path, later):
    """Measures the windows of TensorFlow's tutorial."""
    from benchmarks.peers import readers

    characters = os.path.getsize(path)
    return _measure(
        lambda: readers.tutorial_windows(path, LENGTH, BATCH_SIZE),
        later,
        _known(characters),
    )


def text_to_ids(path, name, seconds=1, block=1024):
    """Measures characters a second of processor time, on texts in memory."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import keras
    import tensorflow as tf

    from benchmarks.peers import notebook, readers
    from keras_chargen import CharTokenizer, graph_text

    texts = list(_open(path, None, limit=20_000))
    characters = sum(map(len, texts))
    blocks = [texts[i : i + block] for i in range(0, len(texts), block)]
    ours = CharTokenizer()
    ours.adapt(texts)
    in_graph = {
        "graph": lambda texts: graph_text.ragged_ids(texts, ours).flat_values
    }
    on_host = {"host": ours.tokenize}
    if name == "text_vectorization":
        layer = keras.layers.TextVectorization(
            standardize=None, split="character"
        )
        layer.adapt(texts)
        in_graph[name] = layer
    elif name == "string_lookup":
        lookup = keras.layers.StringLookup(vocabulary=list(ours.characters))
        in_graph[name] = lambda texts: (
            lookup(tf.strings.unicode_split(texts, "UTF-8")).flat_values
        )
    elif name == "tokenizers":
        tokenizer = readers.character_tokenizer(texts)
        tokenizer.no_padding()
        on_host[name] = lambda texts: [
            row.ids for row in tokenizer.encode_batch_fast(texts)
        ]
    elif name == "legacy":
        on_host[name] = notebook.LegacyTokenizer(texts).texts_to_sequences
    if name in in_graph:
        function = tf.function(in_graph[name])
        blocks = [
            tf.constant([text.encode() for text in block]) for block in blocks
        ]
        function = function.get_concrete_function(
            tf.TensorSpec([None], tf.string)
        )
    else:
        function = on_host[name]

    def run():
        rounds, begin = 0, time.process_time()
        while time.process_time() < begin + seconds:
            for block in blocks:
                function(block)
            rounds += 1
        return rounds * characters / (time.process_time() - begin)

    run()
    return run


if __name__ == "__main__":
    main()
