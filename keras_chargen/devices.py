"""The devices, and the processes, that share the batches of training."""

import contextlib
import os

import keras
import numpy as np
from keras import ops

from keras_chargen.checks import check_integer
from keras_chargen.compilation import cores

_FORCED = "xla_force_host_platform_device_count"


def use_devices(count, batch_size=None):
    """Trains on several devices, each with its rows of a batch.

    The model must be made, or loaded, compiled and trained inside:

    >>> with use_devices(4):
    ...     model = CharRNN(tokenizer)
    ...     model.compile()
    ...     model.fit(lines(texts, tokenizer, batch_size=64))

    Under JAX this is a `keras.distribution.DataParallel`, over the devices of
    all processes where several are joined (`jax.distributed.initialize`);
    under TensorFlow a `tf.distribute.MirroredStrategy`. The devices are GPUs
    where there are any; else the CPU becomes as many, provided that the
    backend has not begun to work.

    Args:
        count: Positive integer, devices of this process. 1 changes nothing,
            unless processes are joined.
        batch_size: Optional positive integer, rows of the batches to come in
            this process: checked now, not at the first batch.

    Returns:
        A context manager.

    Raises:
        ValueError: There are fewer devices, they do not divide a batch, or
            the backend trains on one alone.
    """
    count = check_integer("count", count, 1)
    if batch_size is not None:
        batch_size = check_integer("batch_size", batch_size, 1)
        if batch_size % count:
            raise ValueError(
                "`batch_size` must be a multiple of the number of devices, "
                f"{count}. Received: {batch_size}"
            )
    if count == 1 and process()[1] == 1:
        return contextlib.nullcontext()
    backend = keras.backend.backend()
    if backend == "jax":
        return _data_parallel(count)
    if backend == "tensorflow":
        return _mirrored(count)
    raise ValueError(
        f"`count` must be 1 under {backend}: several devices train under JAX "
        f"and TensorFlow. Received: {count}"
    )


def join(coordinator, processes, number):
    """Joins this process to others that train the same model, under JAX.

    All of them call it, before anything else, and wait for each other.

    Args:
        coordinator: str `"host:port"`, where process 0 can be reached.
        processes: Positive integer, how many there are.
        number: Integer from 0, which of them this one is.
    """
    if keras.backend.backend() != "jax":
        raise ValueError(
            "processes are joined under JAX alone. The backend is "
            f"{keras.backend.backend()}"
        )
    processes = check_integer("processes", processes, 1)
    number = check_integer("number", number, 0)
    if number >= processes:
        raise ValueError(
            f"`number` must be below the number of processes, {processes}. "
            f"Received: {number}"
        )
    import jax

    jax.distributed.initialize(coordinator, processes, number)


def process():
    """Returns the number of this process, and how many are joined."""
    if keras.backend.backend() != "jax":
        return 0, 1
    import jax

    # The question how many there are would set JAX to work.
    if not jax.distributed.is_initialized():
        return 0, 1
    return jax.process_index(), jax.process_count()


def shard(texts):
    """Yields this process's part of texts that all processes read.

    Each takes every n-th text of n processes. All of them pass by, so that
    whoever counts them counts the same in every process.

    Args:
        texts: Iterable.

    Raises:
        ValueError: There are fewer texts than processes.
    """
    number, processes = process()
    count = 0
    for count, text in enumerate(texts, 1):
        if (count - 1) % processes == number:
            yield text
    if count < processes:
        raise ValueError(
            "there must be at least as many texts as processes, "
            f"{processes}. Received: {count}"
        )


def exchange(array):
    """Returns what each process gave: all call it, with arrays of one shape.

    Args:
        array: NumPy array of integers below 2 ** 31.

    Returns:
        NumPy array `(processes, …)`.
    """
    if process()[1] == 1:
        return array[None]
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array.astype("int32")))


