"""Imports go down only. Every import statement of the package is walked; a line that breaks a rule is named.

The walker reads source text and imports nothing, so what it says holds for code that no test runs. The second half
feeds it trees that break each rule once.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import raysweep

ROOT = Path(raysweep.__file__).parent

COMMANDS = {
    "raysweep",
    "raysweep.__main__",
    "raysweep.api",
    "raysweep.cli",
    "raysweep.cli_analysis",
    "raysweep.cli_checkpoints",
    "raysweep.cli_config",
    "raysweep.cli_ends",
    "raysweep.cli_folders",
    "raysweep.cli_help",
    "raysweep.cli_jobs",
    "raysweep.cli_options",
    "raysweep.cli_run",
    "raysweep.cli_sweeps",
    "raysweep.cli_verbosity",
    "raysweep.notebook",
    "raysweep.notebook_examples",
    "raysweep.notebook_load",
    "raysweep.notebook_models",
    "raysweep.planned",
    "raysweep.progress",
    "raysweep.recipes",
}
GROUND = {  # beside config.py and its parts
    *("raysweep.collector", "raysweep.errors", "raysweep.fingerprint", "raysweep.lab", "raysweep.limits"),
    *("raysweep.patterns", "raysweep.redaction", "raysweep.signals"),
    "raysweep.terminal",
    "raysweep.user_cache",
}
PACKAGES = {"report": 6, "engine": 5, "studies": 4, "fetching": 4, "models": 2, "data": 2, "store": 2, "numerics": 0}
INSIDE_FUNCTIONS = ("datasets", "matplotlib")  # slow, and not needed by most of what imports the module


@dataclass(frozen=True)
class Import:
    """One imported module, and how: when the importer is loaded, for type checkers only, or later, inside a function."""

    importer: str
    file: str
    line: int
    imported: str
    when: str


def read_imports(root: Path) -> list[Import]:
    """Every import in the tree of the package `root`; names are resolved to the modules that the tree has."""
    files = {module_name(root, path): path for path in sorted(root.rglob("*.py"))}
    return [
        Import(importer, path.relative_to(root.parent).as_posix(), line, resolved(target, files), when)
        for importer, path in files.items()
        for node, when in walk(ast.parse(path.read_text(encoding="utf-8")), "loading")
        for target, line in targets(node, importer, path.name == "__init__.py")
    ]


def module_name(root: Path, path: Path) -> str:
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def walk(node: ast.AST, when: str) -> Iterator[tuple[ast.AST, str]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from walk(child, "later" if when == "loading" else when)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from walk(ast.Module(child.body, []), "typing")
            yield from walk(ast.Module(child.orelse, []), when)
        else:
            yield child, when
            yield from walk(child, when)


def targets(node: ast.AST, importer: str, is_package: bool) -> Iterator[tuple[str, int]]:
    """What a node imports, as dotted names that may end in a name inside a module."""
    if isinstance(node, ast.Import):
        yield from ((alias.name, node.lineno) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            home = importer.split(".")
            home = home[: len(home) - node.level + is_package]
            base = ".".join([*home, *([node.module] if node.module else [])])
        yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)
    elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("import_module", "importlib.import_module"):
        name = node.args[0]
        yield (name.value if isinstance(name, ast.Constant) else "?", node.lineno)


def resolved(target: str, files: dict[str, Path]) -> str:
    while target.startswith("raysweep.") and target not in files:
        target = target.rpartition(".")[0]
    return target


def place(module: str) -> tuple[float, str]:
    """Floor and room of one of raysweep's modules."""
    if module in COMMANDS:
        return 7, "commands"
    if module in GROUND or module.startswith("raysweep.config"):
        return 1, "ground"
    if module == "raysweep.models.surgery":
        return 3, "surgery"
    room = module.split(".")[1]
    if room == "lab":
        return 8, "laboratory"  # above all: nothing of the package may need what made the shipped models
    return (PACKAGES[room], room) if room in PACKAGES else (float("nan"), module)


