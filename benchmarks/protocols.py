"""How models are judged, ours and others': the data, its parts, what counts.

Figures are sums of nats (negative natural logarithms) and how many characters
they are of; one division comes last.
"""

import csv
import gzip
import math
from pathlib import Path

import numpy as np

DATA = Path(__file__).parents[2] / "shared" / "data"


def read_shakespeare():
    """Returns the text of tinyshakespeare."""
    return _present("tinyshakespeare.txt").read_bytes().decode()


def split_shakespeare(text):
    """Returns the usual two parts: the first 90 % to train on, and the rest."""
    cut = int(len(text) * 0.9)
    return text[:cut], text[cut:]


def read_titles(part):
    """Returns the AG News titles of `"train"` or `"test"` as a list of str."""
    name = {"train": "train.csv.gz", "test": "test.csv"}[part]
    path = _present(f"ag_news/{name}")
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", newline="") as file:
        return [title for _, title, _ in csv.reader(file)]


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
