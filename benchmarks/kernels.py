"""Which recurrent kernel a training step runs under the active backend.

    KERAS_BACKEND=jax python -m benchmarks.kernels

On a GPU an LSTM and, but for JAX, a GRU must show cuDNN. Under TensorFlow the
operations of the graph are read, under JAX the calls of the compiled program
that leave XLA, under Torch what its profiler saw.
"""

import argparse
import re

import numpy as np

SHAPE = (64, 64)  # rows, characters


def kernels(cell):
    """Returns the names of what one training step of a cell calls."""
    import keras

    from keras_chargen import CharRNN, CharTokenizer

    characters = [chr(code) for code in range(33, 115)]
    model = CharRNN(CharTokenizer(characters), cell=cell, units=128)
    model.compile()
    ids = np.random.default_rng(0).integers(1, 84, SHAPE).astype("int32")
    weights = np.ones(SHAPE, "float32")
    find = {"tensorflow": _graph, "jax": _program, "torch": _profile}
    return sorted(find[keras.backend.backend()](model, (ids, ids, weights)))


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


def main(arguments=None):
    """Prints the kernels of each cell."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.parse_args(arguments)
    import keras

    print(f"{keras.backend.backend()} on {device()}")
    for cell in ("lstm", "gru"):
        print(f"  {cell}: {', '.join(kernels(cell)) or 'none of its own'}")


if __name__ == "__main__":
    main()