def problem(found: Import) -> str | None:
    """The rule that an import breaks, or None."""
    package = found.imported.split(".")[0]
    if package == "ray" and not found.importer.startswith("raysweep.engine.ray_"):
        return "only engine/ray_*.py may import ray"
    if package in INSIDE_FUNCTIONS and found.when == "loading":
        return f"{package} is imported inside functions only"
    if package == "?":
        return None if found.importer == "raysweep" else "a computed import hides from this test"
    if package != "raysweep":
        return None
    (floor, room), (below, other) = place(found.importer), place(found.imported)
    if floor != floor or below != below:
        return "a module without a floor: give it one in this test"
    if found.importer == "raysweep.lab":
        below_it = ("raysweep.errors", "raysweep.user_cache")
        return None if found.imported in below_it else "lab/__init__.py imports errors and user_cache only"
    if room == "laboratory":
        allowed = {"laboratory", "data"} if found.importer == "raysweep.lab.train" else {"laboratory"}
        inside = other in allowed or found.imported == "raysweep.lab"
        return None if inside else f"{found.importer} may import {' and '.join(sorted(allowed))} only"
    if room == other or below < floor:
        return None
    return f"{room} (floor {floor}) may not import {other} (floor {below})"


def violations(imports: list[Import]) -> list[str]:
    return [
        f"{found.file}:{found.line} imports {found.imported}: {told}"
        for found in imports
        if (told := problem(found)) is not None
    ]


def circle(imports: list[Import]) -> list[str] | None:
    """Modules that need each other while they are loaded, in a circle, or None."""
    needs = defaultdict(set)
    for found in imports:
        if found.when == "loading" and found.imported.startswith("raysweep") and found.imported != found.importer:
            needs[found.importer].add(found.imported)
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        return list(error.args[1])
    return None


def test_imports_go_down_only():
    assert violations(read_imports(ROOT)) == []


def test_no_modules_import_each_other_in_a_circle():
    assert circle(read_imports(ROOT)) is None


def test_the_walk_sees_the_whole_package():
    imports = read_imports(ROOT)
    assert {found.when for found in imports} == {"loading", "typing", "later"}
    assert {found.importer.split(".")[1] for found in imports if "." in found.importer} >= {*PACKAGES, "cli", "lab"}


# --- and it can fail ----------------------------------------------------------------------------------------------


LAWFUL = {
    "__init__.py": "from importlib import import_module\ndef f(name):\n    return import_module(name)\n",
    "errors.py": "",
    "config.py": "from raysweep.errors import InputError\n",
    "numerics/cka.py": "",
    "lab/__init__.py": "from raysweep.errors import InputError\n",
    "lab/world.py": "",
    "lab/train.py": "from raysweep.data import records\nfrom raysweep.lab import world\n",
    "data/records.py": "from raysweep import lab\nfrom .formats import FORMATS\n",
    "data/formats.py": "import raysweep.errors\n",
    "models/__init__.py": "",
    "models/adapter.py": "",
    "models/surgery.py": "from raysweep.models.adapter import Adapter\n",
    "store/artifacts.py": "",
    "studies/capture.py": "from raysweep.models import surgery\ndef f():\n    import datasets\n",
    "engine/plan.py": "from ..studies.capture import capture\n",
    "engine/ray_pool.py": "import ray\n",
    "report/page.py": "import raysweep.engine.plan as plan\n",
    "api.py": "from raysweep.report import page\n",
    "cli.py": "from raysweep import api\n",
}


def tree(root: Path, changed: dict[str, str]) -> list[Import]:
    """The imports of a made-up raysweep: lawful modules, and the changed ones in their place."""
    for name, source in (LAWFUL | changed).items():
        path = root / "raysweep" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return read_imports(root / "raysweep")


def test_a_lawful_tree_passes(tmp_path):
    imports = tree(tmp_path, {})
    assert violations(imports) == []
    assert circle(imports) is None


