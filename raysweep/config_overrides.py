"""Single keys that change a config, as on the command line: `a.b=c`, with the value read as YAML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raysweep.config_yaml import NO_YAML, read_yaml
from raysweep.errors import InputError, shortened


def overridden(values: Any, override: str) -> Any:
    """The values with one key set by a text such as `execution.chunk=16`. Raises InputError for one that cannot be followed."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"--set {shortened(override, 200)}: write it as key=value, for example execution.chunk=16")
    try:
        value = read_yaml(text)
    except NO_YAML as error:
        raise InputError(
            f"--set {shortened(override, 200)}: the value is not YAML: {shortened(' '.join(str(error).split()), 400)}"
        ) from error
    return _with(values, key.split("."), value, override)


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """Options for a store from texts such as `endpoint_url=http://localhost:9000`, the value read as YAML. Raises InputError."""
    options: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InputError("--option: write it as key=value, for example endpoint_url=http://localhost:9000")
        try:
            options = _with(options, key.split("."), read_yaml(value), text)
        except NO_YAML:
            raise InputError(f"--option {shortened(key)}: the value is not YAML") from None
    return options


def _with(node: Any, path: list[str], value: Any, override: str) -> Any:
    if not path:
        return value
    head, rest = path[0], path[1:]
    if isinstance(node, list):
        if not head.isdecimal() or len(head) > 9 or int(head) >= len(node):
            raise InputError(
                f"--set {shortened(override, 200)}: '{shortened(head)}' is not an index of a list of {len(node)} "
                "items; count from 0"
            )
        return [_with(item, rest, value, override) if i == int(head) else item for i, item in enumerate(node)]
    if node is None:
        node = {}
    if not isinstance(node, dict):
        raise InputError(
            f"--set {shortened(override, 200)}: '{shortened(head)}' is inside a plain value, not a mapping"
        )
    return {**node, head: _with(node.get(head), rest, value, override)}