def mean_of_batch(loss, weight):
    """Makes the mean over a device's rows its part of that over all rows.

    Keras takes the mean of the means of a `MirroredStrategy`'s devices, so
    where the rows of a device hold fewer characters they would count more.

    Args:
        loss: Mean over this device's rows, divided by the number of devices.
        weight: What `loss` was divided by, besides.

    Returns:
        The loss, such that the sum over devices is the mean over all rows.
    """
    if _replicas() == 1:
        return loss
    share = ops.divide_no_nan(weight, sum_of_batch(weight))
    return loss * share * _replicas()


def sum_of_batch(value):
    """Returns the sum over the devices of a `MirroredStrategy`, if any."""
    return value if _replicas() == 1 else _add_up([value])[0]


def clip_whole_gradients(optimizer):
    """Makes an optimizer clip gradients after the devices' are added up.

    Keras 3.15 clips those of each device of a `MirroredStrategy` alone, and
    adds them up then; where it scales the loss, it looks at those of the first
    device to see whether they are finite.
    """
    if _replicas() == 1:
        return
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    clip, apply = inner._clip_gradients, optimizer.apply
    inner._clip_gradients = lambda grads: _share(clip(_add_up(grads)))
    if inner is not optimizer:
        optimizer.apply = lambda grads, variables: apply(
            _share(_add_up(grads)), variables
        )


def _replicas():
    """Returns the number of devices of the `MirroredStrategy`, or 1."""
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def _add_up(tensors):
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None:  # A look at shapes, on no device.
        return tensors
    return context.all_reduce(tf.distribute.ReduceOp.SUM, tensors)


def _share(tensors):
    """Divides sums into parts that the devices add up once more."""
    import tensorflow as tf

    # This one takes the sparse gradients of an embedding too.
    return [tf.math.scalar_mul(1 / _replicas(), x) for x in tensors]


def _data_parallel(count):
    import jax

    _begin_jax(count)
    devices = []
    for number in range(jax.process_count()):
        own = [one for one in jax.devices() if one.process_index == number]
        _check_enough(
            count, own, own[0].platform, f"XLA_FLAGS=--{_FORCED}={count}"
        )
        devices += [f"{one.platform}:{one.id}" for one in own[:count]]
    return keras.distribution.DataParallel(
        devices=devices, auto_shard_dataset=False
    ).scope()


def _begin_jax(count):
    """Makes as many devices of a CPU, and as many threads as they need."""
    import jax

    # On a CPU each device blocks a thread of XLA's pool while it waits for
    # the others, and one more when it may not run further ahead of them.
    needed = 2 * count
    threads = int(os.environ.get("NPROC", cores()))
    parts = jax.config.jax_num_cpu_devices
    if parts < 0 and _FORCED not in os.environ.get("XLA_FLAGS", ""):
        parts = count
    try:
        jax.config.update("jax_num_cpu_devices", parts)
    except RuntimeError:  # JAX has begun to work.
        if threads < needed and jax.default_backend() == "cpu":
            raise ValueError(
                f"JAX has begun to work with {threads} threads, and {count} "
                f"devices of a CPU need {needed}, or they wait for each other "
                "for ever: call `use_devices` before JAX works, or set "
                f"NPROC={needed} in the environment"
            ) from None
        return
    os.environ["NPROC"] = str(max(needed, threads))


def _mirrored(count):
    import tensorflow as tf

    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    if kind == "CPU":
        (cpu,) = tf.config.list_physical_devices("CPU")
        parts = [tf.config.LogicalDeviceConfiguration()] * count
        # Once TensorFlow has begun to work it keeps the devices that it has.
        with contextlib.suppress(RuntimeError):
            tf.config.set_logical_device_configuration(cpu, parts)
    found = tf.config.list_logical_devices(kind)
    way = "tf.config.set_logical_device_configuration"
    _check_enough(count, found, kind, way)
    names = [device.name for device in found[:count]]
    return tf.distribute.MirroredStrategy(names).scope()


def _check_enough(count, found, kind, way):
    if len(found) < count:
        more = (
            ". A CPU becomes several where the backend has not begun to work: "
            f"call `use_devices` first, or set {way}"
        )
        raise ValueError(
            f"`count` must be at most the number of {kind.upper()} devices, "
            f"{len(found)}. Received: {count}"
            + (more if kind.upper() == "CPU" else "")
        )
