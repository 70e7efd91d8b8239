"""The project's own promises: versions, imports, what its files say."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import keras_chargen

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "keras_chargen"
ROOMS = sorted(
    path.relative_to(PACKAGE).with_suffix("").as_posix()
    for path in PACKAGE.rglob("*.py")
)

# Third-party modules that a room may import: anywhere, and beyond that inside
# functions alone. The rooms not named here may import Keras and NumPy.
ANYWHERE = {
    "__init__": set(),
    "__main__": set(),
    "bulk": set(),
    "cli": {"typer"},
    "coloring": set(),
    "corpora": set(),
    "files": set(),
    "graph_text": {"numpy", "tensorflow"},
    "inspection": {"h5py", "keras"},
    "pipeline": {"keras", "numpy", "tensorflow"},
    "templates": set(),
    "tensorboard": {"tensorflow"},
}
INSIDE_FUNCTIONS = {
    "callbacks": {"rich"},
    "cli": {"keras", "numpy", "rich"},
    "coloring": {"rich"},
    "compilation": {"jax", "openvino", "tensorflow", "torch"},
    "corpora": {"tensorflow", "tensorflow_datasets"},
    "devices": {"jax", "tensorflow"},
    "recurrent": {"torch"},
}


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def imports(tree):
    """Yields `(module, in_function)`; `from a import b` counts as `a.b`."""

    def visit(node, in_function):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, in_function
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield f"{node.module}.{alias.name}", in_function
        in_function |= isinstance(
            node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
        )
        for child in ast.iter_child_nodes(node):
            yield from visit(child, in_function)

    yield from visit(tree, False)


def imports_of_room(room):
    return list(imports(ast.parse(read(f"keras_chargen/{room}.py"))))


def pins():
    """The version in `constraints.txt` of each name, for this Python."""
    lines = read("constraints.txt").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    return {
        pin.name: str(pin.specifier).removeprefix("==")
        for pin in pins
        if pin.marker is None or pin.marker.evaluate()
    }


def project():
    return tomllib.loads(read("pyproject.toml"))["project"]


def test_imports_are_found_at_every_level():
    source = "import a\ndef f():\n  if 1:\n    from b.c import d\n"
    assert list(imports(ast.parse(source))) == [("a", False), ("b.c.d", True)]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_the_design_permits(room):
    anywhere = ANYWHERE.get(room, {"keras", "numpy"})
    inside = anywhere | INSIDE_FUNCTIONS.get(room, set())
    for module, in_function in imports_of_room(room):
        top = module.partition(".")[0]
        if top in sys.stdlib_module_names or top == "keras_chargen":
            continue
        assert top in (inside if in_function else anywhere), module


def test_the_decode_loop_imports_no_model():
    modules = [module for module, _ in imports_of_room("generation")]
    assert not [m for m in modules if m.startswith("keras_chargen.model")]


def test_the_command_line_imports_no_room_before_it_must():
    early = {m for m, in_function in imports_of_room("cli") if not in_function}
    assert not [m for m in early if m.startswith("keras_chargen")]


def test_ci_runs_the_test_command_of_the_readme():
    found = re.search(
        r"^<!-- test command -->\n+```sh\n(.+)\n```$", read("README.md"), re.M
    )
    assert found, "README.md marks no test command"
    assert found[1] in read(".ci/run").splitlines()


def test_the_newest_version_in_the_changelog_is_the_packages():
    versions = re.findall(r"^## \[(\d[^\]]*)\]", read("CHANGELOG.md"), re.M)
    assert versions[0] == keras_chargen.__version__


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").is_file()


def test_every_lower_bound_is_a_version_that_is_tested():
    extras = project()["optional-dependencies"]
    lists = [project()["dependencies"], *extras.values()]
    pinned = pins()
    for requirement in {r for requirements in lists for r in requirements}:
        requirement = Requirement(requirement)
        bound = str(requirement.specifier).removeprefix(">=")
        assert f"{pinned[requirement.name]}.".startswith(f"{bound}.")


def test_hooks_run_the_pinned_tools():
    hooks = re.findall(r"([\w-]+)==([\w.]+)", read(".pre-commit-config.yaml"))
    assert {name for name, _ in hooks} >= {"ruff", "mypy"}
    pinned = pins()
    assert hooks == [(name, pinned[name]) for name, _ in hooks]


def test_no_file_names_a_folder_of_the_machine_it_was_written_on():
    listing = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    # In two parts, or this file would name them too.
    needles = [f"/{folder}/".encode() for folder in ("work", "root")]
    for name in filter(None, listing.stdout.decode().split("\0")):
        path = ROOT / name
        if path.is_file():
            content = path.read_bytes()
            assert not [n for n in needles if n in content], name
