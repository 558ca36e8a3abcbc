"""Each message that docs/troubleshooting.md quotes is one that the package has."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"^### `(.+)`$", PAGE, re.MULTILINE)


@cache
def messages() -> list[str]:
    """Texts of the package, docstrings left out; what an f-string fills in is "\\x00"."""
    found = []
    for path in sorted((ROOT / "raysweep").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        found += [text for node in ast.walk(tree) if id(node) not in statements and (text := text_of(node))]
    return found


def text_of(node: ast.AST) -> str:
    """A text, an f-string, or a sum of them; "" for anything else."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or "\x00" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = text_of(node.left), text_of(node.right)
        return (left or "\x00") + (right or "\x00") if left or right else ""
    return ""


def is_quoted(quote: str, text: str) -> bool:
    """Whether the parts of the quote between "…" are in the text, one after the other."""
    place = 0
    for part in quote.split("…"):
        place = text.find(part.strip(), place)
        if place < 0:
            return False
        place += len(part.strip())
    return True


@pytest.mark.parametrize("quote", QUOTED)
def test_the_message_is_in_the_package(quote):
    assert any(is_quoted(quote, text) for text in messages())


def test_the_page_quotes_messages():
    assert len(QUOTED) >= 30
    assert len(QUOTED) == len(set(QUOTED)) == len(re.findall(r"^### ", PAGE, re.MULTILINE))


@pytest.mark.parametrize(
    "quote", ["is no such message", "chat template has no", "own generation prompt … does not continue its"]
)
def test_a_message_that_is_not_there_is_noticed(quote):
    assert not any(is_quoted(quote, text) for text in messages())
