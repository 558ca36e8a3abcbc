"""Words that users should not meet: none in messages, help, the page, docs, configs and dashboards.

Read are: every text with a space in it in the package and the jobs (docstrings only where the reference shows them), and the files
in Markdown, YAML, JSON, notebooks and templates that users open. `ALLOWED` names the exceptions, each with its file.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORDS = {
    r"\b(?:un)?told\b|\btells?\b|\btelling\b": "report, show, predict, distinguish",
    r"\bmis(?:led|leads?|leading)\b": "δ points to the wrong layers",
    r"\btaken again\b|\btake again\b": "recomputed",
    r"\bwhat is whole\b|\bis whole\b|\bas a whole\b": "complete",
    r"\breckon\w*": "estimate, estimator, based on",
    r"\b(?:lean|leans|leaned|leaning) on\b": "depends on",
    r"\bsets? aside\b": "marked failed after N attempts",
    r"\bbeside\b": "next to, in addition, together with",
    r"\bthe least that would do\b": "the minimum required",
    r"\banother machine's\b": "not available on this machine",
    r"\bis no (?!longer\b)\w+ folder\b|\bno run folder\b": "is not a run folder",
    r"\bmakeable\b|\bmade from others\b": "ready, derived",
    r"\bway there and back\b": "forward and backward pass",
    r"\b(?:put|puts|putting) back\b|\bput(?:s|ting)? (?:\w+ ){1,4}back\b": "replaced with the base model's",
    r"\bstretch(?:es)? of\b": "segments of similar layers",
    r"\bwordings?\b": "prompt template",
    r"\bis let go\b|\blet go of\b": "released",
}
ALLOWED: dict[str, set[str]] = {  # file: words that it may use
    "CHANGELOG.md": {"wording"},  # the old name of the key `template`
    "raysweep/lab/tasks.py": {"tell"},  # questions of the laboratory's data sets
    "raysweep/notebook_examples.py": {"wording"},  # the old name of the option `template`
    "raysweep/cli_options.py": {"wording"},  # the old name of --template
}
SHOWN = ("__init__", "api", "config", "cli", "notebook", "planned", "errors")  # modules whose docstrings users read


def area_of(path: Path) -> str:
    inside = path.relative_to(ROOT).parts
    if inside[0] == "raysweep":
        return "cli" if inside[1].startswith("cli") else inside[1].removesuffix(".py")
    return inside[0]


def python_texts(path: Path) -> list[tuple[int, str]]:
    """Texts with a space; of docstrings those of modules that the reference shows."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden: set[int] = set()
    parts: set[int] = set()
    found: list[tuple[int, str]] = []
    shown = path.stem.split("_")[0] in SHOWN or path.stem in SHOWN
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not shown:
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                hidden.add(id(first.value))
        if isinstance(node, ast.JoinedStr):
            parts |= {id(part) for part in node.values}
            words = (part.value if isinstance(part, ast.Constant) else "\x00" for part in node.values)
            found.append((node.lineno, "".join(map(str, words))))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in hidden | parts:
            found.append((node.lineno, node.value))
    return [(line, text) for line, text in found if " " in text.strip()]


def texts_of(path: Path) -> list[tuple[int, str]]:
    if path.suffix == ".py":
        return python_texts(path)
    if path.suffix == ".ipynb":
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return [(number, "".join(cell["source"])) for number, cell in enumerate(cells, 1)]
    return list(enumerate(path.read_text(encoding="utf-8").splitlines(), 1))


def read_by_users() -> list[Path]:
    patterns = {
        "raysweep": ["**/*.py", "**/*.j2", "**/*.js"],
        "jobs": ["*.py"],
        "docs": ["**/*.md", "**/*.ipynb", "**/*.svg"],
        "configs": ["**/*.yaml"],
        "dashboards": ["*.md", "*.json", "*.yml"],
        "benchmarks": ["*.md"],
        ".": ["*.md", "*.cff", "mkdocs.yml", "Makefile"],
    }
    return sorted({path for folder, kinds in patterns.items() for kind in kinds for path in (ROOT / folder).glob(kind)})


def problems(path: Path) -> list[str]:
    allowed = ALLOWED.get(str(path.relative_to(ROOT)), set())
    return [
        f"{path.relative_to(ROOT)}:{line}: '{found[0]}' (write: {instead}) in: {text.strip()[:160]!r}"
        for line, text in texts_of(path)
        for word, instead in WORDS.items()
        for found in re.finditer(word, text, re.IGNORECASE)
        if found[0].lower() not in allowed
    ]


FILES = read_by_users()


@pytest.mark.parametrize("area", sorted({area_of(path) for path in FILES}))
def test_plain_english(area):
    found = [line for path in FILES if area_of(path) == area for line in problems(path)]
    assert found == [], "\n" + "\n".join(found)


@pytest.mark.parametrize("word", ["it is told", "was put back", "Wording", "puts every window back", "no run folder"])
def test_each_word_is_found(word):
    assert any(re.search(pattern, word, re.IGNORECASE) for pattern in WORDS)


def test_allowed_words_are_used():
    for name, words in ALLOWED.items():
        text = (ROOT / name).read_text(encoding="utf-8").lower()
        assert all(word in text for word in words), name
