"""What is wrong with a config, in words: the key's place, what belongs there, and the nearest known key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from raysweep.errors import nearest, shortened, shown

_MOST_PROBLEMS = 20  # told of a config at once

_BELONGS = {
    "model_type": "a mapping of keys",
    "dict_type": "a mapping of keys",
    "list_type": "a list",
    "string_type": "text",
    "int_type": "a whole number",
}


def problems_in_words(error: ValidationError, config: type[BaseModel]) -> list[str]:
    """The first of a validation's problems, a line each; `config` is the class that was validated."""
    return [_problem(dict(problem), config) for problem in error.errors()[:_MOST_PROBLEMS]]


def _problem(problem: Mapping[str, Any], config: type[BaseModel]) -> str:
    """One validation problem in words, with the key's place and, for an unknown key, the nearest known one."""
    location = tuple(problem["loc"])
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    place = shortened(place.lstrip(".").removesuffix(".[key]"), 200)
    if problem["type"] == "extra_forbidden":
        known = _fields_at(location[:-1], config)
        return f"unknown key '{place}'; {nearest(str(location[-1]), known)}"
    if problem["type"] == "missing":
        return f"key '{place}' is missing"
    if problem["type"] == "value_error":
        message = str(problem["msg"]).removeprefix("Value error, ")
        if isinstance(problem["input"], Mapping):  # between the keys of a section, or of the whole
            return f"{place}: {message}" if place else message
        return f"key '{place}': {message}"
    return f"key '{place}': {_wanted(problem)}"


def _wanted(problem: Mapping[str, Any]) -> str:
    """What belongs where pydantic found another value."""
    kind, found, context = problem["type"], problem["input"], problem.get("ctx", {})
    value = "nothing" if found is None else shown(found)
    if kind == "literal_error":
        return f"{value} is not {context['expected']}"
    if kind == "string_pattern_mismatch":
        return f"{value} is not a valid name; use letters, digits and . _ -, starting with a letter or digit"
    if kind == "too_short":
        return "give at least one item"
    if kind == "greater_than_equal":
        return f"give {context['ge']} or more, not {value}"
    if kind == "less_than_equal":
        return f"give {context['le']} or less, not {value}"
    if kind in _BELONGS:
        return f"expected {_BELONGS[kind]}, not {value}"
    message = str(problem["msg"])
    return f"{message[0].lower()}{message[1:]}, not {value}"


def _fields_at(location: tuple[str | int, ...], config: type[BaseModel]) -> list[str]:
    node = config
    for part in location:
        if isinstance(part, str) and part in node.model_fields:
            inner = _section_in(node.model_fields[part].annotation)
            node = inner or node
    return list(node.model_fields)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section class inside an annotation such as list[X] or X | None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _section_in(inner)
        if found:
            return found
    return None
