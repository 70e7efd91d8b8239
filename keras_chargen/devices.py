"""The devices, and the processes, that share the batches of training."""

import contextlib
import functools
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

    >>> with use_devices(2):
    ...     model = CharRNN(tokenizer)
    ...     model.compile()
    ...     model.fit(lines(texts, tokenizer, batch_size=64))

    Under JAX this is a `keras.distribution.DataParallel`, over the devices of
    all processes where several are joined; under TensorFlow a
    `tf.distribute.MirroredStrategy`. The devices are GPUs where there are any;
    else the CPU becomes as many, up to its cores, provided that the backend
    has not begun to work. To have more of them than cores is the user's own
    choice, made before: `XLA_FLAGS=--xla_force_host_platform_device_count=4`,
    or `tf.config.set_logical_device_configuration`.

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
    if count == 1 and not _is_joined():
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

    All of them call it, before JAX begins to work, and wait for each other
    (`jax.distributed.initialize`). After five minutes of waiting JAX ends the
    process.

    Args:
        coordinator: str `"host:port"`, where process 0 can be reached.
        processes: Positive integer, how many there are.
        number: Integer from 0, which of them this one is.

    Raises:
        ValueError: An argument is out of range, or the backend is another.
    """
    if keras.backend.backend() != "jax":
        raise ValueError(
            "processes are joined under JAX alone. The backend is "
            f"{keras.backend.backend()}"
        )
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isascii() and port.isdigit()):
        raise ValueError(
            f"`coordinator` must be host:port. Received: {coordinator}"
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
    if not _is_joined():
        return 0, 1
    import jax

    return jax.process_index(), jax.process_count()


def refuse_several(what):
    """Raises `ValueError` where several devices share the batches.

    Args:
        what: str, what is for one device alone.
    """
    if _replicas() > 1 or (
        keras.backend.backend() == "jax"
        and keras.distribution.distribution() is not None
    ):
        raise ValueError(f"{what} needs one device that has all of a batch")


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
    replicas = _replicas()
    if replicas == 1:
        return loss
    return loss * replicas * ops.divide_no_nan(weight, sum_of_batch(weight))


def sum_of_batch(value):
    """Returns the sum over the devices of a `MirroredStrategy`, if any."""
    if _replicas() == 1:
        return value
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None:  # On no device: a look at shapes, a sum read already.
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def add_up_gradients_first(optimizer):
    """Makes an optimizer add up the gradients of devices before all else.

    Under a `MirroredStrategy` Keras 3.15 clips those of each device alone and
    adds them up last; where it scales the loss, it looks at those of the first
    device to see whether they are finite.
    """
    if _replicas() == 1:
        return
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    add_up, apply = inner._all_reduce_sum_gradients, optimizer.apply

    def apply_sums(grads, variables):
        pairs = add_up(zip(grads, variables, strict=True))
        apply(*zip(*pairs, strict=True))

    optimizer.apply = apply_sums
    inner._all_reduce_sum_gradients = lambda pairs: pairs


def _is_joined():
    if keras.backend.backend() != "jax":
        return False
    import jax

    # To ask how many processes there are would set JAX to work.
    return jax.distributed.is_initialized()


def _replicas():
    """Returns the number of devices of the `MirroredStrategy`, or 1."""
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def _data_parallel(count):
    import jax

    _begin_jax(count)
    devices = []
    for number in range(jax.process_count()):
        own = [one for one in jax.devices() if one.process_index == number]
        _check_enough(count, own, own[0].platform, f"XLA_FLAGS=--{_FORCED}")
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
    if (
        parts < 0
        and _FORCED not in os.environ.get("XLA_FLAGS", "")
        and count <= cores()
    ):
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
    if kind == "CPU" and count <= cores():
        (cpu,) = tf.config.list_physical_devices("CPU")
        if tf.config.get_logical_device_configuration(cpu) is None:
            parts = [tf.config.LogicalDeviceConfiguration()] * count
            # Once it has begun to work TensorFlow keeps what it has.
            with contextlib.suppress(RuntimeError):
                tf.config.set_logical_device_configuration(cpu, parts)
    found = tf.config.list_logical_devices(kind)
    _check_enough(
        count, found, kind, "tf.config.set_logical_device_configuration"
    )
    return _strategy(tuple(device.name for device in found[:count])).scope()


@functools.cache
def _strategy(names):
    # One for all time: a second counts its messages from 1 again, and
    # TensorFlow 2.21 takes them for those of the first.
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(names)


def _check_enough(count, found, kind, way):
    if len(found) >= count:
        return
    if kind.upper() == "CPU":
        more = (
            f". A CPU becomes as many as its cores, {cores()}, where the "
            f"backend has not begun to work; {way} makes more"
        )
    else:
        more = ""
    raise ValueError(
        f"`count` must be at most the number of {kind.upper()} devices, "
        f"{len(found)}. Received: {count}{more}"
    )
