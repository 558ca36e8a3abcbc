"""The configuration reference in Markdown: every section and key of a config, from the pydantic models."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, get_args

from config_examples import EXAMPLES
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from raysweep.config import Config
from raysweep.config_training import Training

Schema = Mapping[str, Any]
LARGE = 10**6  # limits beyond are there against mistakes and not worth a reader's time
SHARED = (Training,)  # their keys are shown once, in a section of their own, and named in the sections that have them
TITLES = {Training: "Keys of every training"}


def markdown() -> str:
    """All sections, the top level first."""
    return "\n".join(line for section in sections() for line in section_lines(*section))


@cache
def sections() -> list[tuple[type[BaseModel], list[str]]]:
    """Every section's class and the places it has in a config (`datasets[].train`), in the order of the config."""
    found: dict[type[BaseModel], list[str]] = {}
    for section, place in _walk(Config, ""):
        shared = next((base for base in SHARED if issubclass(section, base) and section is not base), None)
        if shared is not None:
            found.setdefault(shared, [])
            found[shared].append(place)
        found.setdefault(section, []).append(place)
    return [(section, list(dict.fromkeys(places))) for section, places in found.items()]


def section_lines(section: type[BaseModel], places: list[str]) -> Iterator[str]:
    """One section: its places, what it is, and its keys."""
    title = TITLES.get(section) or (f"`{places[0]}`" if places[0] else "Top level")
    yield f"## {title} {{ #{anchor_of(section)} }}"
    yield ""
    if len(places) > 1 or section in TITLES:
        yield f"In {_listed([f'`{place}`' for place in places], 'and')}."
        yield ""
    yield from [_paragraph(section.__doc__ or ""), ""]
    if example := EXAMPLES.get(places[0]):
        yield from ["```yaml", *example.strip().splitlines(), "```", ""]
    elsewhere: dict[type[BaseModel], list[str]] = {}
    for key, field in section.model_fields.items():
        owner = home_of(section, key)
        if owner is section:
            yield from key_lines(section, key, field, key_anchor(section, key))
        else:
            elsewhere.setdefault(owner, []).append(key)
    for owner, keys in elsewhere.items():
        links = [f"[`{key}`](#{key_anchor(owner, key)})" for key in keys]
        yield from [f"More keys, described elsewhere on this page: {_listed(links, 'and')}.", ""]


def key_lines(section: type[BaseModel], key: str, field: FieldInfo, anchor: str) -> Iterator[str]:
    """One key: its type, default and description."""
    shape = schema_of(section)[key]
    yield f"### `{key}` {{ #{anchor} .key }}"
    yield ""
    inner = _section_in(field.annotation)
    kind = readable(shape) if inner is None else _section_kind(field.annotation, inner)
    yield f"{kind} · {_default(field, shape)}"
    yield "{ .type }"
    yield ""
    yield field.description or ""
    yield ""


@cache
def schema_of(section: type[BaseModel]) -> Schema:
    """The JSON schema of each key of a section."""
    return section.model_json_schema()["properties"]


def home_of(section: type[BaseModel], key: str) -> type[BaseModel]:
    """The section in which a key is described: another one if it is inherited from there unchanged."""
    field = section.model_fields[key]
    for base in SHARED:
        if issubclass(section, base) and section is not base and key in base.model_fields:
            return base if _same(field, base.model_fields[key]) else section
    described = [each for each, _ in sections()]
    for other in described[: described.index(section)]:
        if other is not section and _are_kin(section, other) and key in other.model_fields:
            return other if _same(field, other.model_fields[key]) else section
    return section


def _are_kin(section: type[BaseModel], other: type[BaseModel]) -> bool:
    """Whether both have keys from a common section (both read records, for example)."""
    common = [each for each in section.__mro__ if each in other.__mro__ and each.__name__.endswith("Config")]
    return bool(common)


def _same(field: FieldInfo, other: FieldInfo) -> bool:
    return (field.default, field.annotation, field.description) == (other.default, other.annotation, other.description)


@cache
def anchor_of(section: type[BaseModel]) -> str:
    """The anchor of a section: its first place without brackets, `datasets.train`."""
    if section in SHARED:
        return section.__name__.lower()
    place = next(places[0] for each, places in sections() if each is section)
    return re.sub(r"\[\]|\.\*", "", place) or "top-level"


