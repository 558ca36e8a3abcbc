"""The reference of the command line in Markdown: every command with its arguments and options, from the typer app."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, get_args, get_origin

import typer

from raysweep.cli import app
from raysweep.cli_ends import EXIT_CODES

TYPES = {int: "INTEGER", float: "NUMBER", bool: ""}


def markdown() -> str:
    """The exit codes, the program's own options, and a section for every command that help shows."""
    program: Any = typer.main.get_command(app)
    lines = [*exit_code_lines(EXIT_CODES)]
    lines += ["## raysweep { #raysweep }", "", "```text", "raysweep [OPTIONS] COMMAND [ARGS]", "```", ""]
    lines += parameter_lines(visible(program))
    for name, command in commands(program):
        lines += command_lines(name, command)
    return "\n".join(lines)


def commands(program: Any) -> list[tuple[str, Any]]:
    """The commands that help shows, by name."""
    return [(name, command) for name, command in program.commands.items() if not command.hidden]


def visible(command: Any) -> list[Any]:
    """The arguments and options that help shows."""
    return [each for each in command.params if not getattr(each, "hidden", False)]


def command_lines(name: str, command: Any) -> Iterator[str]:
    """One command: how it is called, what it does, its arguments, its options."""
    parameters = visible(command)
    arguments = [each for each in parameters if each.param_type_name == "argument"]
    yield from [f"## raysweep {name} {{ #{name} }}", "", "```text"]
    yield " ".join(["raysweep", name, "[OPTIONS]", *map(usage, arguments)])
    yield from ["```", "", *paragraphs(command.help), ""]
    yield from parameter_lines(parameters)
    if command.epilog and command.epilog != EXIT_CODES:
        yield from [*paragraphs(command.epilog), ""]
    elif command.epilog:
        yield from ["[Exit codes](#exit-codes)", ""]


def parameter_lines(parameters: list[Any]) -> Iterator[str]:
    """Arguments, then options, each as a term and its definition."""
    for kind, title in (("argument", "Arguments"), ("option", "Options")):
        chosen = [each for each in parameters if each.param_type_name == kind]
        if chosen:
            yield from [f"**{title}**", ""]
        for each in chosen:
            yield from [f"`{names(each)}`", f":   {prose(each.help)}{default(each)}", ""]


def usage(argument: Any) -> str:
    """An argument as the usage line has it: `DATA...`, `[PATH]`."""
    name = metavar(argument) + ("..." if argument.nargs == -1 or argument.multiple else "")
    return name if argument.required else f"[{name}]"


def names(parameter: Any) -> str:
    """What to type: `DATA`, `--limit INTEGER`, `--wait, --no-wait`."""
    if parameter.param_type_name == "argument":
        return usage(parameter)
    spelt = ", ".join([*parameter.opts, *parameter.secondary_opts])
    return f"{spelt} {metavar(parameter)}".strip()


def metavar(parameter: Any) -> str:
    """The word for a parameter's value: its own metavar, the choices, or the type."""
    if parameter.metavar:
        return str(parameter.metavar)
    if parameter.param_type_name == "argument":
        return str(parameter.name).upper()
    annotation = parameter.type_descriptor.annotation
    while get_origin(annotation) in (list, tuple):
        annotation = get_args(annotation)[0]
    if choices := get_args(annotation):
        return "|".join(map(str, choices))
    return TYPES.get(annotation, "PATH" if getattr(annotation, "__name__", "") == "Path" else "TEXT")


def default(parameter: Any) -> str:
    """The default as the end of a definition; nothing if help hides it or there is none."""
    value = parameter.default
    if parameter.required or value is None or parameter.show_default is False or value is False:
        return ""
    if value is True:
        return f" Default: `{parameter.opts[0]}`."
    return f" Default: `{value if isinstance(value, str) else json.dumps(value, default=str).strip(chr(34))}`."


def exit_code_lines(text: str) -> Iterator[str]:
    """The exit codes as a list, from the sentence that the help ends with."""
    yield from ["## Exit codes { #exit-codes }", ""]
    codes = re.split(r"; (?=\d)", " ".join(text.split()).removeprefix("Exit codes: ").removesuffix("."))
    for each in codes:
        found = re.match(r"((?:\d+(?:, | or | and )?)+) (.*)", each)
        yield f"- `{'`, `'.join(re.findall(r'[0-9]+', found[1]))}`: {found[2]}" if found else f"- {each}"
    yield ""


def paragraphs(text: str | None) -> list[str]:
    """Help text as Markdown paragraphs."""
    return [prose(part) + "\n" for part in (text or "").split("\n\n")]


def prose(text: str | None) -> str:
    """Help text in one line of Markdown, options and defaults as code."""
    line = " ".join((text or "").split())
    line = re.sub(r"\[default: ([^\]]+)\]$", r"Default: `\1`.", line)
    return re.sub(r"(?<![\w`-])--[a-z][\w-]*(?: [\w.]+=[^\s,;)]*[^\s,;).])?", r"`\g<0>`", line)
