"""The command line: parses, calls the library, prints.

Results go to standard output, all else to standard error. Frameworks are
imported inside the commands, so that `--help` answers at once.
"""

import contextlib
import dataclasses
import enum
import importlib.util
import io
import itertools
import json
import math
import os
import signal
import sys
import time
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
    streams = "streams"


class Preset(enum.StrEnum):
    """Named settings: those of `recipes.RECIPES`."""

    headlines = "headlines"
    shakespeare = "shakespeare"
    fast = "fast"
    best = "best"


class Optimizer(enum.StrEnum):
    """Optimizers of training."""

    adam = "adam"
    muon = "muon"


class Schedule(enum.StrEnum):
    """Schedules of the learning rate."""

    constant = "constant"
    cosine = "cosine"


class Precision(enum.StrEnum):
    """What training computes in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    auto = "auto"


class Cell(enum.StrEnum):
    """Recurrent cells."""

    lstm = "lstm"
    gru = "gru"
    simple = "simple"
    mingru = "mingru"
    minlstm = "minlstm"


class SamplerName(enum.StrEnum):
    """Named samplers."""

    greedy = "greedy"
    random = "random"
    top_k = "top-k"
    top_p = "top-p"
    min_p = "min-p"
    typical = "typical"
    top_n_sigma = "top-n-sigma"
    xtc = "xtc"
    mirostat = "mirostat"
    beam = "beam"


class Oov(enum.StrEnum):
    """What becomes of unknown characters."""

    drop = "drop"
    unk = "unk"
    error = "error"


ModelFile = Annotated[str, typer.Argument(help="A .keras file.")]
CORPUS_HELP = (
    "python-docs, tfds:NAME[:SPLIT], or a .txt, .csv, .tsv or .jsonl file, "
    "also with .gz."
)
CorpusName = Annotated[str, typer.Option(help=CORPUS_HELP)]
Field = Annotated[
    str | None,
    typer.Option(help="Column (name, or number from 1), key or feature."),
]
TemplateOption = Annotated[
    str | None,
    typer.Option(help='Text of several fields: "{label}: {title}".'),
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
    context: typer.Context,
    corpus: Annotated[
        str | None, typer.Option(help=f"{CORPUS_HELP} Required.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="The .keras file to write. Required.")
    ] = None,
    field: Field = None,
    template: TemplateOption = None,
    columns: Columns = None,
    data_dir: DataDir = None,
    preset: Annotated[
        Preset | None,
        typer.Option(
            help="Settings that have proved good, and for how long to train; "
            "any option goes before. Without it a default holds."
        ),
    ] = None,
    mode: Annotated[
        Mode | None,
        typer.Option(
            help="A line is a text, or all is one stream: in windows that "
            "begin anew, or in streams side by side whose state is carried on.",
            show_default="lines",
        ),
    ] = None,
    sequence_length: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Characters of a window, or that a gradient goes through.",
            show_default="256",
        ),
    ] = None,
    cell: Annotated[
        Cell | None, typer.Option(help="Recurrent cell.", show_default="lstm")
    ] = None,
    units: Annotated[
        int | None,
        typer.Option(min=1, help="Width of a layer.", show_default="128"),
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option(min=1, help="Recurrent layers.", show_default="1"),
    ] = None,
    embedding_dim: Annotated[
        int | None, typer.Option(min=1, help="Embed; without it: one-hot.")
    ] = None,
    tie_embeddings: Annotated[
        bool | None,
        typer.Option(
            "--tie-embeddings",
            help="Let the embedding, as wide as a layer, give the logits too.",
        ),
    ] = None,
    residual: Annotated[
        bool | None,
        typer.Option(
            "--residual", help="Layers as residual blocks, normalized."
        ),
    ] = None,
    dropout: Annotated[
        float | None,
        typer.Option(
            min=0, max=0.99, help="Dropped after a layer.", show_default="0"
        ),
    ] = None,
    variational_dropout: Annotated[
        bool | None,
        typer.Option(
            "--variational-dropout/--no-variational-dropout",
            help="Drop the same units of a row at all its steps.",
            show_default="no-variational-dropout",
        ),
    ] = None,
    input_dropout: Annotated[
        float | None,
        typer.Option(
            min=0, max=0.99, help="Characters read as blank.", show_default="0"
        ),
    ] = None,
    weight_dropout: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=0.99,
            help="Dropped of the recurrent weights.",
            show_default="0",
        ),
    ] = None,
    precision: Annotated[
        Precision | None,
        typer.Option(
            help="What training computes in; auto is bfloat16 where that is "
            "faster. The file is float32.",
            show_default="float32",
        ),
    ] = None,
    oov: Annotated[
        Oov, typer.Option(help="What becomes of unknown characters.")
    ] = Oov.drop,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1, help="Passes over the corpus; 1 without a time budget."
        ),
    ] = None,
    time_budget: Annotated[
        str | None,
        typer.Option(
            help="Train for so long: 90s, 20m, 1.5h. The learning rate follows "
            "the clock, the best weights are saved."
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Stop after so many epochs without a better score of the "
            "texts held out, and save the best.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Rows a batch.", show_default="64"),
    ] = None,
    device_count: Annotated[
        int,
        typer.Option(
            "--devices",
            min=1,
            help="Share each batch among so many GPUs, or cores of a CPU, of "
            "this process; JAX and TensorFlow.",
        ),
    ] = 1,
    coordinator: Annotated[
        str | None,
        typer.Option(
            help="Train in several processes of JAX, which all run this "
            "command: HOST:PORT where the first is reached."
        ),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="How many.")] = 1,
    process_id: Annotated[
        int, typer.Option(min=0, help="Which of them this is, from 0.")
    ] = 0,
    optimizer: Annotated[
        Optimizer | None,
        typer.Option(
            help="Muon is for the matrices between hidden states, Adam for "
            "all else then; it wants a higher learning rate.",
            show_default="adam",
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Of the optimizer, at its highest.",
            show_default="0.005",
        ),
    ] = None,
    schedule: Annotated[
        Schedule | None,
        typer.Option(
            help="Of the learning rate, where --epochs say how long.",
            show_default="constant",
        ),
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option(min=0, help="Of the optimizer.", show_default="0"),
    ] = None,
    clip_norm: Annotated[
        float | None,
        typer.Option(
            min=0, help="Longest gradient of all weights.", show_default="1"
        ),
    ] = None,
    ema: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=0.999999,
            help="Save moving averages of the weights, with this momentum.",
        ),
    ] = None,
    label_smoothing: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=0.99,
            help="Share of a target spread over all characters.",
            show_default="0",
        ),
    ] = None,
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
    csv_log: Annotated[
        str | None,
        typer.Option(help="Add the figures of each epoch to this CSV file."),
    ] = None,
    checkpoint_dir: Annotated[
        str | None,
        typer.Option(
            help="Save checkpoints in this folder: a run that is stopped, or "
            "killed, goes on from there by --resume."
        ),
    ] = None,
    checkpoint_every: Annotated[
        str, typer.Option(help="So often: 90s, 5m, 1h; or batches: 100b.")
    ] = "5m",
    resume: Annotated[
        str | None,
        typer.Option(
            help="Go on with the run of this folder of checkpoints, with its "
            "options, and write its OUT anew."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace OUT if it exists.")
    ] = False,
) -> None:
    """Train a model on a corpus and save it."""
    _check_backend(trains=True)
    if resume is not None and context.obj is None:
        context.obj = _resumed(context, resume)
        return train(context, **context.params)
    for name, value in (("corpus", corpus), ("out", out)):
        if value is None:
            raise ValueError(f"Missing option '--{name}'.")
    saved = context.obj
    often = _interval(checkpoint_every)
    recipe = _recipe(context.params)
    texts = _open_corpus(
        corpus, field, columns, recipe.mode, limit, data_dir, template
    )
    for choice in temperature or ():
        if not (math.isfinite(choice) and choice >= 0):
            raise ValueError(
                f"--temperature must be finite and >= 0. Received: {choice}"
            )
    seconds = _seconds("--time-budget", time_budget)
    if seconds is None and epochs is None and recipe.minutes is not None:
        seconds = 60 * recipe.minutes
    several = device_count * processes
    if recipe.batch_size % several:
        raise ValueError(
            "--batch-size must be a multiple of the devices of all processes, "
            f"{several}. Received: {recipe.batch_size}"
        )
    if several > 1 and recipe.mode == Mode.streams:
        raise ValueError("--mode streams is for one device and one process")
    if (coordinator is None) != (processes == 1) or process_id >= processes:
        raise ValueError(
            "--coordinator, --processes above 1 and a --process-id below that "
            "go together"
        )
    if processes > 1 and seconds is not None:
        raise ValueError("--time-budget excludes --processes: clocks differ")
    if processes > 1 and checkpoint_dir is not None:
        raise ValueError("--checkpoint-dir excludes --processes")
    # The first process tells and writes.
    log = _log if process_id == 0 else lambda _: None
    if process_id:
        prompt = csv_log = log_dir = None
    if patience is not None and not held_out:
        raise ValueError("--patience needs texts held out: --held-out above 0")
    if patience is not None and recipe.ema_momentum is not None:
        raise ValueError("--ema excludes --patience: it saves averages")
    if csv_log is not None:
        # A place that cannot be written is told before the corpus is read.
        open(csv_log, "a", encoding="utf-8").close()
    keras = _import_keras()
    import numpy as np

    from keras_chargen import (
        callbacks,
        checkpoints,
        devices,
        pipeline,
        saving,
    )
    from keras_chargen.tokenizer import CharacterCounts, CharTokenizer

    # What the run that goes on has written may be replaced.
    replaces = force or process_id > 0 or saved is not None
    target = saving.check_target(out, replaces)
    if checkpoint_dir is not None:
        checkpoints.check_directory(checkpoint_dir, saved)
    if log_dir is not None:
        callbacks.check_tensorboard()
    if coordinator is not None:
        # What joins them speaks on standard output.
        os.dup2(2, 1)
        devices.join(coordinator, processes, process_id)
    context.with_resource(devices.use_devices(device_count))
    keras.utils.set_random_seed(seed)

    read = CharacterCounts()
    fingerprint = checkpoints.Fingerprint()
    watched = texts if checkpoint_dir is None else fingerprint.watch(texts)
    dataset = pipeline.text_dataset(devices.shard(read.watch(watched)))
    if saved is not None and (
        saved.header["settings"]["texts"] != fingerprint.digest()
    ):
        raise ValueError(
            f"{corpus} holds other texts than when {saved.path} was saved"
        )
    counts = read.by_character()
    if len(counts) < 2:
        raise ValueError(
            f"{corpus} holds {len(counts)} distinct character; a model needs "
            "at least 2"
        )
    tokenizer = CharTokenizer(oov=oov.value)
    tokenizer.adapt_counts(counts)
    training, validation = pipeline.split(dataset, held_out)

    # Each process has its rows of a batch.
    recipe = dataclasses.replace(
        recipe, batch_size=recipe.batch_size // processes
    )

    def batches(part, fits):
        return recipe.make_data(part, tokenizer, texts.joined, fits, seed)

    data = batches(training, True)
    log(
        f"read {read.texts:,} {'pieces' if texts.joined else 'texts'}, "
        f"{read.characters:,} characters, {len(counts)} distinct"
        + (f", {texts.skipped:,} blank left out" if texts.skipped else "")
        + (f", {texts.replaced:,} not UTF-8" if texts.replaced else "")
    )
    has_validation = any(True for _ in validation.take(1))
    has_validation = bool(devices.exchange(np.array([has_validation])).all())
    if patience is not None and not has_validation:
        raise ValueError(
            f"--patience needs texts held out, and of {corpus} none fell into "
            f"--held-out {held_out}: a larger share, or more texts"
        )
    epochs = epochs or (1 if seconds is None else _ENDLESS)
    model = recipe.make_model(tokenizer)
    if seconds is not None:
        # The clock is the schedule.
        recipe = dataclasses.replace(recipe, schedule="constant")
    recipe.compile(model, epochs * int(data.cardinality()))
    log(
        f"{model.cell}, {model.num_layers} x {model.units}, "
        f"{model.count_params():,} parameters, backend "
        f"{keras.backend.backend()}, {model.dtype_policy.compute_dtype}"
    )
    budget = None if seconds is None else callbacks.TimeBudget(seconds)
    bar = callbacks.ProgressBar(budget=budget)
    stop = callbacks.StopOnSignal()
    watching = [callbacks.StopOnNonFinite(), stop]
    if several == 1 and (csv_log is not None or log_dir is not None):
        watching.append(callbacks.RunFigures())
    if not process_id:
        watching.insert(1, bar)
    if budget is not None:
        watching.append(budget)
    if (
        has_validation
        and (patience or seconds is not None)
        and recipe.ema_momentum is None
    ):
        watching.append(
            keras.callbacks.EarlyStopping(
                "val_bits_per_character",
                mode="min",
                patience=patience or sys.maxsize,
                restore_best_weights=True,
            )
        )
    if csv_log is not None:
        watching.append(keras.callbacks.CSVLogger(csv_log, append=True))
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
    checkpoint = None
    if checkpoint_dir is None and processes == 1:
        # The same batches as with checkpoints.
        watching.append(
            keras.callbacks.LambdaCallback(
                on_epoch_begin=lambda epoch, logs: pipeline.seek(data, epoch)
            )
        )
    elif checkpoint_dir is not None:
        checkpoint = checkpoints.Checkpoint(
            checkpoint_dir,
            data,
            watching,
            **often,
            settings={
                "options": context.params,
                "texts": fingerprint.digest(),
            },
            resume=saved,
            write=bar.write,
        )
        watching = checkpoint.callbacks
    begin = time.perf_counter()
    try:
        model.fit(
            data,
            epochs=epochs,
            validation_data=batches(validation, False)
            if has_validation
            else None,
            initial_epoch=checkpoint.initial_epoch if checkpoint else 0,
            callbacks=watching,
            # The dataset shuffles; Keras would warn that it does not.
            shuffle=False,
            verbose=0,
        )
    except FloatingPointError as error:
        left = f"{target} is not written"
        if checkpoint is not None and checkpoint.path is not None:
            left += f", {checkpoint.path} is the last good checkpoint"
        raise ValueError(f"{error}; {left}") from error
    finally:
        bar.stop()
        stop.restore()
    if model.dtype_policy.compute_dtype != "float32":
        # What reads the file may know no better.
        model = model.with_dtype("float32")
    if not process_id:
        saving.save_model(model, target)
    if stop.received is not None:
        what = "interrupted" if stop.received == signal.SIGINT else "terminated"
        log(f"{what}; what was learned is saved as {target}")
        if checkpoint is not None and checkpoint.path is not None:
            log(f"--resume {checkpoint_dir} goes on from {checkpoint.path}")
        raise typer.Exit(128 + stop.received)
    log(f"saved {target} after {time.perf_counter() - begin:.0f} s")
    if checkpoint is not None and checkpoint.failure is not None:
        raise checkpoint.failure


@app.command()
def generate(
    context: typer.Context,
    model_file: ModelFile,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="Text to write on from; repeatable."),
    ] = None,
    prompts_file: Annotated[
        str | None,
        typer.Option(help="File with a prompt a line; - is standard input."),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            help="Write to this .txt, .csv or .jsonl file, and go on with it "
            "where an earlier run stopped."
        ),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=0, help="Characters to write at most.")
    ] = 100,
    min_new_tokens: Annotated[
        int, typer.Option(min=0, help="Characters to write at least.")
    ] = 0,
    sampler: Annotated[
        SamplerName | None,
        typer.Option(
            help="By default the one that an option speaks of, random with "
            "--temperature, else greedy."
        ),
    ] = None,
    temperature: Annotated[
        list[float] | None,
        typer.Option(
            help="Finite, >= 0; 0 is greedy. Repeated: taken in turn, a "
            "character each."
        ),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Draw from the k likeliest.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the likeliest, up to p.")
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(help="Draw from what has this share of the likeliest."),
    ] = None,
    typical_p: Annotated[
        float | None, typer.Option(help="Draw from the typical, up to p.")
    ] = None,
    n_sigma: Annotated[
        float | None,
        typer.Option(help="Draw from logits within n standard deviations."),
    ] = None,
    xtc_probability: Annotated[
        float | None, typer.Option(help="How often to exclude top choices.")
    ] = None,
    xtc_threshold: Annotated[
        float | None, typer.Option(help="What is a top choice.")
    ] = None,
    tau: Annotated[
        float | None, typer.Option(help="Mirostat: bits per character.")
    ] = None,
    eta: Annotated[
        float | None, typer.Option(help="Mirostat: how fast it adapts.")
    ] = None,
    num_beams: Annotated[
        int | None, typer.Option(help="Beam search: beams side by side.")
    ] = None,
    length_penalty: Annotated[
        float | None,
        typer.Option(help="Beam search: above 0 favours long texts."),
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Factor on what was there; 1 is none.")
    ] = None,
    presence_penalty: Annotated[
        float | None, typer.Option(help="Off the logits of what was there.")
    ] = None,
    frequency_penalty: Annotated[
        float | None, typer.Option(help="The same for each time it was there.")
    ] = None,
    dry: Annotated[
        float | None,
        typer.Option(help="Multiplier of the penalty on long repetitions."),
    ] = None,
    no_repeat_ngram: Annotated[
        int | None, typer.Option(help="No n characters come twice.")
    ] = None,
    ban: Annotated[
        str | None, typer.Option(help="Characters not to write.")
    ] = None,
    allow: Annotated[
        str | None, typer.Option(help="Write these characters alone.")
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(help="Regular expression that the new text matches."),
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
    include_stop: Annotated[
        bool, typer.Option("--include-stop", help="Keep the text that ended.")
    ] = False,
    echo: Annotated[
        bool, typer.Option(help="Whether the prompt is printed too.")
    ] = True,
    stream: Annotated[
        bool, typer.Option("--stream", help="Print text as it is written.")
    ] = False,
    as_json: Json = False,
    force: Annotated[
        bool, typer.Option("--force", help="Begin OUT anew.")
    ] = False,
) -> None:
    """Write text with a model."""
    if prompt and prompts_file:
        raise ValueError("--prompt and --prompts-file exclude each other")
    if out is None and force:
        raise ValueError("--force goes with --out")
    if out is not None and (stream or as_json):
        raise ValueError("--out excludes --stream and --json")
    if prompts_file is None:
        prompts = iter(prompt or [""])
    else:
        prompts = _read_prompts(prompts_file, context)
    if stream:
        texts = list(itertools.islice(prompts, 2))
        if as_json or num_samples > 1 or len(texts) > 1:
            raise ValueError(
                "--stream writes one text: it goes with one prompt and "
                "without --json and --num-samples"
            )
        prompts = iter(texts or [""])
    _import_keras()
    chosen, settings = _make_sampler(
        sampler.value if sampler is not None else None,
        temperature,
        {
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "typical_p": typical_p,
            "n_sigma": n_sigma,
            "probability": xtc_probability,
            "threshold": xtc_threshold,
            "tau": tau,
            "eta": eta,
            "num_beams": num_beams,
            "length_penalty": length_penalty,
        },
        {
            "repetition_penalty": repetition_penalty,
            "presence_penalty": presence_penalty,
            "frequency_penalty": frequency_penalty,
            "dry": dry,
            "no_repeat_ngram": no_repeat_ngram,
            "ban": ban,
            "allow": allow,
        },
    )
    controls = {
        "max_new_tokens": max_new_tokens,
        "min_new_tokens": min_new_tokens,
        "stop": stop,
        "include_stop": include_stop,
        "pattern": pattern,
        "echo": echo,
    }
    if out is not None:
        _generate_file(
            model_file,
            prompts,
            prompts_file,
            out,
            force,
            seed,
            num_samples,
            chosen,
            settings,
            controls,
        )
        return
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "big")
    model = _load(model_file)
    prompts = _warn_of_unknown(prompts, model)
    controls |= {"sampler": chosen, "seed": seed}
    if stream:
        pieces = model.stream(next(prompts), **controls)
        try:
            for piece in pieces:
                _write(piece, flush=True)
        finally:
            # Ctrl-C too leaves the cursor below what was written.
            _write("\n", flush=True)
        return
    from keras_chargen import generation

    described = {**settings, **controls, "sampler": settings["sampler"]}
    if as_json:
        given = list(prompts)
        texts = list(
            generation.iter_generate(
                model, given, num_samples=num_samples, **controls
            )
        )
        results = [
            {"prompt": one, "texts": written}
            for one, written in zip(given, texts, strict=True)
        ]
        _print_json({**described, "model": model_file, "results": results})
        return
    for written in generation.iter_generate(
        model, prompts, num_samples=num_samples, **controls
    ):
        for text in written:
            _write(text + "\n")


def _make_sampler(name, temperature, options, transforms):
    """Makes the sampler that the options describe, and says how."""
    from keras_chargen import samplers

    options = {k: v for k, v in options.items() if v is not None}
    given = {k: v for k, v in transforms.items() if v is not None}
    if name is None:
        name = _infer_sampler(temperature, options)
    chain = []
    for key, value in given.items():
        kind = {
            "repetition_penalty": samplers.RepetitionPenalty,
            "presence_penalty": samplers.PresencePenalty,
            "frequency_penalty": samplers.FrequencyPenalty,
            "dry": samplers.DRY,
            "no_repeat_ngram": samplers.NoRepeatNGram,
            "ban": samplers.BanCharacters,
            "allow": samplers.AllowCharacters,
        }[key]
        chain.append(kind(value))
    sampler: samplers.Sampler
    degrees = temperature
    if temperature is not None and len(temperature) == 1:
        degrees = temperature[0]
    if name == "beam":
        if temperature is not None:
            raise ValueError("--temperature goes with a sampler that draws")
        unfit = sorted(set(options) - {"num_beams", "length_penalty"})
        if unfit:
            raise ValueError(
                "--sampler beam takes --num-beams and --length-penalty. "
                f"Received: {', '.join(unfit)}"
            )
        sampler = samplers.BeamSearch(**options, transforms=chain)
    else:
        sampler = samplers.Sampler(
            name,
            1.0 if degrees is None else degrees,
            transforms=chain,
            **options,
        )
    return sampler, {
        "sampler": name,
        "temperature": degrees,
        **options,
        **given,
    }


# Which sampler an option speaks of.
_OF_SAMPLER = {
    "top_k": "top-k",
    "top_p": "top-p",
    "min_p": "min-p",
    "typical_p": "typical",
    "n_sigma": "top-n-sigma",
    "probability": "xtc",
    "threshold": "xtc",
    "tau": "mirostat",
    "eta": "mirostat",
    "num_beams": "beam",
    "length_penalty": "beam",
}


def _infer_sampler(temperature, options):
    names = sorted({_OF_SAMPLER[option] for option in options})
    if len(names) > 1:
        raise ValueError(
            f"the options speak of several samplers: {', '.join(names)}; "
            "accepted are those of one"
        )
    if names:
        return names[0]
    return "greedy" if temperature is None else "random"


def _read_prompts(path, context):
    """Yields the lines of a file, or of standard input, without their ends."""
    stream: io.TextIOWrapper
    if path == "-":
        stream = io.TextIOWrapper(
            sys.stdin.buffer, encoding="utf-8", errors="replace", newline="\n"
        )
    else:
        # Opened at once: a missing file is missed before all work.
        stream = open(  # noqa: SIM115
            path, encoding="utf-8", errors="replace", newline="\n"
        )

    context.call_on_close(stream.close)
    return (line.removesuffix("\n").removesuffix("\r") for line in stream)


def _warn_of_unknown(prompts, model):
    """Passes prompts on; says once that some character is not known."""
    known, silent = set(model.tokenizer.characters), False
    for prompt in prompts:
        unknown = sorted(set(prompt) - known)
        if unknown and not silent and model.tokenizer.oov != "error":
            silent = True
            verb = "skips" if model.tokenizer.oov == "drop" else "reads as "
            verb = verb + ("" if verb == "skips" else "unknown")
            _log(f"the model {verb} characters it never saw: {unknown!r}")
        yield prompt


def _generate_file(
    model_file,
    prompts,
    prompts_file,
    out,
    force,
    seed,
    num_samples,
    sampler,
    described,
    controls,
):
    from rich import progress as bars
    from rich.console import Console

    from keras_chargen import bulk

    stat = os.stat(model_file)
    settings = {
        "model": model_file,
        "model_bytes": stat.st_size,
        "model_time": stat.st_mtime_ns,
        "prompts": prompts_file,
        "num_samples": num_samples,
        **described,
        **controls,
    }
    if seed is None:
        begun = None if force else bulk.read_progress(out)
        seed = begun.settings.get("seed") if begun is not None else None
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "big")
    progress = bulk.check_out(out, {**settings, "seed": seed}, force)
    model = _load(model_file)
    done = progress.prompts
    if done:
        _log(f"goes on after {done:,} prompts")
    total = None
    if prompts_file is not None and prompts_file != "-":
        with open(prompts_file, "rb") as file:
            total = sum(1 for _ in file)
    with bars.Progress(
        *bars.Progress.get_default_columns(),
        bars.MofNCompleteColumn(),
        console=Console(stderr=True),
    ) as bar:
        task = bar.add_task("prompts", total=total, completed=done)
        try:
            for written in bulk.write(
                model,
                _warn_of_unknown(prompts, model),
                out,
                progress,
                num_samples,
                seed,
                sampler=sampler,
                **controls,
            ):
                done = written
                bar.update(task, completed=done)
        except KeyboardInterrupt:
            bar.stop()
            _log(
                f"interrupted after {done:,} prompts; the same command goes on "
                f"with {out}"
            )
            raise typer.Exit(130) from None
    _log(f"wrote the texts of {done:,} prompts to {out}")


@app.command()
def score(
    model_file: ModelFile,
    corpus: CorpusName,
    field: Field = None,
    template: TemplateOption = None,
    columns: Columns = None,
    data_dir: DataDir = None,
    limit: Limit = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Texts read side by side.")
    ] = 64,
    per_character: Annotated[
        bool,
        typer.Option("--per-character", help="Every character by itself."),
    ] = False,
    as_json: Json = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print CSV with a header.")
    ] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Print texts coloured by surprisal.")
    ] = False,
    html: Annotated[
        str | None, typer.Option(help="Write the coloured texts as a page.")
    ] = None,
) -> None:
    """Score each text of a corpus: bits per character, then the text."""
    if as_json + as_csv + show > 1:
        raise ValueError("--json, --csv and --show exclude each other")
    texts = _open_corpus(
        corpus, field, columns, Mode.lines, limit, data_dir, template
    )
    model = _load(model_file)
    from keras_chargen import coloring, scoring
    from keras_chargen.files import replacing

    def scored():
        """Texts with their scores; both are read ahead, a block at a time."""
        ahead, again = itertools.tee(texts)
        scores = scoring.iter_scores(model, ahead, batch_size)
        return zip(again, scores, strict=True)

    with contextlib.ExitStack() as stack:
        page = None
        if html is not None:
            beside = stack.enter_context(replacing(html))
            page = stack.enter_context(
                open(beside, "w", encoding="utf-8", errors="replace")
            )
            page.write(coloring.page_head(f"{corpus} under {model_file}"))
        printer = _score_printer(
            model, model_file, corpus, per_character, as_json, as_csv, show
        )
        printer.send(None)
        for text, one in scored():
            printer.send((text, one))
            if page is not None:
                pairs = scoring.align(model, text, one)
                page.write(coloring.page_text(pairs, one.bits_per_character))
        printer.close()
        if page is not None:
            page.write(coloring.PAGE_END)
    if html is not None:
        _log(f"wrote {html}")


def _score_printer(
    model, model_file, corpus, per_character, as_json, as_csv, show
):
    """Prints each `(text, Score)` that it is sent."""
    from keras_chargen import coloring, scoring

    number, console = 0, None
    if as_json:
        head = json.dumps({"model": model_file, "corpus": corpus})
        _write(head[:-1] + ', "results": [')
    elif as_csv and per_character:
        _write_csv("text", "position", "character", "bits")
    elif as_csv:
        _write_csv("text", *_FIGURES)
    elif show:
        from rich.console import Console

        # Colours were asked for, though the output may be a pipe.
        console = Console(force_terminal=True, highlight=False, soft_wrap=True)
    try:
        while True:
            text, one = yield
            pairs = []
            if per_character or show:
                pairs = scoring.align(model, text, one)
            bits = [
                (c, None if n is None else n / math.log(2)) for c, n in pairs
            ]
            if as_json:
                entry = {"text": text, **_figures(one)}
                if per_character:
                    entry["per_character"] = bits
                _write(("," if number else "") + "\n" + json.dumps(entry))
            elif as_csv and per_character:
                for position, (character, value) in enumerate(bits):
                    _write_csv(number, position, character, value)
            elif as_csv:
                _write_csv(text, *_figures(one).values())
            elif console is not None:
                line = coloring.rich_text(pairs)
                console.print(f"{one.bits_per_character:7.3f}  ", line, sep="")
            elif per_character:
                for character, value in bits:
                    shown = "      -" if value is None else f"{value:7.3f}"
                    _write(f"{shown}  {character!r}\n")
                _write("\n")
            else:
                _write(f"{one.bits_per_character:7.3f}  {text}\n")
            number += 1
    finally:
        if as_json:
            _write("\n]}\n")


_FIGURES = (
    "characters",
    "dropped",
    "nats",
    "nats_per_character",
    "bits_per_character",
    "perplexity",
)


def _figures(score):
    return {name: _finite(getattr(score, name)) for name in _FIGURES}


def _finite(value):
    # JSON has no NaN and no infinity.
    return value if math.isfinite(value) else None


def _write_csv(*values):
    from keras_chargen.files import csv_text

    _write(csv_text([values]))


@app.command()
def evaluate(
    model_file: ModelFile,
    corpus: CorpusName,
    field: Field = None,
    template: TemplateOption = None,
    columns: Columns = None,
    data_dir: DataDir = None,
    mode: ModeOption = Mode.lines,
    limit: Limit = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Texts read side by side.")
    ] = 64,
    block_length: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Score blocks of so many characters too, each read without "
            "what stands before it, as nanoGPT does.",
        ),
    ] = None,
    blocks: Annotated[
        int | None,
        typer.Option(min=1, help="So many blocks at random places, not all."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of these places.")] = 0,
    dynamic: Annotated[
        bool,
        typer.Option(
            "--dynamic",
            help="Score too with a model that learns from what it has read.",
        ),
    ] = False,
    learning_rate: Annotated[
        float | None, typer.Option(min=0, help="Of --dynamic.")
    ] = None,
    decay: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Of --dynamic: back to the trained weights."
        ),
    ] = None,
    segment_length: Annotated[
        int | None,
        typer.Option(min=1, help="Of --dynamic: characters between updates."),
    ] = None,
    training_corpus: Annotated[
        str | None,
        typer.Option(
            help="Of --dynamic: what the model was trained on, to see which "
            "weights move most. It is read as CORPUS is."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Score a corpus: characters, nats and bits per character, perplexity."""
    settings = {
        "learning_rate": learning_rate,
        "decay": decay,
        "segment_length": segment_length,
        "training_texts": training_corpus,
    }
    settings = {k: v for k, v in settings.items() if v is not None}
    if settings and not dynamic:
        name = next(iter(settings)).replace("_texts", "_corpus")
        raise ValueError(f"--{name.replace('_', '-')} goes with --dynamic")
    if dynamic:
        _check_backend(trains=True)
    if blocks is not None and block_length is None:
        raise ValueError("--blocks goes with --block-length")

    def read(name):
        return _open_corpus(
            name, field, columns, mode, limit, data_dir, template
        )

    texts = read(corpus)
    if block_length is not None and not texts.joined:
        raise ValueError(
            f"--block-length needs one stream, and {corpus} is many texts: "
            "--mode windows with a .txt file"
        )
    if training_corpus is not None:
        settings["training_texts"] = read(training_corpus)
    model = _load(model_file)
    from keras_chargen import scoring
    from keras_chargen.dynamic import DynamicEvaluation

    # What may be refused comes first.
    evaluation = DynamicEvaluation(model, **settings) if dynamic else None
    others = {}
    if block_length is not None:
        others["blocks"] = scoring.block_score(
            model, texts, block_length, blocks, seed, batch_size
        )
    if texts.joined:
        total = scoring.stream_score(model, texts)
    else:
        scores = scoring.iter_scores(model, texts, batch_size)
        total = sum(scores, scoring.EMPTY)
    if not total.characters:
        raise ValueError(f"{corpus} holds no character that {model_file} knows")
    if evaluation is not None:
        others["dynamic"] = (
            evaluation.stream_score(texts)
            if texts.joined
            else sum(evaluation.iter_scores(texts), scoring.EMPTY)
        )
    if as_json:
        figures = {"texts": total.texts, **_figures(total)}
        for name, score in others.items():
            figures[name] = {"texts": score.texts, **_figures(score)}
        _print_json({"model": model_file, "corpus": corpus, **figures})
        return
    _write_table(total)
    titles = {
        "blocks": f"in blocks of {block_length}",
        "dynamic": "dynamic evaluation",
    }
    for name, score in others.items():
        _write(f"\n{titles[name]}\n")
        _write_table(score)


