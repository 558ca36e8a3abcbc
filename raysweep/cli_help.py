"""The help pages: commands in groups with summaries that are never cut, and plain words for what arguments and options take."""

from __future__ import annotations

import re
from typing import Any

import typer
from typer.core import TyperCommand

from raysweep.cli_ends import Commands

START = "Start here"
RUN = "Run a config"
LOOK = "Look at results"
CLUSTER = "Ray clusters"
TOOLS = "Tools"


class GroupedCommands(Commands):
    """The commands, whose help lists them in groups (typer's help panels), in the order in which they were added."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the groups, with the first line of each command's help as its summary."""
        shown = {name: self.commands[name] for name in self.list_commands(ctx) if not self.commands[name].hidden}
        width = max(map(len, shown), default=0)
        groups: dict[str, list[tuple[str, str]]] = {}
        for name, command in shown.items():
            panel = str(getattr(command, "rich_help_panel", None) or "Commands")
            groups.setdefault(panel, []).append((name.ljust(width), summary_of(command)))
        for panel, rows in groups.items():
            with formatter.section(panel):
                formatter.write_dl(rows)


class PlainCommand(TyperCommand):
    """A command whose help has `BASE` instead of `BASE <str>`, and `at least 1` instead of `x>=1`."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return what the usage line says after the command's name."""
        return [piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; what is wrong with a value is printed without pydantic's "Value error"."""
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = error.message.replace("Value error, ", "", 1)
            raise

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then the options."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is not None:
                name, text = record
                is_argument = parameter.param_type_name == "argument"
                section = sections["Arguments" if is_argument else "Options"]
                section.append(
                    (name.partition(" <")[0], _without_required(text)) if is_argument else (name, _plain(text))
                )
        for title, rows in sections.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def summary_of(command: Any) -> str:
    """Return a command's summary: the first line of its help."""
    return next(iter((command.help or "").strip().splitlines()), "")


def _without_required(text: str) -> str:
    return re.sub(r" *\[required\]", "", text)


def _plain(text: str) -> str:
    """Return a help text with ranges in words."""
    return re.sub(r"\bx>=([\d.]+)", r"at least \1", text)