@pytest.mark.parametrize(
    ("module", "source", "line", "told"),
    [
        ("errors.py", "import raysweep.numerics.cka\nimport raysweep.data.formats\n", 2, "imports raysweep.data.formats: ground (floor 1) may not import data (floor 2)"),
        ("numerics/cka.py", "\n\nfrom raysweep import errors\n", 3, "imports raysweep.errors: numerics (floor 0) may not import ground (floor 1)"),
        ("models/adapter.py", "from raysweep.data.records import read\n", 1, "imports raysweep.data.records: models (floor 2) may not import data (floor 2)"),
        ("store/artifacts.py", "from ..models.adapter import Adapter\n", 1, "imports raysweep.models.adapter: store (floor 2) may not import models (floor 2)"),
        ("data/formats.py", "def f():\n    if True:\n        import raysweep.store.artifacts\n", 3, "imports raysweep.store.artifacts: data (floor 2) may not import store (floor 2)"),
        ("models/adapter.py", "from raysweep.models import surgery\n", 1, "imports raysweep.models.surgery: models (floor 2) may not import surgery (floor 3)"),
        ("studies/capture.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from raysweep.engine.plan import Task\n", 3, "imports raysweep.engine.plan: studies (floor 4) may not import engine (floor 5)"),
        ("engine/plan.py", "class A:\n    from raysweep.report.page import Page\n", 2, "imports raysweep.report.page: engine (floor 5) may not import report (floor 6)"),
        ("report/page.py", "import raysweep\n", 1, "imports raysweep: report (floor 6) may not import commands (floor 7)"),
        ("report/page.py", "try:\n    import raysweep.api\nexcept ImportError:\n    pass\n", 2, "imports raysweep.api: report (floor 6) may not import commands (floor 7)"),
        ("studies/capture.py", "from raysweep.lab.world import SEED\n", 1, "imports raysweep.lab.world: studies (floor 4) may not import laboratory (floor 8)"),
        ("lab/__init__.py", "from raysweep.config import Config\n", 1, "imports raysweep.config: lab/__init__.py imports errors and user_cache only"),
        ("lab/world.py", "from raysweep.data.records import read\n", 1, "imports raysweep.data.records: raysweep.lab.world may import laboratory only"),
        ("lab/train.py", "from raysweep.models import adapter\n", 1, "imports raysweep.models.adapter: raysweep.lab.train may import data and laboratory only"),
        ("engine/plan.py", "def f():\n    from ray import remote\n", 2, "imports ray.remote: only engine/ray_*.py may import ray"),
        ("api.py", "import ray.data\n", 1, "imports ray.data: only engine/ray_*.py may import ray"),
        ("studies/capture.py", "import datasets\n", 1, "imports datasets: datasets is imported inside functions only"),
        ("report/page.py", "from matplotlib.figure import Figure\n", 1, "imports matplotlib.figure.Figure: matplotlib is imported inside functions only"),
        ("data/formats.py", "from importlib import import_module\nimport_module('raysweep.' + 'api')\n", 2, "imports ?: a computed import hides from this test"),
        ("data/formats.py", "import importlib\nimportlib.import_module('raysweep.api')\n", 2, "imports raysweep.api: data (floor 2) may not import commands (floor 7)"),
        ("attic.py", "from raysweep import errors\n", 1, "imports raysweep.errors: a module without a floor: give it one in this test"),
    ],
)  # fmt: skip
def test_each_broken_rule_is_told_with_its_line(tmp_path, module, source, line, told):
    assert violations(tree(tmp_path, {module: source})) == [f"raysweep/{module}:{line} {told}"]


def test_a_circle_is_told(tmp_path):
    imports = tree(tmp_path, {"data/formats.py": "from raysweep.data import records\n"})
    assert violations(imports) == []
    assert set(circle(imports)) == {"raysweep.data.formats", "raysweep.data.records"}


def test_an_import_that_waits_makes_no_circle(tmp_path):
    for source in (
        "def f():\n    from raysweep.data import records\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from raysweep.data import records\n",
    ):
        assert circle(tree(tmp_path, {"data/formats.py": source})) is None
