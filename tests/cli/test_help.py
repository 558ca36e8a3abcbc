"""The help pages: no summary is cut, every option is explained in plain words, and shells can complete."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import typer
from command_line import Result

from raysweep import cli_options
from raysweep.cli import app
from raysweep.cli_help import CLUSTER, LOOK, RUN, START, TOOLS, summary_of
from raysweep.data.formats import FORMATS
from raysweep.data.wording import WORDINGS

COMMANDS = typer.main.get_command(app).commands
LONGEST = 58


@pytest.fixture(autouse=True)
def _terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")


def test_every_summary_is_in_the_help_in_full(raysweep):
    page = raysweep("--help").out
    for name, command in COMMANDS.items():
        summary = summary_of(command)
        assert 10 < len(summary) <= LONGEST, f"{name}: {summary}"
        assert summary.endswith("."), name
        assert re.search(rf"^  {name} +{re.escape(summary)}$", page, re.MULTILINE), name
    lines = page.splitlines()
    assert [line for line in lines[1:] if line.endswith("...")] == []
    assert max(map(len, lines)) <= 80


def test_commands_are_grouped_in_the_order_in_which_they_are_needed(raysweep):
    titles = re.findall(r"^(\S.*):$", raysweep("--help").out, re.MULTILINE)
    assert titles == ["Options", START, RUN, LOOK, CLUSTER, TOOLS]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_each_command_explains_what_it_takes(name, raysweep):
    page = raysweep(name, "--help")
    assert raysweep(name, "-h") == page == Result(0, page.out, "")
    for odd in ("<", ">=", "{", "..."):
        assert odd not in page.out.replace("DATA...", ""), odd
    assert max(map(len, page.out.splitlines())) <= 80
    for parameter in COMMANDS[name].params:
        assert getattr(parameter, "hidden", False) or parameter.help, parameter.name
        is_flag = getattr(parameter, "is_flag", False)
        assert is_flag or parameter.metavar, f"{parameter.name} needs a metavar"


def test_help_has_a_short_name(raysweep):
    assert raysweep("-h") == raysweep("--help")


def test_the_names_in_help_are_the_ones_that_there_are():
    assert set(get_args(cli_options.Template)) == set(WORDINGS)
    assert set(cli_options.FORMATS) == {*FORMATS, "columns"}


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("raysweep sw", ["sweep"]),
        ("raysweep sweep --exec", ["--executor"]),
        ("raysweep sweep --executor r", ["ray"]),
        ("raysweep sweep --format bo", ["boolq"]),
        ("raysweep critical --template ll", ["llama2", "llama3"]),
    ],
)
def test_bash_completes(words, found, raysweep, monkeypatch):
    monkeypatch.setenv("_RAYSWEEP_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    assert raysweep().out.split() == found


def test_completion_in_a_real_bash(tmp_path):
    """The script that --show-completion prints, sourced, completes a command."""
    program = tmp_path / "raysweep"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "from raysweep.cli import main; main()" "$@"\n')
    program.chmod(0o755)
    script = f"""
        PATH={tmp_path}:$PATH
        eval "$(_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION=1 raysweep --show-completion bash)"
        COMP_WORDS=(raysweep doc) COMP_CWORD=1
        _raysweep_completion raysweep
        echo "${{COMPREPLY[@]}}"
    """
    root = str(Path(cli_options.__file__).parents[1])
    ended = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": root, "HOME": str(tmp_path)},
        check=False,
    )
    assert ended.stdout.split() == ["doctor"], ended.stderr
