"""Which recurrent kernels a training step runs under the active backend.

    KERAS_BACKEND=jax python -m benchmarks.kernels

And characters a second of `fit` over arrays in memory, by the loop that we
choose and by that of Keras. On a GPU TensorFlow and Torch must show cuDNN;
under JAX our loop is a `while` of XLA, and Keras's LSTM is cuDNN. Under
TensorFlow the operations of the graph are read, under JAX the calls of the
compiled program that leave XLA, under Torch what its profiler saw. Needs no
TensorFlow.
"""

import contextlib
import itertools
import re
import time

import numpy as np

from benchmarks.race import Row, race
from benchmarks.report import log, make_parser, publish

SHAPE = (256, 64)  # rows, characters
CELLS = ("lstm", "gru")
POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")
BATCHES = {"cpu": 4, "gpu": 40}


def main(arguments=None):
    """Measures and prints."""
    parser = make_parser(__doc__)
    parser.add_argument("--units", type=int, nargs="+", default=[128, 512])
    options = parser.parse_args(arguments)
    import keras

    backend, name = keras.backend.backend(), device()
    units, batches = options.units, BATCHES["cpu" if name == "cpu" else "gpu"]
    if options.toy:
        units, batches = [4], 1
    rows = [
        Row(label, "kernels:rate", {**given, "batches": batches})
        for label, given in _choices(units)
    ]
    repeats = options.repeats or (1 if options.toy else 5)
    found = race(rows, repeats, log, apart=False)
    for cell in CELLS:
        for from_keras in (False, True):
            label = _label(cell, units[0], "float32", from_keras)
            ran = kernels(cell, from_keras=from_keras)
            found[label]["note"] = ", ".join(ran) or "none of its own"
    tables = {
        f"training, {backend} on {name}": {
            label: {**row, "unit": "characters/s"}
            for label, row in found.items()
        }
    }
    settings = {"batch": SHAPE[0], "characters": SHAPE[1], "batches": batches}
    return publish("kernels", settings, tables, options.json)


def _choices(units):
    for cell, width, policy, from_keras in itertools.product(
        CELLS, units, POLICIES, (False, True)
    ):
        # In half precision the loop is that of Keras.
        if from_keras and policy != "float32":
            continue
        choice = {
            "cell": cell,
            "units": width,
            "policy": policy,
            "from_keras": from_keras,
        }
        yield _label(**choice), choice


def _label(cell, units, policy, from_keras):
    end = ", loop of Keras" if from_keras else ""
    return f"{cell} {units}, {policy}{end}"


def rate(cell, units, policy, from_keras, batches):
    """Measures characters a second of `fit`."""
    model = _model(cell, units, policy)
    ids, targets, weights = _batch(batches)
    given = {"batch_size": SHAPE[0], "shuffle": False, "verbose": 0}

    def run():
        begin = time.perf_counter()
        model.fit(ids, targets, sample_weight=weights, **given)
        return ids.size / (time.perf_counter() - begin)

    with loop_of_keras() if from_keras else contextlib.nullcontext():
        run()
    return run


@contextlib.contextmanager
def loop_of_keras():
    """Leaves all recurrent layers that are traced meanwhile to Keras."""
    from keras_chargen import recurrent

    ours = recurrent.loops_are_ours, recurrent._torch_on_cpu
    recurrent.loops_are_ours = recurrent._torch_on_cpu = lambda *_: False
    try:
        yield
    finally:
        recurrent.loops_are_ours, recurrent._torch_on_cpu = ours


def _model(cell, units, policy="float32"):
    from keras_chargen import CharRNN, CharTokenizer

    tokenizer = CharTokenizer([chr(code) for code in range(33, 115)])
    model = CharRNN(tokenizer, cell=cell, units=units, dtype=policy)
    model.compile()
    return model


def _batch(count=1):
    rows = (count * SHAPE[0], SHAPE[1] + 1)
    ids = np.random.default_rng(0).integers(1, 84, rows).astype("int32")
    return ids[:, :-1], ids[:, 1:], np.ones((rows[0], SHAPE[1]), "float32")


def kernels(cell, units=128, from_keras=False):
    """Returns the names of what one training step of a cell calls."""
    import keras

    find = {"tensorflow": _graph, "jax": _program, "torch": _profile}
    with loop_of_keras() if from_keras else contextlib.nullcontext():
        model = _model(cell, units)
        return sorted(find[keras.backend.backend()](model, _batch()))


def device():
    """Returns the name of the device that the backend computes on."""
    import keras

    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return str(jax.devices()[0].device_kind)
    if backend == "torch":
        import torch

        return torch.cuda.get_device_name() if _cuda(torch) else "cpu"
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return "cpu"
    return tf.config.experimental.get_device_details(gpus[0])["device_name"]


def _cuda(torch):
    return torch.cuda.is_available()


def _graph(model, batch):
    import tensorflow as tf

    @tf.function
    def step(ids, targets, weights):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(ids, targets, model(ids), weights)
        return tape.gradient(loss, model.trainable_weights)

    graph = step.get_concrete_function(*map(tf.constant, batch)).graph
    definition = graph.as_graph_def()
    nodes = list(definition.node)
    for function in definition.library.function:
        nodes.extend(function.node_def)
    return {node.op for node in nodes if "RNN" in node.op or "While" in node.op}


def _program(model, batch):
    import jax

    ids, targets, weights = batch
    values = [variable.value for variable in model.trainable_variables]
    rest = [variable.value for variable in model.non_trainable_variables]

    def loss(values):
        logits, _ = model.stateless_call(values, rest, ids, training=True)
        return model.compute_loss(ids, targets, logits, weights)

    text = jax.jit(jax.grad(loss)).lower(values).compile().as_text()
    calls = set(re.findall(r'custom_call_target="([^"]+)"', text))
    return calls | ({"while"} if re.search(r"\bwhile\(", text) else set())


def _profile(model, batch):
    import torch

    activities = [torch.profiler.ProfilerActivity.CPU]
    if _cuda(torch):
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    model.train_on_batch(*batch)
    with torch.profiler.profile(activities=activities) as profile:
        model.train_on_batch(*batch)
    names = {event.key for event in profile.key_averages()}
    return {name for name in names if re.search("rnn|lstm|gru", name, re.I)}


if __name__ == "__main__":
    main()
