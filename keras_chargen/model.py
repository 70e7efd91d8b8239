"""The recurrent language model."""

import keras
from keras import ops

from keras_chargen import generation, scoring
from keras_chargen.checks import check_choice, check_integer, check_number
from keras_chargen.compilation import trains_with_xla
from keras_chargen.devices import add_up_gradients_first
from keras_chargen.recurrent import CELLS
from keras_chargen.tokenizer import CharTokenizer


@keras.saving.register_keras_serializable(package="keras_chargen")
class CharRNN(keras.Model):
    """Character-level recurrent language model (Graves, 2013).

    Characters enter one-hot (or embedded), pass one or more recurrent layers,
    and a dense layer gives the logits of the next character at every step.
    Padding is on the right and the model is causal, so no mask is used and
    the fused GPU kernels stay open to it.

    Args:
        tokenizer: Adapted `CharTokenizer`; saved with the model.
        cell: `"lstm"`, `"gru"` or `"simple"`.
        units: Positive integer, width of each recurrent layer.
        num_layers: Positive integer, recurrent layers in a stack.
        embedding_dim: Positive integer, width of a trained embedding; None is
            one-hot input.
        dropout: Number in [0, 1), share of values dropped after each
            recurrent layer in training (Zaremba et al., 2014).
        start: Whether `<eos>`, the boundary between texts, is the first
            input of a text. With False the first character is only an input:
            it is neither scored nor can it be written.
        **kwargs: `name`, `dtype` and the like.

    Call arguments:
        ids: Integer tensor `(B, T)`, padded with 0 on the right.

    Returns:
        Logits `(B, T, V)`, natural log scale, not normalized, float32.

    Example:
    >>> tokenizer = CharTokenizer()
    >>> tokenizer.adapt(["Today is a day"])
    >>> model = CharRNN(tokenizer, units=128)
    >>> model.compile()
    >>> model.generate("Today ", max_new_tokens=20, seed=1)
    """

    def __init__(
        self,
        tokenizer,
        cell="lstm",
        units=128,
        num_layers=1,
        embedding_dim=None,
        dropout=0.0,
        start=True,
        **kwargs,
    ):
        if not isinstance(tokenizer, CharTokenizer):
            raise ValueError(
                "`tokenizer` must be a CharTokenizer. Received: "
                f"{type(tokenizer).__name__}"
            )
        size = tokenizer.vocabulary_size()
        check_choice("cell", cell, tuple(CELLS))
        units = check_integer("units", units, 1)
        num_layers = check_integer("num_layers", num_layers, 1)
        if embedding_dim is not None:
            embedding_dim = check_integer("embedding_dim", embedding_dim, 1)
        dropout = check_number("dropout", dropout, 0, 1)
        if dropout == 1:
            raise ValueError("`dropout` must be below 1. Received: 1")
        dtype = kwargs.pop("dtype", None)

        embed = None
        if embedding_dim is not None:
            embed = keras.layers.Embedding(
                size, embedding_dim, dtype=dtype, name="embedding"
            )
        recurrent = [
            CELLS[cell](
                units,
                # The first layer reads one-hot vectors, and makes none.
                one_hot_size=None if embed or i else size,
                dtype=dtype,
                name=f"{cell}_{i + 1}",
            )
            for i in range(num_layers)
        ]
        drops = [
            keras.layers.Dropout(dropout, dtype=dtype, name=f"dropout_{i + 1}")
            for i in range(num_layers if dropout else 0)
        ]
        project = keras.layers.Dense(size, dtype=dtype, name="logits")
        # float32 whatever the policy: a softmax in half precision loses bits.
        widen = keras.layers.Activation(
            "linear", dtype="float32", name="float32"
        )

        ids = keras.Input((None,), dtype="int32", name="ids")  # (B, T)
        x = embed(ids) if embed else ids  # (B, T) or (B, T, embedding_dim)
        for i, layer in enumerate(recurrent):
            x = layer(x)[0]  # (B, T, units)
            x = drops[i](x) if drops else x
        logits = project(x)  # (B, T, V)
        if logits.dtype != "float32":
            logits = widen(logits)
        super().__init__(inputs=ids, outputs=logits, **kwargs)
        # Keras scales the loss where this says float16.
        self.dtype_policy = recurrent[0].dtype_policy

        self.tokenizer = tokenizer
        self.cell = cell
        self.units = units
        self.num_layers = num_layers
        self.embedding_dim = embedding_dim
        self.dropout = dropout
        self.start = bool(start)
        self._embed = embed
        self._recurrent = recurrent
        self._project = project

    def compile(
        self,
        optimizer="auto",
        loss="auto",
        weighted_metrics="auto",
        jit_compile="auto",
        **kwargs,
    ):
        """Configures training; every `"auto"` can be replaced alone.

        Args:
            optimizer: `"auto"` is Adam at 5e-3 with gradients clipped to a
                global norm of 1.
            loss: `"auto"` is crossentropy from logits in nats, the mean over
                the characters that count (those with a weight).
            weighted_metrics: `"auto"` is `[BitsPerCharacter()]`.
            jit_compile: `"auto"` is True under JAX and False elsewhere, or
                where `run_eagerly` is set.
            **kwargs: As for `keras.Model.compile`.
        """
        if optimizer == "auto":
            optimizer = keras.optimizers.Adam(5e-3, global_clipnorm=1.0)
        if loss == "auto":
            loss = scoring.Crossentropy()
        if weighted_metrics == "auto":
            weighted_metrics = [scoring.BitsPerCharacter()]
        if jit_compile == "auto":
            jit_compile = trains_with_xla() and not kwargs.get("run_eagerly")
        super().compile(
            optimizer=optimizer,
            loss=loss,
            weighted_metrics=weighted_metrics,
            jit_compile=jit_compile,
            **kwargs,
        )
        add_up_gradients_first(self.optimizer)

    def compile_from_config(self, config):
        """Compiles as the model was when it was saved."""
        config = keras.saving.deserialize_keras_object(config)
        # What suited the backend that trained may not suit this one.
        self.compile(**{**config, "jit_compile": "auto"})
        self.optimizer.build(self.trainable_variables)

    def initial_state(self, batch_size):
        """Returns the state before the first character.

        Args:
            batch_size: Positive integer B.

        Returns:
            A tuple, for each recurrent layer a tuple of zeros `(B, units)`:
            two for an LSTM (output and cell state), one for the others.
        """
        # The layers' compute dtype: theirs is what a step gives back.
        dtype = self._recurrent[0].compute_dtype
        count = 2 if self.cell == "lstm" else 1
        return tuple(
            tuple(
                ops.zeros((batch_size, self.units), dtype) for _ in range(count)
            )
            for _ in self._recurrent
        )

    def step(self, ids, state):
        """Reads one character a row.

        Args:
            ids: int32 `(B,)`.
            state: As `initial_state` gives it.

        Returns:
            Logits float32 `(B, V)` of the next character, and the new state.
        """
        x = self._embed(ids) if self._embed else ids
        following = []
        for layer, states in zip(self._recurrent, state, strict=True):
            x, states = layer.step(x, states)
            following.append(tuple(states))
        return ops.cast(self._project(x), "float32"), tuple(following)

    def call_with_state(self, ids, state):
        """Reads `(B, T)` characters on from a state, without dropout.

        Args:
            ids: int32 `(B, T)`.
            state: As `initial_state` gives it.

        Returns:
            Logits float32 `(B, T, V)`, and the state after the last column,
            padding included.
        """
        x = self._embed(ids) if self._embed else ids
        following = []
        for layer, states in zip(self._recurrent, state, strict=True):
            x, *states = layer(x, initial_state=list(states), training=False)
            following.append(tuple(states))
        return ops.cast(self._project(x), "float32"), tuple(following)

    def generate(self, prompts, max_new_tokens=100, **kwargs):
        """Writes on from prompts: see `keras_chargen.generation.generate`."""
        return generation.generate(self, prompts, max_new_tokens, **kwargs)

    def stream(self, prompts, max_new_tokens=100, **kwargs):
        """Yields text as it is written: see `generation.stream`."""
        return generation.stream(self, prompts, max_new_tokens, **kwargs)

    def score(self, texts, **kwargs):
        """Scores texts: see `keras_chargen.scoring.score`."""
        return scoring.score(self, texts, **kwargs)

    def get_config(self):
        return {
            "name": self.name,
            "trainable": self.trainable,
            "dtype": keras.saving.serialize_keras_object(
                self._recurrent[0].dtype_policy
            ),
            "tokenizer": keras.saving.serialize_keras_object(self.tokenizer),
            "cell": self.cell,
            "units": self.units,
            "num_layers": self.num_layers,
            "embedding_dim": self.embedding_dim,
            "dropout": self.dropout,
            "start": self.start,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        for name in ("tokenizer", "dtype"):
            config[name] = keras.saving.deserialize_keras_object(config[name])
        return cls(**config)
