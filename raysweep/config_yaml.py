"""YAML as configs are written in: plain values, limited in size, and no key twice in a mapping.

PyYAML would keep the last of two equal keys. An alias is a reference, so a few lines can stand for billions of values
("billion laughs"), which whatever walks the values would visit one by one: they are counted before any is made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from raysweep import limits

# A date of month 13, a number of 5000 digits, a text in another encoding and too deep a nesting have errors of their own.
NO_YAML = (yaml.YAMLError, ValueError, OverflowError, RecursionError)

_MERGE = "tag:yaml.org,2002:merge"  # several of these add up
_LONGEST_NUMBER = 4300  # digits that Python reads and writes


class LimitedLoader(yaml.SafeLoader):
    """PyYAML's safe loader for documents of a limited number of values, aliases followed, and of numbers that Python can write."""

    n_nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Make the next node. Raises InputError for too many."""
        self.n_nodes += 1
        most = limits.CONFIG_VALUES.value() if self.n_nodes % 1000 == 0 else self.n_nodes
        if self.n_nodes > most:
            raise limits.CONFIG_VALUES.error(f"{most:.15g}", "YAML", most)
        return super().compose_node(parent, index)

    def get_single_node(self) -> yaml.Node | None:
        """Return the document's root. Raises InputError for too many values."""
        node = super().get_single_node()
        if node is not None:
            _check_values(node)
        return node

    def construct_limited_number(self, node: yaml.ScalarNode) -> float:
        """Make a number. Raises YAMLError for one that is too long: PyYAML's base 60 takes quadratic time."""
        digits = node.value.lstrip("+-")
        if len(digits) > _LONGEST_NUMBER and (digits.startswith("0") or not digits.isdecimal()):
            raise yaml.YAMLError(f"a number in line {node.start_mark.line + 1} has {len(node.value)} characters")
        number: float = (self.construct_yaml_int if node.tag.endswith(":int") else self.construct_yaml_float)(node)
        return number


for _tag in ("int", "float"):
    LimitedLoader.add_constructor(f"tag:yaml.org,2002:{_tag}", LimitedLoader.construct_limited_number)


class _Loader(LimitedLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            line, known = key.start_mark.line + 1, lines.get((key.tag, key.value))
            if known is not None:
                raise yaml.YAMLError(
                    f"key '{key.value}' is given twice, in line {known} and in line {line}; remove one"
                )
            lines[key.tag, key.value] = line
        return node


def read_yaml(text: str) -> Any:
    """The values of a YAML text, as yaml.safe_load has them. Raises one of NO_YAML, or InputError for a text beyond the limits."""
    limits.CONFIG_BYTES.check(len(text), "YAML")
    return yaml.load(text, _Loader)


def read_yaml_file(path: Path) -> Any:
    """The values of a YAML file. Raises as read_yaml, and OSError if the file cannot be read."""
    text = limits.read_limited(path, limits.CONFIG_BYTES).decode()
    return read_yaml(text.replace("\r\n", "\n").replace("\r", "\n"))


def _check_values(root: yaml.Node) -> None:
    """Count the values below a node, those of an alias each time; without recursion, and each node once."""
    most, counts = limits.CONFIG_VALUES.value(), dict[int, int]()
    stack: list[tuple[yaml.Node, bool]] = [(root, False)]
    while stack:
        node, seen = stack.pop()
        inner = _inner(node)
        if seen:
            counts[id(node)] = 1 + sum(counts[id(each)] for each in inner)
            if counts[id(node)] > most:
                raise limits.CONFIG_VALUES.error(f"{most:.15g}", f"YAML from line {node.start_mark.line + 1}", most)
        elif id(node) not in counts:
            counts[id(node)] = 1  # for an alias inside what it names; config fields refuse such values
            stack.append((node, True))
            stack.extend((each, False) for each in inner if id(each) not in counts)


def _inner(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [each for pair in node.value for each in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []
