"""Model files, looked through before Keras reads them.

A stranger may have written them. A file is refused where it holds more than a
model, names a class that a model is not made of, or would take memory that
its own bytes do not fill.
"""

import io
import json
import math
import stat
import sys
import zipfile

import h5py
import keras

import keras_chargen.optimizers  # noqa: F401 (what a file may name)
from keras_chargen.checks import check_integer
from keras_chargen.model import CharRNN
from keras_chargen.tokenizer import CharTokenizer

_CONFIG, _METADATA, _WEIGHTS = (
    "config.json",
    "metadata.json",
    "model.weights.h5",
)
_MAX_JSON = 1 << 22  # half of it holds every character that Unicode assigns
_MAX_DEPTH = 32
_MAX_OBJECTS = 64
_MAX_SIZE = 1000  # thresholds or classes of a metric, which takes a square

# Under Torch an optimizer of Keras is one of another name.
_OF_TORCH = "keras.src.backend.torch.optimizers.torch_"

_PARTS = (CharTokenizer, keras.DTypePolicy)
_TRAINING = (
    keras.DTypePolicy,
    keras.losses.Loss,
    keras.metrics.Metric,
    keras.optimizers.Optimizer,
    keras.optimizers.schedules.LearningRateSchedule,
)


def inspect(file):
    """Refuses what is no model file of this library.

    Args:
        file: Binary file, open for reading.

    Returns:
        Integer, how many numbers its weights are.

    Raises:
        ValueError: What is wrong with it. From a damaged file the libraries
            that read zip and HDF5 raise other exceptions too.
    """
    with zipfile.ZipFile(file) as archive:
        _check_members(archive, file.seek(0, io.SEEK_END))
        _read(archive, _METADATA, _MAX_JSON)
        config = _model_config(_read(archive, _CONFIG, _MAX_JSON))
        weights = io.BytesIO(_read(archive, _WEIGHTS))
    try:
        with h5py.File(weights, "r") as tree:
            arrays, numbers = _count(tree, weights.getbuffer().nbytes)
    except (OSError, RuntimeError, KeyError) as error:
        raise ValueError(f"{_WEIGHTS} is damaged: {error}") from error
    # Every model has at least these, whatever its cells are.
    units, layers, width = (
        check_integer(name, config[name], 1) if config.get(name) else 0
        for name in ("units", "num_layers", "embedding_dim")
    )
    check_fit("layers", layers, "arrays", arrays)
    check_fit("weights", layers * units + width, "numbers", numbers)
    return numbers


def check_fit(wanted, count, held, limit):
    """Raises `ValueError` where the weights are too few for the config."""
    if count > limit:
        raise ValueError(
            f"{_CONFIG} asks for {count:,} {wanted} or more, and {_WEIGHTS} "
            f"holds {limit:,} {held}"
        )


def _check_members(archive, size):
    members = archive.infolist()
    names = [member.filename for member in members]
    for name in (_CONFIG, _METADATA, _WEIGHTS):
        if name not in names:
            raise ValueError(f"it has no {name}")
        names.remove(name)
    if names:
        raise ValueError(f"it holds more than a model: {names[0]}")
    for member in members:
        # As Keras writes them: what is read is no more than what is there.
        if (
            member.compress_type != zipfile.ZIP_STORED
            or member.flag_bits & 1  # encrypted
            or not member.file_size == member.compress_size <= size
            or stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG)
        ):
            raise ValueError(f"{member.filename} is not a plain, stored file")


def _read(archive, name, limit=math.inf):
    size = archive.getinfo(name).file_size
    if size > limit:
        raise ValueError(f"{name} has {size:,} bytes; {limit:,} are too many")
    try:
        return archive.read(name)
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{name} is damaged") from error


