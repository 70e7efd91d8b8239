"""The recurrent language model."""

import functools
from typing import Any

import keras
from keras import ops

from keras_chargen import devices, dynamic, generation, scoring
from keras_chargen.carrying import CarriedState
from keras_chargen.checks import check_choice, check_integer, check_share
from keras_chargen.compilation import trains_with_xla
from keras_chargen.recurrent import CELLS
from keras_chargen.tokenizer import PADDING_ID, CharTokenizer


@keras.saving.register_keras_serializable(package="keras_chargen")
class CharRNN(keras.Model):
    """Character-level recurrent language model (Graves, 2013).

    Characters enter one-hot (or embedded), pass one or more recurrent layers,
    and a dense layer gives the logits of the next character at every step.
    Padding is on the right and the model is causal, so no mask is used and
    the fused GPU kernels stay open to it.

    Args:
        tokenizer: Adapted `CharTokenizer`; saved with the model.
        cell: `"lstm"`, `"gru"` or `"simple"`; or `"mingru"` or `"minlstm"`,
            whose gates see the input alone (Feng et al., 2024): a layer costs
            less and does less.
        units: Positive integer, width of each recurrent layer.
        num_layers: Positive integer, recurrent layers in a stack.
        embedding_dim: Positive integer, width of a trained embedding; None is
            one-hot input.
        tie_embeddings: Whether the embedding, transposed, gives the logits
            too (Press & Wolf, 2017); `embedding_dim` must equal `units`.
        dropout: Number in [0, 1), share of values dropped after each
            recurrent layer in training (Zaremba et al., 2014).
        variational_dropout: Whether a batch drops the same units of a row at
            all its steps (Gal & Ghahramani, 2016).
        input_dropout: Number in [0, 1), share of the characters read in
            training that are blanked: read as padding, their targets stay
            (Xie et al., 2017, "Data Noising as Smoothing").
        weight_dropout: Number in [0, 1), share of each recurrent kernel that
            a batch of training does without (Merity et al., 2018).
        residual: Whether what a layer gives is added to what it reads, which
            it reads normalized (He et al., 2016; Zhang & Sennrich, 2019): for
            depth. The first layer gives alone; the sum is normalized once
            more before the logits.
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
        tie_embeddings=False,
        dropout=0.0,
        variational_dropout=False,
        input_dropout=0.0,
        weight_dropout=0.0,
        start=True,
        residual=False,
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
        dropout = check_share("dropout", dropout)
        input_dropout = check_share("input_dropout", input_dropout)
        weight_dropout = check_share("weight_dropout", weight_dropout)
        if tie_embeddings and embedding_dim != units:
            raise ValueError(
                "`tie_embeddings` wants `embedding_dim` equal to `units`, "
                f"{units}. Received: {embedding_dim}"
            )
        on_weights = (
            {"weight_dropout": weight_dropout} if weight_dropout else {}
        )
        if on_weights and not issubclass(CELLS[cell], keras.layers.RNN):
            raise ValueError(
                "`weight_dropout` must be 0 for a cell without a recurrent "
                f"kernel, {cell!r}. Received: {weight_dropout}"
            )
        dtype = kwargs.pop("dtype", None)

        embed: Any = None
        blank = None
        if embedding_dim is not None:
            embedding = (
                keras.layers.ReversibleEmbedding
                if tie_embeddings
                else keras.layers.Embedding
            )
            embed = embedding(
                size, embedding_dim, dtype=dtype, name="embedding"
            )
        if input_dropout:
            blank = _Blank(input_dropout, name="blank")
        recurrent = [
            CELLS[cell](
                units,
                # The first layer reads one-hot vectors, and makes none.
                one_hot_size=None if embed or i else size,
                dtype=dtype,
                name=f"{cell}_{i + 1}",
                **on_weights,
            )
            for i in range(num_layers)
        ]
        drop = (
            keras.layers.SpatialDropout1D
            if variational_dropout
            else keras.layers.Dropout
        )
        drops = [
            drop(dropout, dtype=dtype, name=f"dropout_{i + 1}")
            for i in range(num_layers if dropout else 0)
        ]
        # One before each layer but the first, and one before the logits.
        norms = [
            keras.layers.RMSNormalization(dtype=dtype, name=f"norm_{i + 1}")
            for i in range(num_layers if residual else 0)
        ]
        if tie_embeddings:
            project = functools.partial(embed, reverse=True)
        else:
            project = keras.layers.Dense(size, dtype=dtype, name="logits")
        # float32 whatever the policy: a softmax in half precision loses bits.
        widen = keras.layers.Activation(
            "linear", dtype="float32", name="float32"
        )

        def read(ids, state=None, training=None):
            x = blank(ids, training=training) if blank else ids
            x = embed(x) if embed else x  # (B, T) or (B, T, embedding_dim)
            following = []

            def read_layer(i, x):
                x, *states = recurrent[i](
                    x,
                    initial_state=state and list(state[i]),
                    training=training,
                )
                following.append(tuple(states))
                return drops[i](x, training=training) if drops else x

            x = _stack(x, num_layers, norms, read_layer)
            logits = project(x)  # (B, T, V)
            if logits.dtype != "float32":
                logits = widen(logits)
            return logits, tuple(following)

        ids = keras.Input((None,), dtype="int32", name="ids")  # (B, T)
        super().__init__(inputs=ids, outputs=read(ids)[0], **kwargs)
        # Keras scales the loss where this says float16.
        self.dtype_policy = recurrent[0].dtype_policy

        self.tokenizer = tokenizer
        self.cell = cell
        self.units = units
        self.num_layers = num_layers
        self.embedding_dim = embedding_dim
        self.tie_embeddings = bool(tie_embeddings)
        self.dropout = dropout
        self.variational_dropout = bool(variational_dropout)
        self.input_dropout = input_dropout
        self.weight_dropout = weight_dropout
        self.start = bool(start)
        self.residual = bool(residual)
        self._embed = embed
        self._recurrent = recurrent
        self._norms = norms
        self._project = project
        self._read = read
        self._carried = CarriedState(name="carried")

    def carry_state(self, batch_size):
        """Makes training go on from where each row of the last batch stopped.

        This is truncated backpropagation through time (Williams & Peng,
        1990) over as many streams as a batch has rows; `pipeline.streams`
        makes such batches. A row whose first id is `~id`, below 0, begins
        with zeros. What is not training begins with zeros always.

        Args:
            batch_size: Positive integer, rows of every batch to come; None
                ends it.

        Raises:
            ValueError: Several devices share the batches.
        """
        if batch_size is not None:
            batch_size = check_integer("batch_size", batch_size, 1)
            devices.refuse_several("a state carried from batch to batch")
        state = () if batch_size is None else self.initial_state(batch_size)
        self._carried.resize(batch_size, state)
        # A compiled step of training has the old one in it.
        self.train_function = None

    def call(self, inputs, training=None, mask=None):
        # The mark of a start is no character.
        ids = ops.maximum(inputs, -1 - inputs)
        if not training or self._carried.batch_size is None:
            return super().call(ids, training=training, mask=mask)
        logits, state = self._read(ids, self._carried.read(inputs), training)
        self._carried.write(state)
        return logits

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
        devices.add_up_gradients_first(self.optimizer)

    def get_compile_config(self):
        # Torch's own optimizers are in a room that other backends lack; they
        # have the public names of Keras's.
        return _public(super().get_compile_config())

    def compile_from_config(self, config):
        """Compiles as the model was when it was saved."""
        config = keras.saving.deserialize_keras_object(config)
        # What suited the backend that trained may not suit this one.
        self.compile(**{**config, "jit_compile": "auto"})
        self.optimizer.build(self.trainable_variables)

    def with_dtype(self, dtype):
        """Returns a copy that computes in another precision, trained as far.

        Args:
            dtype: As for every Keras layer: `"float32"`, `"mixed_bfloat16"`.

        Returns:
            `CharRNN` with the weights and the carried state of this one, and
            where it is compiled the optimizer with its own.
        """
        model = self.from_config({**self.get_config(), "dtype": dtype})
        model.carry_state(self._carried.batch_size)
        model.set_weights(self.get_weights())
        if self.compiled:
            model.compile_from_config(self.get_compile_config())
            optimizers: list[Any] = [self.optimizer, model.optimizer]
            old, new = (getattr(x, "inner_optimizer", x) for x in optimizers)
            for value, variable in zip(
                old.variables, new.variables, strict=True
            ):
                # A copy: JAX gives what it trains with away.
                variable.assign(ops.convert_to_numpy(value))
        return model

    def initial_state(self, batch_size):
        """Returns the state before the first character.

        Args:
            batch_size: Positive integer B.

        Returns:
            A tuple, for each recurrent layer a tuple of zeros `(B, units)`:
            two for an LSTM (output and cell state), one for the others; in
            the dtype of the layer, of the minimal ones in float32.
        """
        return tuple(
            tuple(layer.get_initial_state(batch_size))
            for layer in self._recurrent
        )

    def step(self, ids, state):
        """Reads one character a row.

        Args:
            ids: int32 `(B,)`.
            state: As `initial_state` gives it.

        Returns:
            Logits float32 `(B, V)` of the next character, and the new state.
        """
        following = []

        def read(i, x):
            x, states = self._recurrent[i].step(x, state[i])
            following.append(tuple(states))
            return x

        x = self._embed(ids) if self._embed else ids
        x = _stack(x, self.num_layers, self._norms, read)
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
        return self._read(ids, state, training=False)

    def generate(self, prompts, max_new_tokens=100, **kwargs):
        """Writes on from prompts: see `keras_chargen.generation.generate`."""
        return generation.generate(self, prompts, max_new_tokens, **kwargs)

    def stream(self, prompts, max_new_tokens=100, **kwargs):
        """Yields text as it is written: see `generation.stream`."""
        return generation.stream(self, prompts, max_new_tokens, **kwargs)

    def score(self, texts, dynamic_evaluation=False, **kwargs):
        """Scores texts: see `keras_chargen.scoring.score`.

        With `dynamic_evaluation` the model learns from each as it reads on,
        which is another measure: see `keras_chargen.DynamicEvaluation`.
        """
        room = dynamic if dynamic_evaluation else scoring
        return room.score(self, texts, **kwargs)

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
            "tie_embeddings": self.tie_embeddings,
            "dropout": self.dropout,
            "variational_dropout": self.variational_dropout,
            "input_dropout": self.input_dropout,
            "weight_dropout": self.weight_dropout,
            "start": self.start,
            "residual": self.residual,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        for name in ("tokenizer", "dtype"):
            config[name] = keras.saving.deserialize_keras_object(config[name])
        return cls(**config)


def _stack(x, num_layers, norms, read):
    """Passes x through the layers: `read(i, x)` is what layer i gives.

    With `norms` the layers after the first are residual blocks.
    """
    x = read(0, x)
    for i in range(1, num_layers):
        x = x + read(i, norms[i - 1](x)) if norms else read(i, x)
    return norms[-1](x) if norms else x


class _Blank(keras.layers.Layer):
    """Reads a share of the ids as padding while a model trains."""

    def __init__(self, rate, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate
        self.seed_generator = keras.random.SeedGenerator()

    def call(self, ids, training=False):
        if not training:
            return ids
        drawn = keras.random.uniform(ops.shape(ids), seed=self.seed_generator)
        return ops.where(drawn < self.rate, PADDING_ID, ids)

    def compute_output_spec(self, ids, training=False):
        return keras.KerasTensor(ids.shape, ids.dtype)


def _public(config):
    """Names optimizers as Keras does, whichever backend made them."""
    if isinstance(config, list):
        return [_public(value) for value in config]
    if not isinstance(config, dict):
        return config
    config = {name: _public(value) for name, value in config.items()}
    module = config.get("module")
    if isinstance(module, str) and module.startswith("keras.src.backend."):
        config |= {"module": "keras.optimizers", "registered_name": None}
    return config
