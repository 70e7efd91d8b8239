"""Compiled programs serve the next process; no cache breaks a command."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from keras_chargen import CharRNN, CharTokenizer, caching, save_model
from keras_chargen.caching import keep_programs

ROOT = Path(__file__).parents[1]
BACKEND = keras.backend.backend()
# A folder may have any name.
FOLDER = 'pro "grams'
# Runs the command line; tells JAX's misses on standard error.
COMMAND = """
import sys
import keras
if keras.backend.backend() == "jax":
    from jax import monitoring
    def tell(event, **_):
        if event == "/jax/compilation_cache/cache_misses":
            print("compiled", file=sys.stderr)
    monitoring.register_event_listener(tell)
from keras_chargen import cli
cli.main(sys.argv[1:])
"""

compiles = pytest.mark.skipif(
    BACKEND not in ("jax", "tensorflow"), reason="compiles nothing"
)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    keras.utils.set_random_seed(0)
    path = tmp_path_factory.mktemp("model") / "m.keras"
    save_model(CharRNN(CharTokenizer([*"abc"]), units=4), path)
    return path


def write(model_file, cache=None, **settings):
    """Runs `generate` in a process of its own: `(stdout, stderr)`."""
    settings["TF_XLA_FLAGS"] = settings.get("TF_XLA_FLAGS", "")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **settings}
    environment.pop(caching.VARIABLE)
    if cache is not None:
        environment[caching.VARIABLE] = str(cache)
    result = subprocess.run(
        [
            *(sys.executable, "-W", "always", "-c", COMMAND),
            *("generate", str(model_file), "--prompt", "ab"),
        ],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout, result.stderr


def files(folder):
    """What lies there: the bytes of each file."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def filled(model_file, tmp_path_factory):
    """A folder that a first command has filled, and the text it wrote."""
    folder = tmp_path_factory.mktemp("cache") / FOLDER
    return folder, write(model_file, folder)[0]


@pytest.mark.slow
@compiles
def test_a_second_process_compiles_nothing(filled, model_file):
    folder, text = filled
    before = files(folder)
    out, err = write(model_file, folder)
    assert before and files(folder) == before
    assert "compiled" not in err
    assert out == text


@pytest.mark.slow
@compiles
def test_damaged_programs_are_harmless(filled, model_file, tmp_path):
    write(model_file, tmp_path)
    paths = [path for path in tmp_path.rglob("*") if path.is_file()]
    for i, path in enumerate(paths):
        os.truncate(path, 100 * (i % 2))
    out, err = write(model_file, tmp_path)
    assert paths and out == filled[1]
    assert "persistent compilation cache" not in err


@pytest.mark.slow
def test_a_folder_that_cannot_be_made_is_harmless(filled, model_file, tmp_path):
    path = tmp_path / "file"
    path.touch()
    assert write(model_file, path / "programs")[0] == filled[1]


@pytest.mark.slow
@compiles
def test_by_default_programs_are_in_the_folder_of_keras(model_file, tmp_path):
    write(model_file, KERAS_HOME=str(tmp_path))
    assert files(tmp_path / "keras_chargen")


@pytest.mark.slow
def test_off_leaves_no_files(model_file, tmp_path):
    write(model_file, "off", KERAS_HOME=str(tmp_path))
    assert not (tmp_path / "keras_chargen").exists()


@pytest.mark.slow
@compiles
def test_a_cache_of_the_users_own_is_left_alone(model_file, tmp_path):
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    write(
        model_file,
        ours,
        JAX_COMPILATION_CACHE_DIR=str(theirs),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        TF_XLA_FLAGS=f"--tf_xla_persistent_cache_directory={theirs}",
    )
    assert files(theirs) and not files(ours)


@pytest.mark.slow
def test_the_library_keeps_nothing_unasked(model_file, tmp_path):
    source = """
import sys
import keras_chargen
print(keras_chargen.load_model(sys.argv[1]).generate("ab", 3))
"""
    subprocess.run(
        [sys.executable, "-c", source, str(model_file)],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            caching.VARIABLE: str(tmp_path),
        },
        check=True,
    )
    assert not files(tmp_path)


# ---------------------------------------------------------- which folder


@pytest.fixture
def kept(monkeypatch):
    """Tells which folders a backend is given; it sets nothing."""
    folders = []

    def keep(folder):
        folders.append(folder)
        return True

    monkeypatch.setattr(caching, "keeper", lambda: keep)
    return folders


def test_the_backend_is_given_a_folder_that_is_there(kept, tmp_path):
    place = keep_programs(tmp_path / "a" / "b")
    assert kept == [place]
    assert place.is_dir() and place.parent == tmp_path / "a" / "b"


def test_the_variable_names_the_folder(kept, tmp_path, monkeypatch):
    monkeypatch.setenv(caching.VARIABLE, str(tmp_path))
    assert keep_programs().parent == tmp_path


def test_the_variable_switches_it_off(kept, monkeypatch):
    monkeypatch.setenv(caching.VARIABLE, "off")
    assert keep_programs() is None
    assert not kept


def test_a_relative_folder_is_made_absolute(kept, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert keep_programs("programs").parent == tmp_path / "programs"


@pytest.mark.parametrize("what", ["backend", "Keras", "processor"])
def test_each_version_and_processor_has_a_folder(
    kept, tmp_path, monkeypatch, what
):
    place = keep_programs(tmp_path)
    if what == "processor":
        monkeypatch.setattr(caching, "_processor", lambda: "flags: none")
    else:
        module = keras if what == "Keras" else sys.modules[BACKEND]
        monkeypatch.setattr(module, "__version__", "0.0.1")
    assert keep_programs(tmp_path) != place
    assert place.is_dir()


def test_a_folder_that_cannot_be_written_is_none(kept, tmp_path, monkeypatch):
    def refuse(**_):
        raise OSError("Read-only file system")

    monkeypatch.setattr(caching.tempfile, "TemporaryFile", refuse)
    assert keep_programs(tmp_path) is None
    assert not kept


def test_the_oldest_programs_go_where_there_are_too_many(
    kept, tmp_path, monkeypatch
):
    place = keep_programs(tmp_path)
    other = tmp_path / f"jax-{'0' * 16}"
    theirs = tmp_path / "letters-of-theirs"
    for age, path in enumerate(
        (place / "new", place / "older", other / "oldest", theirs / "old")
    ):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(10))
        os.utime(path, (1000 - age, 1000 - age))
    monkeypatch.setattr(caching, "LIMIT", 20)
    keep_programs(tmp_path)
    left = {path.name for path in files(tmp_path)}
    assert left == {"new", "older", "old"}
    monkeypatch.setattr(caching, "LIMIT", 19)
    keep_programs(tmp_path)
    assert {path.name for path in files(tmp_path)} == {"new", "old"}


def test_a_user_without_a_home_keeps_nothing(kept, monkeypatch):
    def expand(_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv(caching.VARIABLE)
    monkeypatch.delenv("KERAS_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", expand)
    assert keep_programs() is None
    assert not kept


def test_a_processor_without_proc_has_a_name_too(kept, tmp_path, monkeypatch):
    place = keep_programs(tmp_path)

    def missing(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(caching, "open", missing, raising=False)
    assert keep_programs(tmp_path) != place


@pytest.mark.skipif(BACKEND in ("jax", "tensorflow"), reason="compiles")
def test_a_backend_that_compiles_nothing_leaves_no_folder(tmp_path):
    assert keep_programs(tmp_path / "programs") is None
    assert not (tmp_path / "programs").exists()