def _model_config(data):
    """Returns the arguments of the model, once every object is known."""
    try:
        root = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{_CONFIG} cannot be read: {error}") from error
    if not isinstance(root, dict):
        raise ValueError(f"{_CONFIG} describes no object")
    _check_object(root, (CharRNN,))
    for key, value in root.items():
        objects = [*_objects(value)]
        if len(objects) > _MAX_OBJECTS:
            raise ValueError(f"{_CONFIG} holds {len(objects)} objects")
        for record in objects:
            _check_object(
                record, _TRAINING if key == "compile_config" else _PARTS
            )
    return root["config"]


def _objects(value, depth=0):
    """Yields what stands for objects in a config, however deep."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"{_CONFIG} is nested too deep")
    if isinstance(value, dict):
        if "class_name" in value:
            yield value
        value = value.values()
    elif not isinstance(value, list):
        return
    for inner in value:
        yield from _objects(inner, depth + 1)


def _check_object(record, kinds):
    kind, config = _kind(record), record.get("config")
    if kind is None or not issubclass(kind, kinds):
        wanted = "not" if CharRNN in kinds else "no part of"
        raise ValueError(
            f"it holds a {record.get('class_name')}, {wanted} a CharRNN"
        )
    if not isinstance(config, dict):
        raise ValueError(f"{_CONFIG} says nothing of its {kind.__name__}")
    if kind is CharTokenizer and not isinstance(config.get("vocabulary"), list):
        raise ValueError(
            f"the vocabulary must be a list in {_CONFIG}. Received: "
            f"{config.get('vocabulary')}"
        )
    if issubclass(kind, keras.metrics.Metric):
        for name, value in config.items():
            if isinstance(value, int) and value > _MAX_SIZE:
                raise ValueError(
                    f"`{name}` of {kind.__name__} must be at most {_MAX_SIZE}. "
                    f"Received: {value}"
                )


def _kind(record):
    """Returns the class that Keras would make of a record, or None."""
    name, registered = record.get("class_name"), record.get("registered_name")
    if registered is None or registered == name:
        module = str(record.get("module"))
        if module == f"{_OF_TORCH}{str(name).lower()}":
            # Keras imports that room when the first optimizer is made.
            module = "keras.optimizers"
        if module.split(".")[0] != "keras" or module not in sys.modules:
            return None
        kind = getattr(sys.modules[module], str(name), None)
    else:
        kind = keras.saving.get_registered_object(str(registered))
    # Keras acts on some names, such as `__lambda__`, before it looks them up.
    is_so = isinstance(kind, type) and kind.__name__ == name
    return kind if is_so else None


def _count(tree, limit):
    """Returns how many arrays HDF5 holds, and how many numbers they have.

    Refuses all that Keras does not write: links to elsewhere, filters, and
    arrays of more than `limit` bytes together.
    """
    arrays = numbers = size = 0
    seen = set()
    groups = [(tree, 0)]
    while groups:
        group, depth = groups.pop()
        for name in group:
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink) or depth > _MAX_DEPTH:
                raise ValueError(f"{_WEIGHTS} links to elsewhere: {name}")
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                raise ValueError(f"{_WEIGHTS} holds {name} twice")
            seen.add(address)
            if isinstance(item, h5py.Group):
                groups.append((item, depth + 1))
                continue
            if not _is_plain(item) or size + item.nbytes > limit:
                raise ValueError(f"{_WEIGHTS} holds no array in {name}")
            arrays += 1
            numbers += item.size
            size += item.nbytes
    return arrays, numbers


def _is_plain(item):
    """Whether an object in HDF5 is an array of numbers in its place."""
    if not isinstance(item, h5py.Dataset) or item.shape is None:
        return False
    dtype, how = item.dtype, item.id.get_create_plist()
    return (
        how.get_layout() in (h5py.h5d.COMPACT, h5py.h5d.CONTIGUOUS)
        and how.get_external_count() == 0
        # bfloat16 is two bytes and an attribute that says so.
        and (dtype.kind in "iuf" or dtype == "V2")
        and all(
            name == "dtype" and item.attrs.get_id(name).get_storage_size() <= 16
            for name in item.attrs
        )
    )
