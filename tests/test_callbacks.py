"""What watches training shows what is true at that moment."""

import io
import os
import re
import signal
import threading

import keras
import numpy as np
import pytest
from rich.console import Console

from keras_chargen import CharRNN, CharTokenizer, Sampler, SampleText
from keras_chargen import callbacks as rooms
from keras_chargen.callbacks import (
    ProgressBar,
    RunFigures,
    StopOnNonFinite,
    StopOnSignal,
    TimeBudget,
)
from keras_chargen.scoring import BitsPerCharacter, CharacterCount

ROWS, STEPS = 24, 7


def fit(*callbacks, epochs=2, validation=False, rate=0.05):
    """A few batches of "abab…" for a tiny model, watched."""
    keras.utils.set_random_seed(0)
    model = CharRNN(CharTokenizer([*"abc"]), units=8)
    model.compile(
        optimizer=keras.optimizers.Adam(rate),
        weighted_metrics=[BitsPerCharacter(), CharacterCount()],
    )
    ids = np.tile([1, 2], (ROWS, STEPS))[:, : STEPS + 1].astype("int32")
    weights = np.ones((ROWS, STEPS), "float32")
    data = (ids[:, :-1], ids[:, 1:], weights)
    model.fit(
        *data[:2],
        sample_weight=weights,
        batch_size=8,
        epochs=epochs,
        verbose=0,
        callbacks=list(callbacks),
        validation_data=tuple(x[:4] for x in data) if validation else None,
    )
    return model


# ---------------------------------------------------------- arguments


@pytest.mark.parametrize(
    "arguments, name",
    [
        ({"every": 0}, "every"),
        ({"every": "batch"}, "every"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"seed": -1}, "seed"),
        ({"temperatures": [float("inf")]}, "temperature"),
        ({"temperatures": ["top-q"]}, "sampler"),
    ],
)
def test_an_argument_out_of_range_is_named(arguments, name):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        SampleText("a", **arguments)


def test_logs_that_cannot_be_written_are_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="need the package tensorboard"):
        SampleText("a", log_dir="logs")


# ---------------------------------------------------------- samples


@pytest.mark.trains
def test_samples_come_after_every_epoch_for_every_prompt_and_sampler():
    shown = []
    fit(
        SampleText(
            ["a", "b"],
            [0, 0.8, "greedy", Sampler("random", 0.5)],
            max_new_tokens=5,
            write=shown.append,
        )
    )
    heads = [re.sub(r": [ab][abc]*$", "", line) for line in shown]
    kinds = ["greedy", "temperature 0.8", "greedy", "temperature 0.5"]
    assert heads == [
        f"epoch {epoch}, {kind}"
        for epoch in (1, 2)
        for kind in kinds
        for _ in "ab"
    ]


@pytest.mark.trains
def test_samples_come_after_so_many_batches():
    shown = []
    fit(SampleText("a", every=2, max_new_tokens=2, write=shown.append))
    moments = [line.partition(",")[0] for line in shown]
    assert moments == ["batch 2", "batch 4", "batch 6"]


@pytest.mark.trains
@pytest.mark.parametrize("every", ["epoch", 3])
def test_a_sample_is_written_with_the_weights_of_its_moment(every):
    shown = []
    sampling = SampleText(
        "a", [0.7], every, max_new_tokens=20, seed=4, write=shown.append
    )
    model = fit(sampling, epochs=8)
    expected = model.generate(
        "a", 20, sampler="random", temperature=0.7, seed=4
    )
    assert shown[-1].partition(": ")[2] == expected
    assert len({line.partition(": ")[2] for line in shown}) > 1


@pytest.mark.trains
def test_samples_are_added_to_a_file(tmp_path):
    path, shown = tmp_path / "samples.txt", []
    path.write_text("before\n")
    fit(SampleText("a", file=path, write=shown.append))
    assert path.read_text().splitlines() == ["before", *shown]


@pytest.mark.trains
def test_a_file_that_cannot_be_written_costs_no_epoch(tmp_path):
    shown = []
    with pytest.raises(FileNotFoundError):
        fit(SampleText("a", file=tmp_path / "no" / "a", write=shown.append))
    assert not shown


@pytest.mark.trains
def test_samples_reach_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    fit(SampleText("a", [0, 0.5], log_dir=tmp_path, write=None), epochs=1)
    (events,) = tmp_path.glob("events*")
    data = events.read_bytes()
    assert b"sample/greedy" in data and b"sample/temperature 0.5" in data


@pytest.mark.trains
def test_a_copy_of_a_training_text_is_marked():
    class Everything:
        def __contains__(self, text):
            return True

    shown = []
    fit(SampleText("a", known=Everything(), write=shown.append), epochs=1)
    assert shown[0].startswith("epoch 1, greedy, copied: a")


@pytest.mark.trains
def test_nothing_is_shown_where_nothing_shall_be(capsys):
    fit(SampleText("a", write=None))
    fit(SampleText("a"))
    assert len(capsys.readouterr().out.splitlines()) == 2


# ---------------------------------------------------------- the bar


@pytest.fixture
def clock(monkeypatch):
    """Every look at the clock is half a second after the last."""
    now = iter(np.arange(0, 1000, 0.5))
    monkeypatch.setattr(rooms.time, "perf_counter", lambda: next(now))


@pytest.mark.trains
@pytest.mark.parametrize("validation", [False, True])
def test_every_epoch_ends_with_a_line_of_its_figures(clock, validation):
    output = io.StringIO()
    bar = ProgressBar(Console(file=output, width=200))
    fit(bar, validation=validation)
    lines = output.getvalue().splitlines()
    assert len(lines) == 2
    for epoch, line in enumerate(lines, 1):
        assert line.startswith(f"epoch {epoch}/2: loss ")
        assert "bits/character" in line
        assert ("held out " in line) is validation
    # The clock is read at the begin, after three batches, and at the end.
    assert lines[0].endswith(f", {ROWS * STEPS / 2:,.0f} characters/s")


@pytest.mark.trains
def test_a_terminal_sees_a_bar_and_the_time_left():
    output = io.StringIO()
    bar = ProgressBar(Console(file=output, width=200, force_terminal=True))
    fit(SampleText("a", write=bar.write), bar)
    text = output.getvalue()
    assert "6/6 batches" in text
    assert re.search(r"\d:\d\d:\d\d", text)
    assert "epoch 2, greedy: a" in text


def test_stopping_a_bar_that_never_began_is_harmless():
    ProgressBar(Console(file=io.StringIO())).stop()


# ---------------------------------------------------------- Ctrl-C


@pytest.fixture(autouse=True)
def usual_handler():
    """Python's own handler; a job in the background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press_ctrl_c():
    """Calls the handler: a real signal can end a worker of pytest-xdist."""
    signal.getsignal(signal.SIGINT)(signal.SIGINT, None)


class Interrupt(keras.callbacks.Callback):
    """Presses Ctrl-C in given batches."""

    def __init__(self, *batches):
        super().__init__()
        self.batches, self.seen = batches, []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(batch)
        if batch in self.batches:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.trains
def test_ctrl_c_ends_training_after_the_batch(capsys):
    handler = signal.getsignal(signal.SIGINT)
    pressing, stop = Interrupt(1), StopOnSignal()
    fit(pressing, stop, epochs=5)
    assert stop.received == signal.SIGINT and len(pressing.seen) <= 3
    assert signal.getsignal(signal.SIGINT) is handler
    assert "stopping after this batch" in capsys.readouterr().err


@pytest.mark.trains
def test_without_ctrl_c_nothing_is_stopped_and_the_handler_comes_back():
    handler = signal.getsignal(signal.SIGINT)
    pressing, stop = Interrupt(), StopOnSignal()
    fit(pressing, stop)
    assert stop.received is None and len(pressing.seen) == 6
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_second_ctrl_c_interrupts_at_once(capsys):
    stop = StopOnSignal()
    stop.on_train_begin()
    press_ctrl_c()
    with pytest.raises(KeyboardInterrupt):
        press_ctrl_c()
    assert stop.received == signal.SIGINT


def test_off_the_main_thread_the_handler_stays():
    handler = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=StopOnSignal().on_train_begin)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is handler


def test_sigterm_stops_as_ctrl_c_does():
    stop = StopOnSignal()
    before = signal.getsignal(signal.SIGTERM)
    stop.on_train_begin()
    signal.getsignal(signal.SIGTERM)(signal.SIGTERM, None)
    assert stop.received == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("where", [0, 1])
def test_joined_processes_stop_at_the_same_batch(monkeypatch, where):
    received = np.arange(2)[:, None] == where
    monkeypatch.setattr(rooms.devices, "process", lambda: (0, 2))
    monkeypatch.setattr(rooms.devices, "exchange", lambda _: received)
    stop = StopOnSignal()
    stop.set_model(keras.Model())
    stop.received = signal.SIGTERM if where == 0 else None
    stopped = []
    for batch in range(stop.ASKING):
        stop.on_train_batch_end(batch)
        stopped.append(getattr(stop.model, "stop_training", False))
    assert stopped == [False] * (stop.ASKING - 1) + [True]


# ---------------------------------------------------------- a budget of time


class Ticks:
    """A clock that goes on by a second at each batch."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Tick(keras.callbacks.Callback):
    """Moves a clock, and notes the learning rate of each batch."""

    def __init__(self, clock, seconds_of_test=0):
        super().__init__()
        self.clock, self.seconds_of_test = clock, seconds_of_test
        self.rates = []

    def on_train_batch_end(self, batch, logs=None):
        self.rates.append(float(self.model.optimizer.learning_rate))
        self.clock.now += 1

    def on_test_end(self, logs=None):
        self.clock.now += self.seconds_of_test


