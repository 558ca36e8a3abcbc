"""Every public name is on the Python page, with a docstring for it and for each of its public methods and properties."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import raysweep
from raysweep.notebook_examples import RecordOptions

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "python.md").read_text(encoding="utf-8")


def test_the_page_has_every_public_name_once_and_no_other():
    shown = re.findall(r"^::: raysweep\.(\w+)$", PAGE, re.MULTILINE)
    assert sorted(shown) == sorted(raysweep.__all__)


@pytest.mark.parametrize("name", raysweep.__all__)
def test_a_name_and_its_members_are_documented(name):
    public = getattr(raysweep, name)
    documented(name, public)
    if inspect.isclass(public):
        for member, value in vars(public).items():
            if not member.startswith("_") and (
                callable(value) or isinstance(value, property | classmethod | staticmethod)
            ):
                documented(f"{name}.{member}", value)


def test_the_options_of_records_are_named():
    for option in RecordOptions.__annotations__:
        assert option == "wording" or f"`{option}`" in PAGE, option  # the old name of `template`


def documented(name, value):
    text = inspect.getdoc(value) or ""
    first = text.splitlines()[0] if text else ""
    assert first.endswith("."), f"{name}: the first line of its docstring is not a sentence: {first!r}"
    assert "Create and return a new object" not in text


@pytest.mark.parametrize("name", [name for name in raysweep.__all__ if inspect.isfunction(getattr(raysweep, name))])
def test_every_argument_of_a_function_is_named_in_its_docstring(name):
    function = getattr(raysweep, name)
    text = inspect.getdoc(function)
    for argument in inspect.signature(function).parameters.values():
        if argument.kind not in (argument.VAR_KEYWORD, argument.VAR_POSITIONAL):
            assert re.search(rf"\b{argument.name}\b", text), f"{name} does not say what {argument.name} is"


def test_functions_say_what_they_raise():
    for name in ("run", "open_run", "sweep", "capture", "critical_layers", "load_examples", "cka_matrix", "similarity"):
        assert "Raises" in inspect.getdoc(getattr(raysweep, name)), name
