"""YAML as configs are written in: plain values, and no key twice in a mapping, where PyYAML would keep the last and drop the first."""

from __future__ import annotations

from typing import Any

import yaml

# A date of month 13, a number of 5000 digits, a text in another encoding and too deep a nesting have errors of their own.
NO_YAML = (yaml.YAMLError, ValueError, OverflowError, RecursionError)

_MERGE = "tag:yaml.org,2002:merge"  # several of these add up


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            line, known = key.start_mark.line + 1, lines.get((key.tag, key.value))
            if known is not None:
                raise yaml.YAMLError(
                    f"key '{key.value}' is given twice, in line {known} and in line {line}; leave one out"
                )
            lines[key.tag, key.value] = line
        return node


def read_yaml(text: str) -> Any:
    """The values of a YAML text, as yaml.safe_load has them. Raises one of NO_YAML."""
    return yaml.load(text, _Loader)
