"""What README shows runs as it stands."""

import itertools
import re
import shlex
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


def smaller(text, *replacements):
    for old, new in replacements:
        assert old in text, f"README no longer holds {old!r}"
        text = text.replace(old, new)
    return text


@pytest.mark.slow
@pytest.mark.trains
def test_the_python_examples_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first, *others = blocks("python")
    first = smaller(
        first,
        ('open_corpus("python-docs")', 'open_corpus("python-docs", limit=300)'),
        ("epochs=5", "epochs=1, verbose=0"),
        ("units=128", "units=16"),
    )
    names = {}
    for source in (first, *others):
        exec(compile(source, "README.md", "exec"), names)
    assert Path("model.keras").is_file()
    assert "epoch 1, temperature 0.8: The " in capsys.readouterr().out


def commands():
    """The commands of README that start ours, as lists of arguments."""
    found = []
    for line in "\n".join(blocks("sh")).splitlines():
        words = shlex.split(line, comments=True)
        for joint, part in itertools.groupby(words, {"&&", "|"}.__contains__):
            part = list(part)
            if not joint and part[0].endswith("keras-chargen"):
                found.append(part[1:])
    return found


def test_readme_shows_every_command():
    shown = {arguments[0] for arguments in commands()}
    assert shown == {
        "train",
        "generate",
        "evaluate",
        "info",
        "prepare",
        "score",
    }


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_the_options_of_a_command_exist(arguments):
    import typer.main

    from keras_chargen.cli import app

    command = typer.main.get_command(app)
    context = command.make_context("keras-chargen", list(arguments))
    name, command, rest = command.resolve_command(
        context, [*context._protected_args, *context.args]
    )
    if name == "prepare":
        group = command.make_context(name, rest, parent=context)
        name, command, rest = command.resolve_command(
            group, [*group._protected_args, *group.args]
        )
    # Raises where an option is unknown, lacks a value or has a wrong one.
    command.make_context(name, rest, parent=context)
