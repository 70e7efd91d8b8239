"""What watches training."""

import importlib.util
import math
import signal
import sys
import threading
import time
from typing import Any

import keras
import numpy as np

from keras_chargen import devices, samplers
from keras_chargen.checks import check_integer, check_positive


class SampleText(keras.callbacks.Callback):
    """Shows what the model writes while it trains.

    Args:
        prompts: A str or a list of str.
        temperatures: List of samplers to write with: numbers (temperatures; 0
            is greedy), names, or `Sampler`s.
        every: `"epoch"`, or a positive integer: after so many batches.
        max_new_tokens: As for `generate`.
        seed: Non-negative integer; the same at every turn, so that what
            changes is the model.
        known: Optional container of str, such as the set of the training
            texts: a sample that is in it is marked as a copy.
        file: Optional path: samples are added to it as UTF-8 text.
        log_dir: Optional path of a TensorBoard folder; needs the extra
            `tensorboard`.
        write: Function of one str that shows a sample; by default `print` to
            standard output. None shows nothing.
    """

    def __init__(
        self,
        prompts,
        temperatures=(0,),
        every="epoch",
        max_new_tokens=100,
        seed=0,
        known=None,
        file=None,
        log_dir=None,
        write=print,
    ):
        super().__init__()
        self.prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        self.samplers = [
            samplers.get("random", choice)
            if isinstance(choice, int | float)
            else samplers.get(choice)
            for choice in temperatures
        ]
        if every != "epoch":
            every = check_integer("every", every, 1)
        self.every = every
        self.max_new_tokens = check_integer("max_new_tokens", max_new_tokens, 0)
        self.seed = check_integer("seed", seed, 0)
        self.known = known
        self.file = file
        if log_dir is not None:
            check_tensorboard()
        self.log_dir = log_dir
        self.write = write
        self._board = None
        self._batches = 0

    def on_train_begin(self, logs=None):
        self._batches = 0
        if self.file is not None:
            # A place that cannot be written shall not cost an epoch.
            open(self.file, "a", encoding="utf-8").close()
        if self.log_dir is not None:
            from keras_chargen.tensorboard import TextWriter

            self._board = TextWriter(self.log_dir)

    def on_train_batch_end(self, batch, logs=None):
        self._batches += 1
        if self.every != "epoch" and self._batches % self.every == 0:
            self._sample(f"batch {self._batches}", self._batches)

    def on_epoch_end(self, epoch, logs=None):
        if self.every == "epoch":
            self._sample(f"epoch {epoch + 1}", epoch + 1)

    def on_train_end(self, logs=None):
        if self._board is not None:
            self._board.close()
            self._board = None

    def get_state(self):
        return {"batches": self._batches}

    def set_state(self, state):
        self._batches = state["batches"]

    def _sample(self, moment, step):
        synchronize(self.model)
        for sampler in self.samplers:
            kind = (
                "greedy"
                if sampler.greedy
                else f"temperature {sampler.temperature:g}"
            )
            texts = self.model.generate(
                self.prompts,
                self.max_new_tokens,
                sampler=sampler,
                seed=self.seed,
            )
            for text in texts:
                copy = ", copied" if self._is_copy(text) else ""
                line = f"{moment}, {kind}{copy}: {text}"
                if self.write is not None:
                    self.write(line)
                if self.file is not None:
                    with open(self.file, "a", encoding="utf-8") as file:
                        file.write(line + "\n")
                if self._board is not None:
                    self._board.write(f"sample/{kind}", text, step)

    def _is_copy(self, text):
        return self.known is not None and text in self.known