@cache
def key_anchor(section: type[BaseModel], key: str) -> str:
    """The anchor of a key: `execution.chunk`; one that opens a section ends with `-key`, for the section has the plain one."""
    prefix = anchor_of(section)
    anchor = key if prefix == "top-level" else f"{prefix}.{key}"
    return f"{anchor}-key" if anchor in {anchor_of(each) for each, _ in sections()} else anchor


def _walk(section: type[BaseModel], place: str) -> Iterator[tuple[type[BaseModel], str]]:
    yield section, place
    for key, field in section.model_fields.items():
        inner = _section_in(field.annotation)
        if inner is not None:
            below = f"{place}.{key}" if place else key
            yield from _walk(inner, below + _brackets(field.annotation, inner))


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section class inside an annotation such as list[X] or X | None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _section_in(inner))), None)


def _brackets(annotation: Any, inner: type[BaseModel]) -> str:
    """`[]` for each list and `.*` for each mapping between a key and its section."""
    if annotation is inner:
        return ""
    origin = getattr(annotation, "__origin__", None)
    step = "[]" if origin is list else ".*" if origin is dict else ""
    below = next(each for each in get_args(annotation) if _section_in(each) is inner)
    return step + _brackets(below, inner)


def _section_kind(annotation: Any, inner: type[BaseModel]) -> str:
    brackets = _brackets(annotation, inner)
    link = f"[section](#{anchor_of(inner)})"
    if "[]" in brackets:
        return f"list of [sections](#{anchor_of(inner)})"
    return (
        link
        if not brackets
        else f"mapping of names to {'mappings of arms to ' if brackets == '.*.*' else ''}[sections](#{anchor_of(inner)})"
    )


def _default(field: FieldInfo, shape: Schema) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if isinstance(value, BaseModel):
        return "default: the section's defaults"
    if value is None:
        return "not set by default"
    return f"default: `{_yaml(value)}`"


def _yaml(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return f"{value:g}"
    return (
        json.dumps(value, ensure_ascii=False).replace('"', "") if isinstance(value, list | str) else json.dumps(value)
    )


def readable(shape: Schema, plural: bool = False) -> str:
    """A JSON schema in words: `integer ≥ 1`, `resident, stream or auto`, `list of integers`."""
    if "anyOf" in shape or "enum" in shape or "const" in shape:
        return _listed(list(dict.fromkeys(_choices(shape, plural))), "or")
    kind = shape.get("type")
    if kind == "array":
        few = f", at least {shape['minItems']}" if shape.get("minItems", 0) > 1 else ""
        return f"list{'s' if plural else ''} of {readable(shape['items'], plural=True)}{few}"
    if kind == "object":
        inner = next(iter(shape.get("patternProperties", {}).values()), shape.get("additionalProperties", True))
        into = "" if isinstance(inner, bool) else f" of names to {readable(inner, plural=True)}"
        return f"mapping{'s' if plural else ''}{into}"
    if kind in ("integer", "number"):
        return f"{kind}{'s' if plural else ''}{_limits(shape)}"
    if kind == "boolean":
        return "`true` or `false`"
    if kind == "string" and "examples" in shape:
        return f"text such as `{shape['examples'][0]}`"
    if kind == "string":
        return (
            ("names" if plural else "name")
            if "A-Za-z0-9" in shape.get("pattern", "")
            else ("texts" if plural else "text")
        )
    return "any value"


def _choices(shape: Schema, plural: bool) -> Iterator[str]:
    """Each of the values or kinds that a schema allows; null apart, which stands for a key that is not set."""
    for inner in shape.get("anyOf", [shape]):
        if "const" in inner or "enum" in inner:
            yield from (f"`{value}`" for value in inner.get("enum", [inner.get("const")]))
        elif inner.get("type") != "null":
            yield readable(inner, plural)


def _limits(shape: Schema) -> str:
    low, high = shape.get("minimum"), shape.get("maximum")
    above, below = shape.get("exclusiveMinimum"), shape.get("exclusiveMaximum")
    high = None if high is not None and high >= LARGE else high
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    parts = [(" ≥ ", low), (" > ", above), (" ≤ ", high), (" < ", below)]
    return " and".join(f"{sign}{value:g}" for sign, value in parts if value is not None)


def _listed(parts: list[str], word: str) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {word} {parts[-1]}"


def _paragraph(text: str) -> str:
    return re.sub(r"\n {4}", "\n", text).strip()
