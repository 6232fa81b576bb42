"""The reference pages say what the commands say today."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

PAGES = Path(__file__).parents[2] / "docs" / "reference"
PROGRAMS = ("halp-producer", "halp-worker", "halp-store", "halp-probe")


def test_the_pages_are_what_make_reference_writes(reference):
    """A command that changed without its page fails here."""
    expected = reference.pages()
    there = {path.name: path.read_text() for path in PAGES.glob("*.md")}
    stale = sorted(name for name in expected | there if expected.get(name) != there.get(name))
    assert not stale, f"docs/reference: stale: {', '.join(stale)}; do: make reference"


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_page_has_every_command_and_option_that_help_shows(reference, program):
    """The generator reads functions; what typer made of them is asked here, and is no more."""
    on_page = {one.name: _options(one) for one in reference.commands(program)}
    assert {name: _helped(reference, name) for name in _all_commands(reference, program)} == on_page


def _options(command):
    return {name for one in command.options for name in one.names}


def _all_commands(reference, name):
    """As `--help` lists them, groups opened."""
    text = _help(reference, name)
    below = re.findall(r"^  ([a-z][a-z-]*)  ", text.partition("\nCommands:\n")[2], re.MULTILINE)
    return [one for word in below for one in _all_commands(reference, f"{name} {word}")] or [name]


def _helped(reference, name):
    text = _help(reference, name).partition("\nOptions:\n")[2]
    found = re.findall(r"^  (?:-\w, )?(--[a-z-]+)", text, re.MULTILINE)
    return {*found} - {"--help"}


def _help(reference, name):
    program, *words = name.split()
    shown = CliRunner().invoke(
        reference.PROGRAMS[program], [*words, "--help"], prog_name=program, terminal_width=200
    )
    assert shown.exit_code == 0, shown.output
    return shown.output
