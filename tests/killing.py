"""Kills training at random moments: `python killing.py FOLDER KILLS SEED`.

Processes are forked after the imports and before any framework has begun to
work, so that each costs no more than its training. About half kill themselves
by SIGKILL at a random step of writing a checkpoint, the others are killed from
outside. Every one goes on from the newest checkpoint, and every run that comes
to its end must end as one that was not killed. The report is printed.
"""

import builtins
import hashlib
import itertools
import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

if os.environ.get("KERAS_BACKEND") == "torch":
    import torch  # noqa: F401
import keras

from keras_chargen import (
    CharRNN,
    CharTokenizer,
    Checkpoint,
    checkpoints,
    keep_programs,
    pipeline,
)

TEXTS = [f"day {i} of {i * i}" for i in range(40)]
EPOCHS = 5  # of 10 batches


class Watch(keras.callbacks.Callback):
    """Tells through a pipe that training has begun, and where."""

    def __init__(self, pipe):
        super().__init__()
        self.pipe, self.step = pipe, 0

    def on_train_batch_end(self, batch, logs=None):
        if not self.step:
            os.write(self.pipe, b".")
        self.step += 1


class Death:
    """Ends the process at the n-th step of writing checkpoints."""

    def __init__(self, place, report):
        self.left, self.report = place, report

    def step(self, name):
        self.left -= 1
        if not self.left:
            os.write(self.report, name.encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, name, function):
        def call(*arguments, **others):
            self.step(f"before {name}")
            result = function(*arguments, **others)
            self.step(f"after {name}")
            return result

        return call

    def open(self, path, mode="r", **others):
        file = builtins.open(path, mode, **others)  # noqa: SIM115
        if mode == "wb":
            put = file.raw.write

            class Writer:
                def __enter__(_):
                    return _

                def __exit__(_, *error):
                    file.close()

                def write(_, data):
                    # In two halves, each of which reaches the file.
                    half = len(data) // 2
                    put(data[:half])
                    self.step("half of a write")
                    put(data[half:])
                    self.step("a write")

            return Writer()
        return file

    def watch(self):
        checkpoints.open = self.open
        for name in ("fsync", "replace"):
            setattr(os, name, self.around(name, getattr(os, name)))
        Path.unlink = self.around("unlink", Path.unlink)


def train(folder, pipe):
    """Trains to the end and writes what it ended with."""
    tokenizer = CharTokenizer()
    tokenizer.adapt(TEXTS)
    data = pipeline.lines(TEXTS, tokenizer, 4, buckets=[16])
    keras.utils.set_random_seed(0)
    model = CharRNN(tokenizer, units=4, dropout=0.3)
    model.compile(optimizer=keras.optimizers.Adam(0.05, use_ema=True))
    run = folder / "run"
    saved = None
    if list(run.glob("checkpoint-*.ckpt")):
        saved = checkpoints.newest(run)
    checkpoint = Checkpoint(run, data, batches=1, resume=saved)
    model.fit(
        data,
        initial_epoch=checkpoint.initial_epoch,
        callbacks=[*checkpoint.callbacks, Watch(pipe)],
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
    )
    found = hashlib.sha256()
    for variable in (*model.variables, *model.optimizer.variables):
        found.update(keras.ops.convert_to_numpy(variable).tobytes())
    (folder / "end").write_text(found.hexdigest())


def child(folder, place=None, seconds=None):
    """Trains in a process of its own: how it was killed, or None."""
    started, tell = os.pipe()
    died, report = os.pipe()
    process = os.fork()
    if not process:
        code = 1
        try:
            os.close(started)
            os.close(died)
            if place:
                Death(place, report).watch()
            train(folder, tell)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(tell)
    os.close(report)
    os.read(started, 1)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)
    where = os.read(died, 100).decode()
    _, status = os.waitpid(process, 0)
    os.close(started)
    os.close(died)
    if os.WIFSIGNALED(status):
        return f"at {where}" if where else f"{seconds:.3f} s after its begin"
    if os.WEXITSTATUS(status):
        sys.exit("training failed")
    return None


def main(folder, kills, seed):
    """Kills so often, and compares."""
    os.environ["KERAS_CHARGEN_CACHE"] = str(folder / "programs")
    keep_programs()
    draw = random.Random(seed)
    whole = folder / "whole"
    whole.mkdir()
    child(whole)
    expected = (whole / "end").read_text()
    killed, run = 0, folder / "killed"
    for number in itertools.count(1):
        run.mkdir()
        while not (run / "end").exists():
            how = None
            if killed < kills:
                if draw.random() < 0.5:
                    how = child(run, place=draw.randint(1, 200))
                else:
                    how = child(run, seconds=draw.uniform(0, 0.15))
            else:
                child(run)
            if how:
                killed += 1
                left = sorted((run / "run").glob("checkpoint-*.ckpt"))
                step = int(left[-1].stem.split("-")[1]) if left else 0
                print(f"killed {how}; resumes at step {step}", flush=True)
        same = (run / "end").read_text() == expected
        print(f"run {number} ends {'the same' if same else 'DIFFERENT'}")
        if not same:
            sys.exit(1)
        if killed >= kills:
            break
        shutil.rmtree(run)
    print("all the same")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