class ProgressBar(keras.callbacks.Callback):
    """Shows epoch, loss, bits per character, characters/s and time left.

    Needs `CharacterCount()` among the weighted metrics for characters/s. What
    other callbacks show while it runs goes through `write`, so that the bar
    stays below it.

    Args:
        console: Optional `rich.console.Console`; by default standard error.
        budget: Optional `TimeBudget`: the bar shows the time that is over, not
            the batches.
    """

    def __init__(self, console=None, budget=None):
        super().__init__()
        self.budget = budget
        if console is None:
            from rich.console import Console

            console = Console(stderr=True)
        self.console = console
        self._bar: Any = None
        self._shown = 0.0

    def write(self, text):
        """Shows a text above the bar, as it is."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def on_train_begin(self, logs=None):
        from rich import progress

        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.TextColumn("{task.fields[done]}"),
            progress.TextColumn("{task.fields[figures]}"),
            progress.TimeRemainingColumn(),
            console=self.console,
            # A log file gets the lines of the epochs, not the bar.
            disable=not self.console.is_terminal,
        )
        steps, epochs = self.params.get("steps"), self.params["epochs"]
        total = 1.0 if self.budget is not None else steps and steps * epochs
        self._task = self._bar.add_task(
            "training", total=total, done="", figures=""
        )
        self._batches = 0
        self._bar.start()

    def on_epoch_begin(self, epoch, logs=None):
        self._bar.update(self._task, description=self._epoch(epoch))
        self._begin = time.perf_counter()
        self._trained = None

    def on_train_batch_end(self, batch, logs=None):
        self._batches += 1
        if self.budget is None:
            total = self._bar.tasks[0].total
            done, shown = self._batches, f"{self._batches}/{total} batches"
        else:
            done, shown = self.budget.share(), f"{self._batches} batches"
        self._bar.update(self._task, completed=done, done=shown)
        # Figures wait for the device: a few times a second is enough.
        now = time.perf_counter()
        if not self._bar.disable and now - self._shown > 0.3:
            self._shown = now
            figures = self._figures(logs, now - self._begin)
            self._bar.update(self._task, figures=figures)

    def on_test_begin(self, logs=None):
        # Throughput is that of training: the validation does not count.
        if self._bar is not None and self._trained is None:
            self._trained = time.perf_counter() - self._begin

    def on_epoch_end(self, epoch, logs=None):
        seconds = self._trained or time.perf_counter() - self._begin
        figures = self._figures(logs, seconds)
        self.write(f"{self._epoch(epoch)}: {figures}")

    def get_state(self):
        return {
            "batches": self._batches,
            "seconds": time.perf_counter() - self._begin,
        }

    def set_state(self, state):
        self._batches = state["batches"]
        # Characters/s are those of the whole epoch.
        self._begin = time.perf_counter() - state["seconds"]

    def on_train_end(self, logs=None):
        self.stop()

    def stop(self):
        """Takes the bar away; harmless where there is none."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _epoch(self, epoch):
        # A budget of time says nothing of how many there will be.
        of = "" if self.budget is not None else f"/{self.params['epochs']}"
        return f"epoch {epoch + 1}{of}"

    def _figures(self, logs, seconds):
        logs = {name: float(value) for name, value in (logs or {}).items()}
        figures = [f"loss {logs.get('loss', float('nan')):.4f} nats"]
        if "bits_per_character" in logs:
            figures.append(f"{logs['bits_per_character']:.3f} bits/character")
        if "val_bits_per_character" in logs:
            held_out = logs["val_bits_per_character"]
            figures.append(f"held out {held_out:.3f}")
        if "characters" in logs and seconds:
            figures.append(f"{logs['characters'] / seconds:,.0f} characters/s")
        return ", ".join(figures)


class RunFigures(keras.callbacks.Callback):
    """Adds to the logs of an epoch what Keras does not know.

    `learning_rate` at its end; `gradient_norm`, the mean over its batches of
    the norm of all gradients together, before they are clipped; and with
    `CharacterCount()` among the weighted metrics `characters_per_second`, the
    validation not counted. Callbacks that write them come after this one.
    """

    def on_train_begin(self, logs=None):
        model: Any = self.model
        optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        optimizer.build(model.trainable_variables)
        # A variable of the optimizer: only those may change where a backend
        # computes without side effects.
        total = optimizer.add_variable((), name="gradient_norm")
        apply = optimizer.apply

        def measured(grads, trainable_variables=None):
            squares = [
                keras.ops.sum(keras.ops.square(grad))
                for grad in map(keras.ops.convert_to_tensor, grads)
            ]
            total.assign_add(keras.ops.sqrt(sum(squares)))
            return apply(grads, trainable_variables)

        optimizer.apply = measured
        self._optimizer, self._total, self._apply = optimizer, total, apply
        model.make_train_function(force=True)

    def on_epoch_begin(self, epoch, logs=None):
        self._batches, self._begin = 0, time.perf_counter()
        self._trained = None

    def on_train_batch_end(self, batch, logs=None):
        self._batches += 1

    def on_test_begin(self, logs=None):
        self._trained = time.perf_counter() - self._begin

    def on_epoch_end(self, epoch, logs=None):
        seconds = self._trained or time.perf_counter() - self._begin
        synchronize(self.model)
        logs["learning_rate"] = float(self._optimizer.learning_rate)
        logs["gradient_norm"] = float(self._total) / max(self._batches, 1)
        self._total.assign(0.0)
        if "characters" in logs:
            characters = float(logs["characters"])
            logs["characters_per_second"] = characters / seconds

    def get_state(self):
        return {
            "batches": self._batches,
            "seconds": time.perf_counter() - self._begin,
        }

    def set_state(self, state):
        self._batches = state["batches"]
        self._begin = time.perf_counter() - state["seconds"]

    def on_train_end(self, logs=None):
        # The optimizer is saved as Keras knows it.
        self._optimizer.apply = self._apply
        self._optimizer._variables.pop()
        self.model.make_train_function(force=True)


class StopOnSignal(keras.callbacks.Callback):
    """Ends training after the batch in which Ctrl-C or SIGTERM came.

    So the weights are whole and can be saved; a second one ends the process
    at once. Works in the main thread; elsewhere it does nothing. Processes
    that train together stop together: they ask each other now and then.

    Attributes:
        received: The `signal.Signals` that came, or None.
    """

    ASKING = 16  # batches

    def __init__(self):
        super().__init__()
        self._batches = 0
        self.received = None
        self._previous = {}

    def on_train_begin(self, logs=None):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._stop)

    def on_train_end(self, logs=None):
        self.restore()

    def restore(self):
        """Gives the signals back to whom they belonged."""
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _stop(self, number, _):
        self.received = signal.Signals(number)
        self.restore()
        print("stopping after this batch", file=sys.stderr)

    def on_train_batch_end(self, batch, logs=None):
        self._batches += 1
        stops = np.array([self.received is not None])
        if devices.process()[1] > 1:
            if self._batches % self.ASKING:
                return
            stops = devices.exchange(stops)
        if stops.any():
            self.model.stop_training = True