def _write_table(score):
    for name in ("texts", *_FIGURES):
        value = getattr(score, name)
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
            "residual": model.residual,
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


_ENDLESS = 1 << 20  # epochs: the time budget ends before
# Options that a run may be resumed with.
_CHANGEABLE = ("checkpoint_every", "device_count")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


def _seconds(option, text):
    """Returns the seconds of a duration such as 90s, 20m, 1.5h, or None."""
    if text is None:
        return None
    number = text.rstrip("smh")
    try:
        seconds = float(number) * _UNITS[text.removeprefix(number)]
    except (KeyError, ValueError):
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(
            f"{option} must be a number above 0 with s, m or h: 90s, 20m, "
            f"1.5h. Received: {text}"
        )
    return seconds


def _interval(text):
    """Returns what 5m or 100b means for `Checkpoint`."""
    batches = text.removesuffix("b")
    if batches == text:
        return {"seconds": _seconds("--checkpoint-every", text)}
    if not (batches.isdecimal() and int(batches)):
        raise ValueError(
            "--checkpoint-every must be a time such as 5m, or batches such as "
            f"100b, above 0. Received: {text}"
        )
    return {"batches": int(batches)}


def _resumed(context, directory):
    """Returns the newest checkpoint of a run; the context gets its options."""
    _import_keras()
    from keras_chargen import checkpoints

    saved = checkpoints.newest(directory)
    stored = saved.header["settings"].get("options")
    if not isinstance(stored, dict) or set(stored) != set(context.params):
        raise ValueError(
            f"{saved.path} is not of a run of this version's train"
        )
    options = {**stored, "checkpoint_dir": directory}
    for name, value in json.loads(json.dumps(context.params)).items():
        source = context.get_parameter_source(name)
        if source.name != "COMMANDLINE" or name in ("resume", "force"):
            continue
        if name in _CHANGEABLE:
            options[name] = value
        elif value != options[name]:
            option = name.replace("_", "-")
            raise ValueError(
                f"--{option} {value} contradicts the run in {directory}, which "
                f"has {options[name]}"
            )
    command = context.command
    words = [
        word
        for parameter in command.params
        for word in _words(parameter, options.get(parameter.name))
    ]
    context.params = command.make_context(context.info_name, words).params
    return saved


