"""The devices that share a batch in training."""

import contextlib

import keras

from keras_chargen.checks import check_integer
from keras_chargen.compilation import cores


def use_cores(batch_size=None):
    """Trains on every core of a CPU from now on, each with a part of a batch.

    Only JAX needs it, which runs a recurrent layer on one core: each core
    becomes a device, and a `keras.distribution.DataParallel` of them is set.
    Models made before are not moved. Under another backend, or on a GPU,
    nothing changes.

    Args:
        batch_size: Optional positive integer, rows of the batches to come:
            the number of devices must divide it, and fewer may be taken.

    Returns:
        Number of devices that share a batch.

    Raises:
        ValueError: JAX is at work already and has but one device; call this
            before anything else.
    """
    count = cores()
    if batch_size is not None:
        batch_size = check_integer("batch_size", batch_size, 1)
        count = next(n for n in range(count, 0, -1) if batch_size % n == 0)
    if keras.backend.backend() != "jax" or count == 1:
        return 1
    import jax

    # Once JAX is at work it keeps the devices that it has.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)
    if jax.default_backend() != "cpu":
        return 1
    if len(jax.devices()) < count:
        raise ValueError(
            "`use_cores` must be called before JAX is at work. It has "
            f"{len(jax.devices())} device already and {count} cores are there"
        )
    devices = keras.distribution.list_devices()[:count]
    keras.distribution.set_distribution(
        keras.distribution.DataParallel(
            devices=devices, auto_shard_dataset=False
        )
    )
    return count
