"""The README's commands exist, with their options and files."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from search.cli import main

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)
PATH = re.compile(r"(?<![\w~/.-])(?:spaces|cluster|tests)/[\w/.-]+\w")


def lines() -> Iterator[str]:
    for block in FENCE.findall((ROOT / "README.md").read_text()):
        for line in block.splitlines():
            yield line.partition("   #")[0].partition(" # ")[0].strip()


def commands() -> list[str]:
    return [line for line in lines() if line.startswith("spiketune ")]


@pytest.mark.parametrize("line", commands())
def test_every_command_is_one_of_ours(line: str) -> None:
    words = [word for word in shlex.split(line.partition(">")[0]) if word != "…"][1:]
    command: click.Command = main
    context = click.Context(main, info_name="spiketune")
    while isinstance(command, click.Group):
        found = command.get_command(context, words.pop(0))
        assert found is not None, line
        command = found
    known = {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
    options = {word.partition("=")[0] for word in words if word.startswith("-")}
    assert options <= known | {"--help"}, line


@pytest.mark.parametrize("path", sorted({p for line in lines() for p in PATH.findall(line)}))
def test_every_file_that_a_command_names_is_there(path: str) -> None:
    assert (ROOT / path).exists(), path


def test_there_are_commands() -> None:
    assert len(commands()) > 10
