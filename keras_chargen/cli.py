"""The command line: parses, calls the library, prints.

Results go to standard output, all else to standard error. Frameworks are
imported inside the commands, so that `--help` answers at once.
"""

import contextlib
import enum
import importlib.util
import json
import math
import os
import sys
import time
from collections import Counter
from typing import Annotated

import typer

app = typer.Typer(
    name="keras-chargen",
    help="Train a character-level language model and write text with it.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
prepare = typer.Typer(
    help="Build a dataset from local files.", no_args_is_help=True
)
app.add_typer(prepare, name="prepare")

BACKENDS = ("tensorflow", "jax", "torch", "numpy", "openvino")
TRAINING_BACKENDS = BACKENDS[:3]


class Mode(enum.StrEnum):
    """How texts become rows."""

    lines = "lines"
    windows = "windows"


class Cell(enum.StrEnum):
    """Recurrent cells."""

    lstm = "lstm"
    gru = "gru"
    simple = "simple"


class SamplerName(enum.StrEnum):
    """Named samplers."""

    greedy = "greedy"
    random = "random"


class Oov(enum.StrEnum):
    """What becomes of unknown characters."""

    drop = "drop"
    unk = "unk"
    error = "error"


ModelFile = Annotated[str, typer.Argument(help="A .keras file.")]
CorpusName = Annotated[
    str,
    typer.Option(
        help="python-docs, tfds:NAME[:SPLIT], or a .txt, .csv, .tsv or "
        ".jsonl file, also with .gz.",
    ),
]
Field = Annotated[
    str | None,
    typer.Option(help="Column (name, or number from 1), key or feature."),
]
Columns = Annotated[
    str | None,
    typer.Option(help="Names of the columns of a file without a header, a,b."),
]
DataDir = Annotated[str | None, typer.Option(help="Where TFDS keeps its data.")]
Limit = Annotated[
    int | None, typer.Option(min=1, help="Read so many texts at most.")
]
ModeOption = Annotated[
    Mode,
    typer.Option(help="A line is a text, or all is one stream in windows."),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object, nothing else.")
]


@app.command()
def train(
    corpus: CorpusName,
    out: Annotated[str, typer.Option(help="The .keras file to write.")],
    field: Field = None,
    columns: Columns = None,
    data_dir: DataDir = None,
    mode: ModeOption = Mode.lines,
    sequence_length: Annotated[
        int, typer.Option(min=1, help="Characters in a window.")
    ] = 256,
    cell: Annotated[Cell, typer.Option(help="Recurrent cell.")] = Cell.lstm,
    units: Annotated[int, typer.Option(min=1, help="Width of a layer.")] = 128,
    layers: Annotated[int, typer.Option(min=1, help="Recurrent layers.")] = 1,
    embedding_dim: Annotated[
        int | None, typer.Option(min=1, help="Embed; without it: one-hot.")
    ] = None,
    dropout: Annotated[
        float, typer.Option(min=0, max=0.99, help="Dropped after a layer.")
    ] = 0.0,
    oov: Annotated[
        Oov, typer.Option(help="What becomes of unknown characters.")
    ] = Oov.drop,
    epochs: Annotated[
        int, typer.Option(min=1, help="Passes over the corpus.")
    ] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a batch.")] = 64,
    learning_rate: Annotated[
        float, typer.Option(min=0, help="Of Adam, at the start.")
    ] = 5e-3,
    held_out: Annotated[
        float,
        typer.Option(min=0, max=0.9, help="Share of the texts kept to score."),
    ] = 0.05,
    limit: Limit = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything.")] = 0,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="Show what the model writes from it; repeatable."),
    ] = None,
    temperature: Annotated[
        list[float] | None,
        typer.Option(help="Of the samples shown; repeatable. 0 is greedy."),
    ] = None,
    sample_every: Annotated[
        int | None,
        typer.Option(min=1, help="Show samples after so many batches."),
    ] = None,
    sample_file: Annotated[
        str | None, typer.Option(help="Add the samples to this file too.")
    ] = None,
    log_dir: Annotated[
        str | None, typer.Option(help="Write TensorBoard logs here.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace OUT if it exists.")
    ] = False,
) -> None:
    """Train a model on a corpus and save it."""
    _check_backend(trains=True)
    texts = _open_corpus(corpus, field, columns, mode, limit, data_dir)
    for choice in temperature or ():
        if not (math.isfinite(choice) and choice >= 0):
            raise ValueError(
                f"--temperature must be finite and >= 0. Received: {choice}"
            )
    keras = _import_keras()
    from keras_chargen import callbacks, pipeline, saving, scoring
    from keras_chargen.model import CharRNN
    from keras_chargen.tokenizer import CharTokenizer

    target = saving.check_target(out, force)
    if log_dir is not None:
        callbacks.check_tensorboard()
    keras.utils.set_random_seed(seed)

    counts: Counter[str] = Counter()
    read: Counter[str] = Counter()

    def counted():
        for text in texts:
            counts.update(text)
            read["texts"] += 1
            yield text

    dataset = pipeline.text_dataset(counted())
    characters = counts.total()
    if len(counts) < 2:
        raise ValueError(
            f"{corpus} holds {len(counts)} distinct character; a model needs "
            "at least 2"
        )
    tokenizer = CharTokenizer(oov=oov.value)
    tokenizer.adapt_counts(counts)
    training, validation = pipeline.split(dataset, held_out)

    def batches(part, fits):
        arguments = {"training": fits, "seed": seed}
        if mode is Mode.windows:
            return pipeline.windows(
                part,
                tokenizer,
                batch_size,
                sequence_length=sequence_length,
                joined=texts.joined,
                **arguments,
            )
        return pipeline.lines(part, tokenizer, batch_size, **arguments)

    data = batches(training, True)
    _log(
        f"read {read['texts']:,} {'pieces' if texts.joined else 'texts'}, "
        f"{characters:,} characters, {len(counts)} distinct"
        + (f", {texts.skipped:,} blank left out" if texts.skipped else "")
        + (f", {texts.replaced:,} not UTF-8" if texts.replaced else "")
    )
    has_validation = any(True for _ in validation.take(1))
    model = CharRNN(
        tokenizer,
        cell=cell.value,
        units=units,
        num_layers=layers,
        embedding_dim=embedding_dim,
        dropout=dropout,
    )
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate, global_clipnorm=1.0),
        weighted_metrics=[
            scoring.BitsPerCharacter(),
            scoring.CharacterCount(),
        ],
    )
    _log(
        f"{cell.value}, {layers} x {units}, {model.count_params():,} "
        f"parameters, backend {keras.backend.backend()}"
    )
    bar, stop = callbacks.ProgressBar(), callbacks.StopOnInterrupt()
    watching = [bar, stop]
    if prompt:
        sampling = callbacks.SampleText(
            prompt,
            temperature or [0],
            every=sample_every or "epoch",
            seed=seed,
            file=sample_file,
            log_dir=log_dir,
            write=bar.write,
        )
        watching.insert(0, sampling)
    if log_dir is not None:
        watching.append(keras.callbacks.TensorBoard(log_dir))
    begin = time.perf_counter()
    try:
        model.fit(
            data,
            epochs=epochs,
            validation_data=batches(validation, False)
            if has_validation
            else None,
            callbacks=watching,
            # The dataset shuffles; Keras would warn that it does not.
            shuffle=False,
            verbose=0,
        )
    finally:
        bar.stop()
        stop.restore()
    saving.save_model(model, target)
    if stop.interrupted:
        _log(f"interrupted; what was learned is saved as {target}")
        raise typer.Exit(130)
    _log(f"saved {target} after {time.perf_counter() - begin:.0f} s")