class TimeBudget(keras.callbacks.Callback):
    """Makes training fit a time: the learning rate follows the clock.

    It rises in a straight line for the first 2 % of the time, then falls to 2 %
    of its peak along half a cosine (Loshchilov & Hutter, 2017), and training
    stops when the time is over. Validation counts: what the last one took is
    set aside for the next. A run that goes on from a checkpoint has the time
    that is left; as no clock ticks twice alike, its weights are not those of a
    run that was not stopped.

    Args:
        seconds: Positive number.
        clock: Function that gives seconds.
    """

    WARM_UP = 0.02
    FLOOR = 0.02
    EVERY = 0.2  # seconds between two changes: under JAX each takes a copy

    def __init__(self, seconds, clock=time.monotonic):
        super().__init__()
        self.seconds = check_positive("seconds", seconds)
        self._clock = clock

    def on_train_begin(self, logs=None):
        self._begin = self._clock()
        self._changed = -math.inf
        self._validation = 0.0
        try:
            self._peak = float(self.model.optimizer.learning_rate)
            self._set(self._peak)
        except TypeError as error:
            raise ValueError(
                "a time budget sets the learning rate: the optimizer must have "
                "a number, not a schedule"
            ) from error

    def share(self):
        """Returns the share of the time that is over, from 0 to 1."""
        left = self.seconds - self._validation
        return min(1.0, (self._clock() - self._begin) / max(left, 1e-9))

    def on_train_batch_begin(self, batch, logs=None):
        if self._clock() - self._changed < self.EVERY:
            return
        self._changed = self._clock()
        self._set(self._peak * self.factor(self.share()))

    def factor(self, share):
        """Returns the learning rate at a share of the time, peak = 1."""
        if share < self.WARM_UP:
            return max(share / self.WARM_UP, self.FLOOR)
        share = (share - self.WARM_UP) / (1 - self.WARM_UP)
        wave = 0.5 + 0.5 * math.cos(math.pi * share)
        return self.FLOOR + (1 - self.FLOOR) * wave

    def on_train_batch_end(self, batch, logs=None):
        if self.share() >= 1:
            self.model.stop_training = True

    def on_test_begin(self, logs=None):
        self._test_begin = self._clock()

    def on_test_end(self, logs=None):
        self._validation = self._clock() - self._test_begin
        if self.share() >= 1:
            self.model.stop_training = True

    def get_state(self):
        return {
            "elapsed": self._clock() - self._begin,
            "validation": self._validation,
            "peak": self._peak,
        }

    def set_state(self, state):
        self._begin = self._clock() - state["elapsed"]
        self._validation = state["validation"]
        self._peak = state["peak"]

    def on_train_end(self, logs=None):
        # The next `fit` finds the optimizer as it was.
        self._set(self._peak)

    def _set(self, rate):
        synchronize(self.model)
        self.model.optimizer.learning_rate = rate


class StopOnNonFinite(keras.callbacks.Callback):
    """Ends training when the loss is NaN or infinite, and says where.

    Keras's `TerminateOnNaN` waits for the device at every batch; this one
    looks at the last `every` losses at once.

    Args:
        every: Positive integer, batches between two looks.

    Raises:
        FloatingPointError: From `fit`; it names the batch and the epoch.
    """

    def __init__(self, every=32):
        super().__init__()
        self.every = check_integer("every", every, 1)
        self._losses = []

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch, self._batch = epoch + 1, 0

    def on_train_batch_end(self, batch, logs=None):
        self._batch += 1
        self._losses.append((self._batch, (logs or {}).get("loss", 0.0)))
        if len(self._losses) >= self.every:
            self._look()

    def on_epoch_end(self, epoch, logs=None):
        self._look()

    def get_state(self):
        return {"batch": self._batch}

    def set_state(self, state):
        # Keras counts from 0 where an epoch is resumed.
        self._batch = state["batch"]

    def _look(self):
        losses, self._losses = self._losses, []
        for batch, loss in losses:
            loss = float(loss)
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss} at batch {batch} of epoch "
                    f"{self._epoch}; a lower learning rate may help"
                )


def check_tensorboard():
    """Raises `ValueError` where TensorBoard's logs cannot be written."""
    # TensorFlow writes them, but no longer brings what it needs for it.
    if importlib.util.find_spec("tensorboard") is None:
        raise ValueError(
            "logs for TensorBoard need the package tensorboard: "
            "pip install 'keras-chargen[tensorboard]'"
        )


def synchronize(model):
    """Makes the weights of a model in training readable from a callback."""
    # Under JAX they live in the training loop until somebody asks.
    sync = getattr(model, "jax_state_sync", None)
    if sync is not None and getattr(model, "_jax_state", None) is not None:
        sync()