def _recipe(params):
    """Returns the `Recipe` of a command: the preset's, and what is given."""
    from keras_chargen.recipes import RECIPES, Recipe

    preset = params["preset"]
    recipe = Recipe() if preset is None else RECIPES[preset]
    names = {"layers": "num_layers", "ema": "ema_momentum"}
    given = {names.get(name, name): value for name, value in params.items()}
    fields = [field.name for field in dataclasses.fields(Recipe)]
    return dataclasses.replace(
        recipe,
        **{
            name: getattr(given[name], "value", given[name])
            for name in fields
            if given.get(name) is not None
        },
    )


def _words(parameter, value):
    """Returns the words of a command line that give an option its value."""
    names = parameter.secondary_opts if value is False else parameter.opts
    if value is None or isinstance(value, bool):
        return [] if value is None else names[:1]
    values = value if isinstance(value, list) else [value]
    return [f"{names[0]}={value}" for value in values]


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
    from keras_chargen.caching import keep_programs

    keep_programs()
    return keras


def _open_corpus(corpus, field, columns, mode, limit, data_dir, template):
    from keras_chargen.corpora import open_corpus

    return open_corpus(
        corpus,
        field=field,
        # A stream is cut up later.
        mode="lines" if mode == Mode.lines else "windows",
        columns=columns.split(",") if columns else None,
        limit=limit,
        data_dir=data_dir,
        template=template,
    )


def _load(path):
    _import_keras()
    from keras_chargen.saving import load_model

    return load_model(path)
