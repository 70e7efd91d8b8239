"""Files of prompts into files of texts: in constant memory, resumable."""

import itertools
import json
import os
from pathlib import Path
from typing import NamedTuple

from keras_chargen import generation
from keras_chargen.checks import check_choice
from keras_chargen.files import csv_text, replacing

SUFFIXES = (".txt", ".csv", ".jsonl")
COLUMNS = ("prompt", "seed", "sample", "text", "log_prob")
PROMPTS_AT_ONCE = 1024  # written between two marks of how far it got


class Progress(NamedTuple):
    """How far a file is.

    Attributes:
        settings: Dict of what the texts depend on.
        prompts: Number of prompts whose texts are in the file.
        bytes: Size of the file with them.
    """

    settings: dict
    prompts: int
    bytes: int


def progress_path(out):
    """Returns where the progress of a file stands until it is complete."""
    return Path(f"{out}.progress")


def read_progress(out):
    """Returns the `Progress` of an incomplete file, else None.

    Raises:
        ValueError: There is a file of progress that says nothing.
    """
    path = progress_path(out)
    try:
        return Progress(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is no progress of ours; --force begins anew"
        ) from error


def check_out(out, settings, force=False):
    """Says how far `out` is before any slow work.

    Args:
        out: Path that ends in `.txt`, `.csv` or `.jsonl`.
        settings: Dict, as for `write`.
        force: Whether to begin anew whatever is there.

    Returns:
        A `Progress`; of no prompts where `out` is new.

    Raises:
        ValueError: Another suffix; no folder to write to; `out` exists and is
            complete, or was begun with other settings.
    """
    check_choice("--out's ending", Path(out).suffix.lower(), SUFFIXES)
    folder = Path(out).absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"{out} cannot be written: no folder to write to")
    progress = None if force else read_progress(out)
    if progress is None:
        if Path(out).exists() and not force:
            raise ValueError(f"{out} exists; --force replaces it")
        return Progress(settings, 0, 0)
    for name, value in settings.items():
        if progress.settings.get(name) != value:
            raise ValueError(
                f"{out} was begun with {name}="
                f"{progress.settings.get(name)!r}, not {value!r}; the same "
                "settings go on with it, --force begins anew"
            )
    if not Path(out).exists() or os.path.getsize(out) < progress.bytes:
        raise ValueError(f"{out} is not what was begun; --force begins anew")
    return progress


def write(model, prompts, out, progress, num_samples, seed, **settings):
    """Writes the texts of all prompts to a file.

    Args:
        model: As for `generation.generate`.
        prompts: Iterable of str, from the first one on.
        out: Path; the suffix says the format.
        progress: `Progress` from `check_out`: prompts to skip.
        num_samples: Positive integer, texts for each prompt.
        seed: Non-negative integer; the texts are those of one `generate`
            with it over all prompts.
        **settings: As for `generation.iter_generate`.

    Yields:
        The number of prompts in the file, after each batch. Closed early,
        the file stays resumable; at the end its progress is removed.
    """
    out, done = Path(out), progress.prompts
    prompts = iter(prompts)
    skipped = sum(1 for _ in itertools.islice(prompts, done))
    if skipped < done:
        raise ValueError(
            f"{out} holds the texts of {done:,} prompts, and there are only "
            f"{skipped:,}; --force begins anew"
        )
    with open(out, "r+b" if done else "wb") as file:
        file.truncate(progress.bytes)
        file.seek(progress.bytes)
        if not done and out.suffix.lower() == ".csv":
            file.write(csv_text([COLUMNS]).encode())
        mark(out, Progress(progress.settings, done, file.tell()))
        while part := list(itertools.islice(prompts, PROMPTS_AT_ONCE)):
            rows = generation.iter_generate(
                model,
                part,
                seed=seed,
                num_samples=num_samples,
                return_scores=True,
                first_row=done * num_samples,
                **settings,
            )
            for prompt, texts in zip(part, rows, strict=True):
                file.write(_record(out, prompt, seed, texts))
            file.flush()
            os.fsync(file.fileno())
            done += len(part)
            mark(out, Progress(progress.settings, done, file.tell()))
            yield done
    progress_path(out).unlink()


def mark(out, progress):
    """Writes the progress of a file, whole or not at all."""
    with replacing(progress_path(out)) as beside:
        beside.write_text(json.dumps(progress._asdict()), encoding="utf-8")


def _record(out, prompt, seed, texts):
    rows = [
        (prompt, seed, sample, one.text, round(float(one.log_probs.sum()), 4))
        for sample, one in enumerate(texts)
    ]
    suffix = out.suffix.lower()
    if suffix == ".csv":
        return csv_text(rows).encode("utf-8", "replace")
    if suffix == ".jsonl":
        lines = (
            json.dumps(dict(zip(COLUMNS, row, strict=True))) for row in rows
        )
        return "".join(line + "\n" for line in lines).encode()
    # One line a text, whatever the text holds.
    lines = (_one_line(one.text) + "\n" for one in texts)
    return "".join(lines).encode("utf-8", "replace")


def _one_line(text):
    escapes = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}
    return "".join(escapes.get(character, character) for character in text)
