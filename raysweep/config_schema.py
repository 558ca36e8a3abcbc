"""The JSON schema of a config, with which editors complete and check the keys of a YAML file."""

from __future__ import annotations

from typing import Any

from raysweep.config import Config
from raysweep.config_renamed import OLD_NAMES

FILE = "raysweep.schema.json"  # what `raysweep init` calls it, next to the config
_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def config_schema() -> dict[str, Any]:
    """Return the schema. Whatever the config accepts is valid in it; some rules, such as those between keys, it does not know."""
    found = Config.model_json_schema()
    sections = found["$defs"]
    _allow(sections["SubstitutionConfig"], "widths", {"const": "all"})
    _allow(sections["ExecutionConfig"], "call_deadline", {"const": "never"})
    model = sections["ModelConfig"]["properties"]
    for old, new in OLD_NAMES.items():
        model[old] = {**model[new], "deprecated": True, "description": f"The old name of `{new}`."}
    return {"$schema": _DIALECT, **found, "title": "A raysweep config"}


def _allow(section: dict[str, Any], key: str, value: dict[str, Any]) -> None:
    """Let a key have a value, too, that its validator accepts before pydantic looks at the type."""
    notes = ("title", "description", "default")
    old = section["properties"][key]
    kinds = old.get("anyOf", [{name: rule for name, rule in old.items() if name not in notes}])
    kept = {name: rule for name, rule in old.items() if name in notes}
    section["properties"][key] = {**kept, "anyOf": [*kinds, value]}
