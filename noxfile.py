"""Every check, one session each. `nox` alone runs what CI needs.

Words after `--` reach pytest: `nox -s "tests(jax)" -- -k tokenizer -x`.
"""

import ast
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import nox

nox.needs_version = ">=2026.10.20"
nox.options.default_venv_backend = "uv|virtualenv"
# The quick ones first; pytest has the last word.
nox.options.sessions = [
    "lint",
    "types",
    "build",
    "inference",
    "tests",
    "agreement",
]

CONSTRAINTS = str(Path("constraints.txt").resolve())
TEST = ("hypothesis", "pytest", "pytest-xdist")
TRAINING = ("tensorflow", "jax", "torch")
# What loading, writing and scoring need: the base less TensorFlow, and what
# Keras imports for the backend.
INFERENCE = {
    "numpy": ("keras", "numpy", "rich", "typer", "jax"),
    "openvino": ("keras", "numpy", "rich", "typer", "openvino", "scipy"),
}


def find_links():
    """Returns the folders of wheels that pip is configured with, for uv.

    uv reads none of pip's configuration. A machine that keeps a CPU build of
    Torch in such a folder would fetch gigabytes of CUDA libraries instead.
    """
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        capture_output=True,
        text=True,
    ).stdout
    settings = (line.partition("=") for line in listing.splitlines())
    links = [
        link
        for name, _, value in settings
        if name.endswith(".find-links")
        for link in ast.literal_eval(value).split()
    ]
    return ",".join(dict.fromkeys(links))


# One variable for each installer and each version of it.
INSTALLER_ENV = {
    "PIP_BUILD_CONSTRAINT": CONSTRAINTS,
    "PIP_CONSTRAINT": CONSTRAINTS,
    "UV_BUILD_CONSTRAINT": CONSTRAINTS,
    "UV_CONSTRAINT": CONSTRAINTS,
    "UV_FIND_LINKS": os.environ.get("UV_FIND_LINKS") or find_links() or None,
}


def install(session, *packages):
    """Installs at the versions in `constraints.txt`, build backends too."""
    session.install(*packages, env=INSTALLER_ENV)


def isolate(session, backend):
    """Sets the backend and keeps the user's own settings out."""
    session.env.update(
        KERAS_BACKEND=backend,
        KERAS_HOME=str(session.env_dir.resolve() / "keras"),
        PYTHONPATH=None,
        # Compiled modules serve the next process of the session.
        PYTHONDONTWRITEBYTECODE=None,
        TF_CPP_MIN_LOG_LEVEL="3",
    )


def run_pytest(session, backend, *args):
    """Runs pytest under a backend."""
    isolate(session, backend)
    session.run(
        "pytest",
        # Compiling takes most of the time, one core at a time.
        "--numprocesses=2",
        "--dist=worksteal",
        *args,
        *session.posargs,
        env={"HYPOTHESIS_PROFILE": "ci"},
        # A selection may leave a session no test to run (5).
        success_codes=[0, 5] if session.posargs else [0],
    )


@nox.session
def lint(session):
    """Ruff: rules and format."""
    install(session, "ruff")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session):
    """Mypy, which needs no framework installed."""
    install(session, "mypy", "numpy", "rich", "typer")
    session.run("mypy")


@nox.session
def build(session):
    """The wheel works in an environment and a folder of its own."""
    folder = (session.env_dir / "dist").resolve()
    command = ["pip", "wheel", "--no-deps", "--wheel-dir"]
    if session.venv_backend == "uv":
        command = ["uv", "build", "--wheel", "--out-dir"]
    session.run(*command, str(folder), ".", env=INSTALLER_ENV)
    wheel = max(folder.glob("*.whl"), key=os.path.getmtime)
    if "keras_chargen/py.typed" not in zipfile.ZipFile(wheel).namelist():
        session.error(f"{wheel.name} lacks py.typed")

    install(session, str(wheel))
    isolate(session, "tensorflow")
    session.chdir(folder)
    session.run("keras-chargen", "--help", silent=True)
    session.run("python", "-m", "keras_chargen", "--help", silent=True)
    session.run(
        "python",
        "-c",
        "import keras_chargen as k; print(k.__version__, k.CharRNN.__name__)",
    )


@nox.session
@nox.parametrize("backend", list(INFERENCE), ids=INFERENCE)
def inference(session, backend):
    """Loading, writing and scoring work where TensorFlow is missing."""
    install(session, *INFERENCE[backend], *TEST)
    install(session, "--no-deps", "-e", ".")
    run_pytest(session, backend, "--ignore=tests/agreement")


@nox.session
@nox.parametrize("backend", TRAINING, ids=TRAINING)
def tests(session, backend):
    """All tests but those that compare backends."""
    # The example needs but one.
    extra = {"tensorflow": "", "torch": ",torch,examples"}.get(
        backend, f",{backend}"
    )
    install(session, "-e", f".[hub,tensorboard{extra}]", *TEST)
    run_pytest(session, backend, "--ignore=tests/agreement")


@nox.session
def agreement(session):
    """One model file under five backends, each in a process of its own."""
    install(session, "-e", ".[jax,openvino,torch]", *TEST)
    # The processes that it starts run side by side already.
    run_pytest(session, "tensorflow", "tests/agreement", "--numprocesses=0")


@nox.session(default=False)
def bench(session):
    """All benchmarks, then what must be reached; words go to the command."""
    install(session, "-e", ".[bench,hub,jax,torch]")
    isolate(session, "tensorflow")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session(default=False)
def lock(session):
    """Rewrites `constraints.txt`: the newest versions for every extra."""
    install(session, "uv")
    more = Path(session.create_tmp(), "more.txt")
    # The build backend; and Torch as our machines have it, built for a CPU.
    more.write_text("editables\nhatchling\ntorch==2.13.0\n")
    session.run(
        "uv",
        "pip",
        "compile",
        "pyproject.toml",
        str(more),
        "--all-extras",
        "--universal",
        "--fork-strategy=fewest",
        "--python-version=3.11",
        "--upgrade",
        "--no-annotate",
        "--custom-compile-command=nox -s lock",
        "--output-file=constraints.txt",
        "--quiet",
    )