@app.command()
def generate(
    model_file: ModelFile,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="Text to write on from; repeatable."),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=0, help="Characters to write at most.")
    ] = 100,
    sampler: Annotated[
        SamplerName | None,
        typer.Option(help="By default random with --temperature, else greedy."),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Finite, >= 0; 0 is greedy.")
    ] = None,
    num_samples: Annotated[
        int, typer.Option(min=1, help="Texts for each prompt.")
    ] = 1,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Without it: a fresh one.")
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="Text that ends the writing; repeatable."),
    ] = None,
    echo: Annotated[
        bool, typer.Option(help="Whether the prompt is printed too.")
    ] = True,
    stream: Annotated[
        bool, typer.Option("--stream", help="Print text as it is written.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write text with a model."""
    prompts = prompt or [""]
    if sampler is None:
        sampler = (
            SamplerName.greedy if temperature is None else SamplerName.random
        )
    if stream and (as_json or num_samples > 1 or len(prompts) > 1):
        raise ValueError(
            "--stream writes one text: it goes with one --prompt and without "
            "--json and --num-samples"
        )
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "big")
    model = _load(model_file)
    settings = {
        "max_new_tokens": max_new_tokens,
        "sampler": sampler.value,
        "temperature": temperature,
        "seed": seed,
        "stop": stop,
        "echo": echo,
    }
    unknown = sorted(set("".join(prompts)) - set(model.tokenizer.characters))
    if unknown and model.tokenizer.oov != "error":
        verb = "skips" if model.tokenizer.oov == "drop" else "reads as unknown"
        _log(f"the model {verb} characters it never saw: {unknown!r}")
    if stream:
        for piece in model.stream(prompts[0], **settings):
            _write(piece, flush=True)
        _write("\n")
        return
    texts = model.generate(prompts, num_samples=num_samples, **settings)
    if num_samples == 1:
        texts = [[text] for text in texts]
    if as_json:
        results = [
            {"prompt": prompt, "texts": written}
            for prompt, written in zip(prompts, texts, strict=True)
        ]
        _print_json({**settings, "model": model_file, "results": results})
        return
    for written in texts:
        for text in written:
            _write(text + "\n")


@app.command()
def evaluate(
    model_file: ModelFile,
    corpus: CorpusName,
    field: Field = None,
    columns: Columns = None,
    data_dir: DataDir = None,
    mode: ModeOption = Mode.lines,
    limit: Limit = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Texts read side by side.")
    ] = 64,
    as_json: Json = False,
) -> None:
    """Score a corpus: characters, nats and bits per character, perplexity."""
    texts = _open_corpus(corpus, field, columns, mode, limit, data_dir)
    model = _load(model_file)
    from keras_chargen import scoring

    if texts.joined:
        total = scoring.stream_score(model, texts)
    else:
        scores = scoring.iter_scores(model, texts, batch_size)
        total = sum(scores, scoring.EMPTY)
    if not total.characters:
        raise ValueError(f"{corpus} holds no character that {model_file} knows")
    figures = {
        "texts": total.texts,
        "characters": total.characters,
        "dropped": total.dropped,
        "nats": total.nats,
        "nats_per_character": total.nats_per_character,
        "bits_per_character": total.bits_per_character,
        "perplexity": total.perplexity,
    }
    if as_json:
        _print_json({"model": model_file, "corpus": corpus, **figures})
        return
    for name, value in figures.items():
        shown = f"{value:,}" if isinstance(value, int) else f"{value:,.4f}"
        _write(f"{name.replace('_', ' '):<20}{shown:>18}\n")


