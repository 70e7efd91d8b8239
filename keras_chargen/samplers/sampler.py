"""What turns logits and one uniform number into an id."""

import copy
import inspect
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_chargen.checks import check_choice, check_integer, check_number
from keras_chargen.samplers.base import LogitTransform
from keras_chargen.samplers.cuts import (
    XTC,
    MinP,
    TopK,
    TopNSigma,
    TopP,
    Typical,
)
from keras_chargen.samplers.mirostat import Mirostat
from keras_chargen.samplers.penalties import recent_size
from keras_chargen.samplers.temperatures import Temperature, TemperatureCycle

# What each name cuts with, after the temperature.
CUTS = {
    "greedy": None,
    "random": None,
    "top-k": TopK,
    "top-p": TopP,
    "min-p": MinP,
    "typical": Typical,
    "top-n-sigma": TopNSigma,
    "xtc": XTC,
    "mirostat": Mirostat,
}
_WIDE = 512  # ids above which a triangle of ones costs more than a sum


@keras.saving.register_keras_serializable(package="keras_chargen")
class Sampler:
    """A chain of logit transforms and a choice.

    The order is stated once, here: the transforms as listed (penalties,
    biases, bans), then temperature, then the cut that the name stands for, as
    Hugging Face has it; llama.cpp applies temperature last. Whoever wants
    another order lists all of it in `transforms` of `"random"`.

    Args:
        name: `"greedy"` takes the likeliest id, of equals the lowest;
            `"random"` draws from the distribution; `"top-k"`, `"top-p"`,
            `"min-p"`, `"typical"`, `"top-n-sigma"`, `"xtc"` and `"mirostat"`
            draw from what the transform of that name leaves.
        temperature: Finite number >= 0, 0 is greedy; or a list of numbers
            > 0, of which each character takes the next.
        transforms: Further `LogitTransform`s, applied before temperature.
        **options: Arguments of the transform that `name` stands for, such as
            `top_p=0.9` for `"top-p"`.

    Raises:
        ValueError: An unknown name or option, or a number out of range.

    Example:
    >>> Sampler("top-p", temperature=0.8, top_p=0.9, transforms=[DRY()])
    """

    def __init__(
        self, name="random", temperature=1.0, transforms=(), **options
    ):
        self.name = check_choice("sampler", name, tuple(CUTS))
        if isinstance(temperature, list | tuple):
            self.temperature = TemperatureCycle(temperature).temperatures
        else:
            self.temperature = check_number("temperature", temperature, 0)
        for transform in transforms:
            if not isinstance(transform, LogitTransform):
                raise ValueError(
                    "`transforms` must be LogitTransform objects. "
                    f"Received: {transform!r}"
                )
        self.transforms = tuple(transforms)
        self.cut = _make_cut(name, options)

    @property
    def greedy(self):
        """Whether the likeliest id is taken, and nothing drawn."""
        return self.name == "greedy" or self.temperature == 0

    @property
    def chain(self):
        """The transforms in the order in which they apply."""
        # A temperature moves no maximum, so greedy leaves it out.
        if self.greedy:
            return self.transforms
        cycle = isinstance(self.temperature, list)
        tempered = (TemperatureCycle if cycle else Temperature)(
            self.temperature
        )
        cut = () if self.cut is None else (self.cut,)
        return (*self.transforms, tempered, *cut)

    @property
    def uses_chance(self):
        """Whether a transform needs `context.chance`."""
        return any(transform.uses_chance for transform in self.chain)

    def before(self, *transforms):
        """Returns this sampler with transforms put first."""
        twin = copy.copy(self)
        twin.transforms = (*transforms, *self.transforms)
        return twin

    def numbers(self, tokenizer=None):
        """Returns the numbers of each transform, NumPy arrays by name.

        Raises:
            ValueError: A transform does not go with the vocabulary.
        """
        return tuple(transform.numbers(tokenizer) for transform in self.chain)

    def signature(self):
        """Returns a hashable that is equal where compiled code can serve."""
        chain = (transform.signature() for transform in self.chain)
        return (type(self), self.greedy, *chain)

    def initial_state(self, batch_size, vocabulary_size):
        """Returns what the chain knows before a text, as NumPy arrays."""
        state: dict[str, Any] = {
            "own": tuple(
                transform.initial_state(batch_size, vocabulary_size)
                for transform in self.chain
            )
        }
        window = max((transform.window for transform in self.chain), default=0)
        if window:
            shape = (batch_size, recent_size(window))
            state["recent"] = np.zeros(shape, "int32")
        return state

    def transform(self, logits, context, numbers, state):
        """Applies the chain.

        Args:
            logits: float32 `(B, V)`; `-inf` where an id is out.
            context: `Context`.
            numbers: The tensors of `self.numbers()`; they may be traced.
            state: As `initial_state` or `remember` gave it.

        Returns:
            float32 `(B, V)`, and what each transform gave, for `remember`.
        """
        incoming, outputs = logits, []
        for transform, own, values in self._steps(context, numbers, state):
            logits = transform(logits, own, **values)
            outputs.append(logits)
        if any(not isinstance(t, Temperature) for t in self.chain):
            # Not by the largest: OpenVINO knows no largest of -inf alone.
            some = ops.any(logits > -float("inf"), axis=-1, keepdims=True)
            logits = ops.where(some, logits, incoming)
        return logits, outputs

    def choose(self, logits, uniform):
        """Takes or draws an id a row.

        Args:
            logits: float32 `(B, V)`, what `transform` gave.
            uniform: float32 `(B,)` in [0, 1): the draw inverts the cumulative
                distribution at this number. Greedy takes None too.

        Returns:
            int32 `(B,)`, ids whose logit is above `-inf`.
        """
        if self.greedy:
            return ops.cast(ops.argmax(logits, axis=-1), "int32")
        return invert_distribution(logits, uniform)

    def remember(self, outputs, ids, context, numbers, state):
        """Returns the state after int32 `(B,)` ids were read or written."""
        steps = self._steps(context, numbers, state)
        following = {
            "own": tuple(
                transform.update(output, ids, own, **values)
                for output, (transform, own, values) in zip(
                    outputs, steps, strict=True
                )
            )
        }
        if "recent" in state:
            following["recent"] = ops.concatenate(
                [state["recent"][:, 1:], ids[:, None]], axis=1
            )
        return following

    def _steps(self, context, numbers, state):
        context = context._replace(recent=state.get("recent"))
        for transform, own, values in zip(
            self.chain, state["own"], numbers, strict=True
        ):
            yield transform, context._replace(state=own), values

    def get_config(self):
        return {
            "name": self.name,
            "temperature": self.temperature,
            "transforms": [
                keras.saving.serialize_keras_object(transform)
                for transform in self.transforms
            ],
            "options": {} if self.cut is None else self.cut.get_config(),
        }

    @classmethod
    def from_config(cls, config):
        transforms = [
            keras.saving.deserialize_keras_object(transform)
            for transform in config["transforms"]
        ]
        config = {**config, "transforms": transforms}
        options = config.pop("options", {})
        return cls(**config, **options)

    def __repr__(self):
        chain = " -> ".join(map(repr, self.chain))
        choice = "greedy" if self.greedy else "random"
        return (
            f"Sampler({chain} -> {choice})" if chain else f"Sampler({choice})"
        )