def fit_for(seconds, *, validation=False, seconds_of_test=0):
    clock = Ticks()
    tick = Tick(clock, seconds_of_test)
    model = fit(
        tick,
        TimeBudget(seconds, clock),
        epochs=1000,
        validation=validation,
    )
    return tick, model


@pytest.mark.trains
def test_training_ends_when_its_time_is_over():
    tick, _ = fit_for(10)
    assert len(tick.rates) == 10


@pytest.mark.trains
def test_the_learning_rate_rises_and_falls_with_the_clock():
    tick, model = fit_for(100)
    rates, peak = tick.rates, max(tick.rates)
    assert len(rates) == 100
    assert rates[0] < rates[1] < rates[2] == pytest.approx(peak)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[51] == pytest.approx(0.51 * peak, rel=1e-3)
    assert rates[-1] < 0.03 * peak
    assert float(model.optimizer.learning_rate) == pytest.approx(peak)


@pytest.mark.trains
def test_time_for_the_last_validation_is_set_aside():
    # Three batches and five seconds of validation an epoch: eight seconds.
    tick, _ = fit_for(24, validation=True, seconds_of_test=5)
    assert tick.clock.now <= 24


@pytest.mark.trains
def test_a_schedule_and_a_budget_of_time_exclude_each_other():
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    with pytest.raises(ValueError, match="not a schedule"):
        fit(TimeBudget(1), rate=schedule)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), "1", True])
def test_a_budget_must_be_a_time(seconds):
    with pytest.raises(ValueError, match="`seconds`"):
        TimeBudget(seconds)


@pytest.mark.trains
def test_the_bar_shows_the_share_of_the_time():
    clock, output = Ticks(), io.StringIO()
    budget = TimeBudget(4, clock)
    console = Console(file=output, width=200, force_terminal=True)
    fit(Tick(clock), budget, ProgressBar(console, budget), epochs=1000)
    assert "4 batches" in output.getvalue()
    assert "epoch 2: loss" in output.getvalue()


# ---------------------------------------------------------- NaN


class Break(keras.callbacks.Callback):
    """Makes the weights NaN after a batch."""

    def on_train_batch_end(self, batch, logs=None):
        if batch == 1:
            rooms.synchronize(self.model)
            weight = self.model.trainable_variables[0]
            weight.assign(weight * float("nan"))


@pytest.mark.trains
@pytest.mark.parametrize("every", [1, 32])
def test_a_loss_that_is_no_number_ends_training_and_names_the_batch(every):
    with pytest.raises(FloatingPointError, match="nan at batch 3 of epoch 1"):
        fit(Break(), StopOnNonFinite(every))


# ---------------------------------------------------------- figures


class Keep(keras.callbacks.Callback):
    """What a callback that comes later sees at the ends of epochs."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(dict(logs))


@pytest.mark.trains
def test_logs_tell_rate_throughput_and_the_norm_of_gradients():
    keep = Keep()
    model = fit(RunFigures(), keep, rate=0.0, epochs=2)
    first, second = keep.seen
    assert first["learning_rate"] == 0
    assert first["characters_per_second"] > 0
    # Nothing is learned, so both are the norm at the first weights.
    assert second["gradient_norm"] == pytest.approx(first["gradient_norm"])
    ids = np.tile([1, 2], (ROWS, STEPS))[:, : STEPS + 1].astype("int32")

    def loss():
        return model.evaluate(
            ids[:, :-1], ids[:, 1:], ROWS, return_dict=True, verbose=0
        )["loss"]

    # A small step down the gradient takes its squared norm off the loss.
    before, rate = loss(), 1e-3
    model.compile(keras.optimizers.SGD(rate))
    model.fit(ids[:, :-1], ids[:, 1:], ROWS, verbose=0)
    fall = (before - loss()) / rate
    assert first["gradient_norm"] == pytest.approx(fall**0.5, rel=0.05)


@pytest.mark.trains
def test_figures_change_nothing_in_training_and_leave_nothing():
    watched, plain = fit(RunFigures()), fit()
    for a, b in zip(watched.weights, plain.weights, strict=True):
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (a, b)))
    names = [
        [variable.name for variable in model.optimizer.variables]
        for model in (watched, plain)
    ]
    assert names[0] == names[1]
