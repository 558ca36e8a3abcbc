"""The reference of the command line has every command, argument and option, and no other."""

from __future__ import annotations

import re

import cli_reference
import pytest
import typer

from raysweep.cli import app
from raysweep.cli_ends import EXIT_CODES

PROGRAM = typer.main.get_command(app)
COMMANDS = dict(cli_reference.commands(PROGRAM))
PAGE = cli_reference.markdown()
SECTIONS = dict(re.findall(r"^## raysweep ?(\w*) \{ #\S+ \}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def test_every_command_has_a_section_and_nothing_else_has():
    assert set(SECTIONS) == {"", *COMMANDS}
    assert {"demo", "sweep", "plan", "run", "critical", "doctor"} <= set(COMMANDS)


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_a_section_has_the_options_and_arguments_of_its_command(name):
    command = COMMANDS[name] if name else PROGRAM
    shown = re.findall(r"^`([^`]+)`$", SECTIONS[name], re.MULTILINE)
    options = {word.rstrip(",") for term in shown for word in term.split() if word.startswith("-")}
    assert options == {
        spelt
        for each in command.params
        if not getattr(each, "hidden", False)
        for spelt in each.opts + each.secondary_opts
        if spelt.startswith("-")
    }
    arguments = [term for term in shown if not term.startswith("-")]
    assert len(arguments) == sum(each.param_type_name == "argument" for each in command.params)


def test_every_option_and_command_says_what_it_does():
    for name, command in COMMANDS.items():
        assert command.help, name
        for each in cli_reference.visible(command):
            assert (each.help or "").strip(), f"{name}: {each.name}"


def test_exit_codes_are_a_list_of_all_numbers_that_help_names():
    numbers = re.findall(r"`(\d+)`", "\n".join(cli_reference.exit_code_lines(EXIT_CODES)))
    assert numbers == re.findall(r"\b\d+\b", EXIT_CODES)
    assert {"0", "1", "2", "3", "130"} <= set(numbers)


def test_terms_types_and_defaults():
    some = typer.Typer()

    @some.command()
    def one(
        data: list[str] = typer.Argument(help="Records."),  # noqa: B008
        path: str = typer.Argument("here", help="Where."),
        width: list[int] = typer.Option(None, help="Widths."),  # noqa: B008
        wait: bool = typer.Option(True, help="Wait."),
        secret: str = typer.Option("x", hidden=True),
    ) -> None:
        """Do one thing."""

    @some.command()
    def other() -> None:
        """Do another."""

    text = "\n".join(cli_reference.command_lines("one", typer.main.get_command(some).commands["one"]))
    assert "raysweep one [OPTIONS] DATA... [PATH]" in text
    assert "`[PATH]`\n:   Where. Default: `here`." in text
    assert "`--width INTEGER`\n:   Widths.\n" in text
    assert "`--wait, --no-wait`\n:   Wait. Default: `--wait`." in text
    assert "secret" not in text


def test_help_becomes_markdown():
    assert (
        cli_reference.prose("Columns\n  (with --prompt). [default: chat]")
        == "Columns (with `--prompt`). Default: `chat`."
    )
    assert cli_reference.prose("Change --set a.b=16, or --set c=9.") == "Change `--set a.b=16`, or `--set c=9`."
    assert cli_reference.prose("As `--set a.b=1` has it; two - three.") == "As `--set a.b=1` has it; two - three."
