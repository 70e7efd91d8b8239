"""Named settings of training, and what a run makes of settings.

The figure that each recipe reached, and the command that shows it, are in
`benchmarks/README.md`.
"""

import dataclasses

from keras_chargen.checks import (
    check_choice,
    check_integer,
    check_number,
    check_positive,
    check_share,
)

# The command line reads the tables before it imports any framework.

MODES = ("lines", "windows", "streams")
OPTIMIZERS = ("adam", "muon")
SCHEDULES = ("constant", "cosine")
PRECISIONS = ("float32", "bfloat16", "auto")

# Where a schedule begins and ends, as a share of the learning rate.
FLOOR = 0.02

# What Muon is not for: matrices with a row or a column for each character, that
# of a first layer and the logits', and biases (a GRU's has two rows).
_NOT_FOR_MUON = [r"^(\w+_1/(\w+/)?|logits/)kernel$", r"\bbias$"]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings of a run of training; the defaults are a small LSTM.

    Attributes:
        mode: `"lines"`, `"windows"` or `"streams"`: the function of
            `pipeline` that makes the batches.
        sequence_length: Positive integer, characters of a row of windows or
            streams.
        batch_size: Positive integer, rows of a batch.
        cell: As for `CharRNN`, and so on to `weight_dropout`.
        optimizer: `"adam"` (Kingma & Ba, 2015), or `"muon"` (Jordan et al.,
            2024; Liu et al., 2025) for the matrices between hidden states and
            Adam for all else: a step costs more and learns more.
        learning_rate: Number >= 0, of the optimizer, at its highest.
        schedule: `"constant"`, or `"cosine"`: up in a straight line for the
            first share `warm_up` of all steps, then down along half a cosine
            (Loshchilov & Hutter, 2017). A `TimeBudget` is its own schedule.
        warm_up: Number in [0, 1).
        beta_2: Number in [0, 1), of Adam: how long it remembers the squares
            of gradients.
        weight_decay: Number >= 0; above 0 Adam is AdamW (Loshchilov & Hutter,
            2019).
        clip_norm: Positive number: longer gradients of all weights together
            are cut to this norm.
        ema_momentum: Number in [0, 1) or None: training ends with the
            exponential moving averages of the weights.
        label_smoothing: Number in [0, 1), share of each target that is spread
            evenly over all characters (Szegedy et al., 2016).
        precision: `"float32"`, `"bfloat16"` (weights stay float32), or
            `"auto"`: bfloat16 where that trains faster on this machine.
        minutes: Number, the time that the settings are for, or None.
    """

    mode: str = "lines"
    sequence_length: int = 256
    batch_size: int = 64
    cell: str = "lstm"
    units: int = 128
    num_layers: int = 1
    embedding_dim: int | None = None
    tie_embeddings: bool = False
    residual: bool = False
    dropout: float = 0.0
    variational_dropout: bool = False
    input_dropout: float = 0.0
    weight_dropout: float = 0.0
    optimizer: str = "adam"
    learning_rate: float = 5e-3
    schedule: str = "constant"
    warm_up: float = 0.02
    beta_2: float = 0.999
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema_momentum: float | None = None
    label_smoothing: float = 0.0
    precision: str = "float32"
    minutes: float | None = None

    def __post_init__(self):
        check_choice("mode", self.mode, MODES)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("precision", self.precision, PRECISIONS)
        check_integer("sequence_length", self.sequence_length, 1)
        check_integer("batch_size", self.batch_size, 1)
        for name in ("warm_up", "beta_2", "label_smoothing"):
            check_share(name, getattr(self, name))
        for name in ("learning_rate", "weight_decay"):
            check_number(name, getattr(self, name), 0)
        check_positive("clip_norm", self.clip_norm)
        if self.ema_momentum is not None:
            check_share("ema_momentum", self.ema_momentum)
        if self.minutes is not None:
            check_positive("minutes", self.minutes)

    def make_data(self, texts, tokenizer, joined=False, training=True, seed=0):
        """Makes batches: see `pipeline.lines`, `windows` and `streams`.

        What is not trained on has no streams: pieces of one text are read in
        windows, texts in lines.

        Args:
            texts: As for `text_dataset`.
            tokenizer: Adapted `CharTokenizer`.
            joined: Whether the texts are pieces of one.
            training: Whether they are to train on.
            seed: Non-negative integer.

        Returns:
            `tf.data.Dataset` of inputs, targets and weights, `(B, T)` each.
        """
        from keras_chargen import pipeline

        settings = {"batch_size": self.batch_size, "seed": seed}
        cut = {"sequence_length": self.sequence_length, "joined": joined}
        mode = self.mode
        if mode == "streams" and training:
            return pipeline.streams(texts, tokenizer, **settings, **cut)
        settings["training"] = training
        if mode == "windows" or (mode == "streams" and joined):
            return pipeline.windows(texts, tokenizer, **settings, **cut)
        return pipeline.lines(texts, tokenizer, **settings)

    def make_model(self, tokenizer):
        """Makes a `CharRNN`, for streams one that carries its state."""
        from keras_chargen.compilation import gains_by_bfloat16
        from keras_chargen.model import CharRNN

        bfloat16 = self.precision == "bfloat16" or (
            self.precision == "auto" and gains_by_bfloat16()
        )
        model = CharRNN(
            tokenizer,
            cell=self.cell,
            units=self.units,
            num_layers=self.num_layers,
            embedding_dim=self.embedding_dim,
            tie_embeddings=self.tie_embeddings,
            residual=self.residual,
            dropout=self.dropout,
            variational_dropout=self.variational_dropout,
            input_dropout=self.input_dropout,
            weight_dropout=self.weight_dropout,
            dtype="mixed_bfloat16" if bfloat16 else "float32",
        )
        if self.mode == "streams":
            model.carry_state(self.batch_size)
        return model

    def compile(self, model, steps=None):
        """Compiles a model, with bits per character and how many those are of.

        Args:
            model: `CharRNN`.
            steps: Positive integer, batches of the whole run, for a schedule
                that is not constant.
        """
        import keras

        from keras_chargen import optimizers, scoring

        rate = self.learning_rate
        if self.schedule == "cosine":
            if steps is None:
                raise ValueError("a cosine schedule needs the number of steps")
            steps = check_integer("steps", steps, 1)
            warm_up = int(steps * self.warm_up)
            rate = keras.optimizers.schedules.CosineDecay(
                rate * FLOOR if warm_up else rate,
                max(steps - warm_up, 1),
                alpha=FLOOR,
                warmup_target=rate if warm_up else None,
                warmup_steps=warm_up,
            )
        decay = self.weight_decay or None
        settings: dict[str, object] = {
            "learning_rate": rate,
            "global_clipnorm": self.clip_norm,
            "weight_decay": decay,
        }
        if self.ema_momentum is not None:
            settings |= {"use_ema": True, "ema_momentum": self.ema_momentum}
        if self.optimizer == "muon":
            kind = optimizers.Muon
            settings |= {
                "adam_beta_2": self.beta_2,
                "adam_weight_decay": decay,
                "exclude_layers": _NOT_FOR_MUON,
            }
        else:
            kind = keras.optimizers.AdamW if decay else keras.optimizers.Adam
            settings["beta_2"] = self.beta_2
        model.compile(
            optimizer=kind(**settings),
            loss=scoring.Crossentropy(label_smoothing=self.label_smoothing),
            weighted_metrics=[
                scoring.BitsPerCharacter(),
                scoring.CharacterCount(),
            ],
        )


_STREAMS = Recipe(
    mode="streams",
    sequence_length=128,
    batch_size=32,
    units=512,
    variational_dropout=True,
    learning_rate=6e-3,
    schedule="cosine",
    beta_2=0.99,
    precision="auto",
)

# What each differs in from `_STREAMS`: one text of a million characters.
RECIPES = {
    "fast": dataclasses.replace(
        _STREAMS,
        sequence_length=64,
        batch_size=8,
        cell="gru",
        units=128,
        learning_rate=0.02,
        minutes=0.15,
    ),
    "shakespeare": dataclasses.replace(
        _STREAMS, dropout=0.3, weight_dropout=0.2, minutes=10
    ),
    "best": dataclasses.replace(
        _STREAMS,
        batch_size=16,
        units=448,
        dropout=0.5,
        weight_dropout=0.1,
        label_smoothing=0.02,
        optimizer="muon",
        learning_rate=0.016,
        precision="float32",
        minutes=45,
    ),
    # Many short texts.
    "headlines": dataclasses.replace(
        _STREAMS,
        sequence_length=64,
        batch_size=16,
        dropout=0.4,
        weight_dropout=0.3,
        learning_rate=5e-3,
        minutes=30,
    ),
}
