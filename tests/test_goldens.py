"""Golden values: the task graphs of the shipped configs, hashed, and the demo's tables.

A change that alters them on purpose lists what it alters, and writes the files again in a commit of its own:
`RAYSWEEP_WRITE_GOLDENS=1 pytest tests/test_goldens.py` for the graphs; `raysweep demo --fresh --out DIR` and
`cp DIR/results/*.parquet tests/goldens/demo` for the tables. `.ci/test_readme.py` compares the tables, because it runs the demo.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from demo_tables import GOLDENS, differences

from raysweep.config import Config, load_config
from raysweep.engine.graph import Graph
from raysweep.engine.paper import device_on_paper
from raysweep.engine.plan import plan
from raysweep.engine.preparation import prepare
from raysweep.engine.steps import with_steps
from raysweep.recipes import demo_config

GRAPHS = GOLDENS / "graphs.json"
CONFIGS = Path(__file__).parents[1] / "configs"
# Keys hold the releases of the libraries; a new release is not a change of ours.
LIBRARIES = {
    "raysweep": "0",
    "torch": "2.13",
    "transformers": "5.23",
    "tokenizers": "0",
    "peft": "0.21",
    "numpy": "0",
    "scipy": "0",
}


def _graph(config: Config) -> Graph:
    config = with_steps(config)
    facts, _, _ = prepare(config, device_on_paper, may_assume=True)
    return plan(config, replace(facts, libraries=LIBRARIES))


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def described(graph: Graph) -> dict[str, object]:
    """The graph's order, and for each kind of task how many there are, their names, keys and needs."""
    by_kind = {}
    for kind in dict.fromkeys(task.kind for task in graph.tasks):
        tasks = list(graph.of_kind(kind))
        by_kind[kind] = {
            "tasks": len(tasks),
            "names": _digest([task.name for task in tasks]),
            "parts": _digest([task.parts for task in tasks]),
            "results": _digest([dict(task.results) for task in tasks]),
            "needs": _digest([task.needs for task in tasks]),
        }
    return {"order": _digest([task.name for task in graph.tasks]), "kinds": by_kind}


NAMES = [
    "demo",
    *(str(p.relative_to(CONFIGS)) for name in ("lab", "paper") for p in sorted((CONFIGS / name).glob("*.yaml"))),
]


@pytest.mark.parametrize("name", NAMES)
def test_the_graph_is_the_golden_one(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = demo_config("runs") if name == "demo" else load_config(CONFIGS / name)
    monkeypatch.chdir(tmp_path)
    found = described(_graph(config.model_copy(update={"storage": str(tmp_path / "run")})))
    goldens = json.loads(GRAPHS.read_text()) if GRAPHS.exists() else {}
    if os.environ.get("RAYSWEEP_WRITE_GOLDENS"):
        GRAPHS.write_text(json.dumps({**goldens, name: found}, indent=1, sort_keys=True) + "\n")
        return
    assert found == goldens[name]


def test_every_golden_graph_has_its_config() -> None:
    assert sorted(json.loads(GRAPHS.read_text())) == sorted(NAMES)


def test_the_comparison_of_tables_can_fail(tmp_path: Path) -> None:
    for path in (GOLDENS / "demo").glob("*.parquet"):
        pd.read_parquet(path).to_parquet(tmp_path / path.name)
    assert differences(tmp_path) == []
    losses = pd.read_parquet(tmp_path / "substitution.parquet")
    losses.loc[7, "loss"] += 3e-6
    losses.to_parquet(tmp_path / "substitution.parquet")
    pd.read_parquet(tmp_path / "generation.parquet").iloc[1:].to_parquet(tmp_path / "generation.parquet")
    (tmp_path / "health.parquet").unlink()
    assert [text.split(":")[0] for text in differences(tmp_path)] == ["generation", "health", "substitution"]
