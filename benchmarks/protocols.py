"""How models are judged, ours and others': the data, its parts, what counts.

Figures are sums of nats (negative natural logarithms) and how many characters
they are of; one division comes last.
"""

import math

import numpy as np

from benchmarks.race import ROOT

DATA = ROOT.parent / "shared" / "data"
TITLES = {"train": "ag_news/train.csv.gz", "test": "ag_news/test.csv"}
SHAKESPEARE = "tinyshakespeare.txt"


def read_shakespeare():
    """Returns the text of tinyshakespeare."""
    return _present(SHAKESPEARE).read_bytes().decode()


def split_shakespeare(text):
    """Returns the usual two parts: the first 90 % to train on, and the rest."""
    cut = int(len(text) * 0.9)
    return text[:cut], text[cut:]


def read_titles(part):
    """Returns the AG News titles of `"train"` or `"test"` as a list of str."""
    from keras_chargen.corpora import open_corpus

    columns = ["label", "title", "description"]
    path = str(_present(TITLES[part]))
    return list(open_corpus(path, field="title", columns=columns))


def _present(name):
    path = DATA / name
    if not path.is_file():
        # One line, and no traceback.
        raise SystemExit(f"{path} is missing; this figure is of that file")
    return path


def encode(text, alphabet):
    """Returns ids, int32: places in `alphabet`, its length for all others.

    Args:
        text: Str.
        alphabet: Str, the characters that are known.
    """
    ids = {character: i for i, character in enumerate(alphabet)}
    return np.array([ids.get(c, len(ids)) for c in text], "int32")


def blocks(ids, block=256, count=240, seed=0):
    """Returns blocks at random places, as nanoGPT evaluates and trains.

    All of a block counts, from its second character on and to the one after
    it, and a model reads it without what stands before.

    Args:
        ids: Array `(N,)`, longer than a block.
        block: Integer, the length.
        count: Integer, how many; nanoGPT evaluates 20 batches of 12 on a CPU.
        seed: Integer, or a `np.random.Generator` to draw from.

    Returns:
        Inputs and targets, each `(count, block)`.
    """
    first = np.random.default_rng(seed).integers(len(ids) - block, size=count)
    found = ids[first[:, None] + np.arange(block + 1)]
    return found[:, :-1], found[:, 1:]


def bits(nats, count):
    """Returns bits per character."""
    return nats / count / math.log(2)