@app.command()
def info(
    model_file: Annotated[
        str | None, typer.Argument(help="A .keras file; optional.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the active backend, and what a model file holds."""
    keras = _import_keras()
    from keras_chargen.version import __version__

    figures = {
        "keras_chargen": __version__,
        "keras": keras.__version__,
        "backend": keras.backend.backend(),
    }
    if model_file is not None:
        model = _load(model_file)
        figures |= {
            "model": model_file,
            "cell": model.cell,
            "units": model.units,
            "layers": model.num_layers,
            "embedding_dim": model.embedding_dim,
            "dropout": model.dropout,
            "start": model.start,
            "parameters": model.count_params(),
            "oov": model.tokenizer.oov,
            "vocabulary_size": model.tokenizer.vocabulary_size(),
            "characters": "".join(model.tokenizer.characters),
        }
    if as_json:
        _print_json(figures)
        return
    for name, value in figures.items():
        shown = repr(value) if name == "characters" else value
        _write(f"{name.replace('_', ' '):<18}{shown}\n")


@prepare.command("ag-news")
def prepare_ag_news(
    source: Annotated[
        str,
        typer.Option(
            "--from",
            help="The archive, a folder, or train.csv with test.csv beside it.",
        ),
    ],
    data_dir: DataDir = None,
    overwrite: Annotated[
        bool, typer.Option("--force", help="Replace a prepared dataset.")
    ] = False,
) -> None:
    """Build the TFDS dataset ag_news_subset from a local copy of AG News."""
    from keras_chargen import corpora

    built = corpora.prepare_ag_news(source, data_dir, overwrite=overwrite)
    counts = ", ".join(
        f"{number:,} {split}" for split, number in built.examples.items()
    )
    _log(f"prepared {counts}")
    _write(f"{built.directory}\n")


def main(arguments=None) -> None:
    """Runs the command line and exits.

    Exit codes: 0; 2 for what the user can mend, in one line on standard
    error; 130 on interrupt. Anything else is our own fault: Python's
    traceback and exit code 1.
    """
    try:
        code = app(arguments, standalone_mode=False)
        sys.stdout.flush()
    except KeyboardInterrupt:
        _log("interrupted")
        code = 130
    except (_ReaderGoneError, BrokenPipeError):
        # The reader has gone (`| head`): no message, and none at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        code = _fail(error)
    except ValueError as error:
        if not _is_ours(error):
            raise
        code = _fail(error)
    except Exception as error:
        # Typer's own errors (a wrong option) know how to say it in a line.
        if not hasattr(error, "format_message"):
            raise
        code = _fail(error.format_message())
    sys.exit(code or 0)


class _ReaderGoneError(Exception):
    """Nobody reads standard output any more."""


def _is_ours(error):
    # What we raise names what the user gave; what a framework raises on the
    # way is a fault of ours, and wants its traceback.
    frame = error.__traceback__
    while frame.tb_next is not None:
        frame = frame.tb_next
    return frame.tb_frame.f_globals["__name__"].startswith("keras_chargen.")


def _fail(message):
    _log("error: " + " ".join(str(message).split()))
    return 2


def _log(message):
    print(message, file=sys.stderr, flush=True)


def _write(text, flush=False):
    # A lone surrogate has no UTF-8; a terminal may have no UTF-8 at all.
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
        if flush:
            sys.stdout.flush()
    except BrokenPipeError as error:
        # Typer would end on this one with exit code 1.
        raise _ReaderGoneError from error


def _print_json(value):
    _write(json.dumps(value) + "\n")


def _check_backend(trains=False):
    backend = os.environ.get("KERAS_BACKEND")
    if not backend:
        return
    accepted = TRAINING_BACKENDS if trains else BACKENDS
    if backend not in accepted:
        what = "train under" if trains and backend in BACKENDS else "be"
        raise ValueError(
            f"KERAS_BACKEND must {what} one of {', '.join(accepted)}. "
            f"Received: {backend}"
        )
    module = backend if backend != "numpy" else "keras"
    if importlib.util.find_spec(module) is None:
        raise ValueError(
            f"KERAS_BACKEND={backend}, but {backend} is not installed: "
            f"pip install 'keras-chargen[{backend}]'"
        )


def _import_keras():
    _check_backend()
    # Logs of the frameworks about missing GPUs tell a user nothing.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Keras tells its backend on standard error, some frameworks on output.
    with contextlib.redirect_stdout(sys.stderr):
        import keras
    return keras


def _open_corpus(corpus, field, columns, mode, limit, data_dir):
    from keras_chargen.corpora import open_corpus

    return open_corpus(
        corpus,
        field=field,
        mode=mode.value,
        columns=columns.split(",") if columns else None,
        limit=limit,
        data_dir=data_dir,
    )


def _load(path):
    _import_keras()
    from keras_chargen.saving import load_model

    return load_model(path)