@keras.saving.register_keras_serializable(package="keras_chargen")
class BeamSearch(Sampler):
    """Looks for the likeliest whole texts instead of the next character.

    Keeps the `num_beams` best beginnings side by side (Graves, "Sequence
    Transduction with Recurrent Neural Networks", 2012), and every text that
    ended among them. Texts are ranked by the sum of their log-probabilities
    over `length ** length_penalty`, the length in characters written, `<eos>`
    included (Wu et al., 2016, in Hugging Face's form). The transforms change
    the log-probabilities, which are not normalized again: a pattern or a ban
    leaves the order of what remains as it was.

    Args:
        num_beams: Positive integer; 1 is greedy.
        length_penalty: Finite number; 0 ranks by probability, above 0 favours
            long texts.
        transforms: `LogitTransform`s, in their order.
    """

    def __init__(self, num_beams=4, length_penalty=0.0, transforms=()):
        super().__init__("greedy", transforms=transforms)
        self.num_beams = check_integer("num_beams", num_beams, 1)
        self.length_penalty = check_number("length_penalty", length_penalty)
        if self.uses_chance:
            raise ValueError(
                "`transforms` of a BeamSearch must leave nothing to chance. "
                f"Received: {self.transforms!r}"
            )

    def signature(self):
        return (*super().signature(), self.num_beams)

    def get_config(self):
        return {
            "num_beams": self.num_beams,
            "length_penalty": self.length_penalty,
            "transforms": super().get_config()["transforms"],
        }

    def __repr__(self):
        config = {**self.get_config(), "transforms": self.transforms}
        return "BeamSearch({})".format(
            ", ".join(f"{k}={v!r}" for k, v in config.items())
        )


def get(sampler, temperature=None):
    """Returns a `Sampler` from a name or a `Sampler`.

    Args:
        sampler: A name of `Sampler`, `"beam"`, or a `Sampler`.
        temperature: Optional, for a named sampler: as for `Sampler`.

    Raises:
        ValueError: An unknown name, a temperature out of range, or a
            temperature beside a `Sampler`, which has its own.
    """
    named = isinstance(sampler, str) and sampler != "beam"
    if not named and temperature is not None:
        raise ValueError(
            "`temperature` goes with a named sampler that draws. Received "
            f"both temperature={temperature!r} and {sampler!r}"
        )
    if isinstance(sampler, Sampler):
        return sampler
    if sampler == "beam":
        return BeamSearch()
    check_choice("sampler", sampler, (*CUTS, "beam"))
    return Sampler(sampler, 1.0 if temperature is None else temperature)


def _make_cut(name, options):
    cut = CUTS[name]
    accepted = [] if cut is None else list(inspect.signature(cut).parameters)
    for option in options:
        if option not in accepted:
            raise ValueError(
                f'Sampler("{name}") takes '
                + (", ".join(f"`{a}`" for a in accepted) or "no option")
                + f". Received: {option!r}"
            )
    return None if cut is None else cut(**options)


def invert_distribution(logits, uniform):
    """Draws ids by inverting the cumulative distribution.

    Args:
        logits: float32 `(B, V)`; `-inf` where an id is out.
        uniform: float32 `(B,)` in [0, 1).

    Returns:
        int32 `(B,)`, ids that are in, whatever rounding does.
    """
    size = logits.shape[-1]
    weights = ops.exp(logits - ops.max(logits, axis=-1, keepdims=True))
    cumulative = _running_sums(weights, size)  # (B, V), not normalized
    threshold = uniform[:, None] * cumulative[:, -1:]
    ids = ops.arange(size, dtype="int32")
    # The first that passes the threshold; else, by rounding, the last id. One
    # smallest number finds both, 2V - id standing for the latter.
    keys = ops.where(cumulative > threshold, ids, 2 * size - ids)
    keys = ops.min(ops.where(weights > 0, keys, 2 * size), axis=-1)
    return ops.where(keys < size, keys, 2 * size - keys)


def _running_sums(weights, size):
    if size > _WIDE:
        return ops.cumsum(weights, axis=-1)
    # XLA's cumulative sum is five kernels, which a small product is not.
    return ops.matmul(weights, np.triu(np.ones((size, size), "float32")))
