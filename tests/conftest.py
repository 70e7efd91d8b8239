"""Set up before any test: backend, warnings, Hypothesis, shared fixtures."""

import importlib.util
import os
import sys
from importlib import metadata
from pathlib import Path

import hypothesis
import pytest

# No test finds, or leaves behind, programs in the user's home.
os.environ["KERAS_CHARGEN_CACHE"] = "off"

# Torch imported after TensorFlow can crash the process.
if importlib.util.find_spec("torch"):
    import torch  # noqa: F401
import keras

HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None
TRAINS = keras.backend.backend() in ("tensorflow", "jax", "torch")

keras.config.disable_traceback_filtering()

# The first call of anything compiles, so a deadline says nothing.
# Eager OpenVINO compiles every operation: a tenth of the examples there.
EXAMPLES = 10 if keras.backend.backend() == "openvino" else 100
hypothesis.settings.register_profile(
    "local", deadline=None, max_examples=EXAMPLES
)
hypothesis.settings.register_profile(
    "ci",
    deadline=None,
    max_examples=EXAMPLES,
    derandomize=True,
    print_blob=True,
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "local"))


def pytest_report_header():
    versions = []
    for name in ("keras", "tensorflow", "jax", "torch", "openvino", "numpy"):
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            versions.append(f"no {name}")
    return [f"backend: {keras.backend.backend()}", ", ".join(versions)]


def pytest_collection_modifyitems(items):
    skips = []
    if not HAS_TENSORFLOW:
        reason = "TensorFlow is not installed"
        skips.append(("needs_tensorflow", pytest.mark.skip(reason=reason)))
    if not TRAINS:
        reason = f"{keras.backend.backend()} does not train"
        skips.append(("trains", pytest.mark.skip(reason=reason)))
    for item in items:
        for name, skip in skips:
            if item.get_closest_marker(name):
                item.add_marker(skip)
        under = item.get_closest_marker("under")
        if under and keras.backend.backend() not in under.args:
            reason = f"runs under {', '.join(under.args)}"
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real data that lies beside the checkout, if it does."""
    path = Path(__file__).parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("shared/data is not beside this checkout")
    return path


@pytest.fixture
def benchmarks(monkeypatch):
    """Lets a test import the package `benchmarks` of this checkout."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    yield
    for name in [m for m in sys.modules if m.split(".")[0] == "benchmarks"]:
        del sys.modules[name]
