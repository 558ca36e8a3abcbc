"""What a checkpoint's provenance file says of its weights, wherever a reader of results looks."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from command_line import Result

from raysweep.models.provenance_file import write_provenance

Call = Callable[..., Result]
NOTE = "dequantised from Q4_1 <b>&</b>"


@pytest.fixture
def noted(world: Path, tmp_path: Path) -> Path:
    """The world's base with a note, in another folder."""
    folder = tmp_path / "noted"
    shutil.copytree(world / "base", folder)
    write_provenance(folder, {"note": NOTE})
    return folder


def test_a_plan_says_it(config: Path, noted: Path, raysweep: Call) -> None:
    asked = ("plan", config, "--set", f"models.0.base={noted}")
    assert f"checkpoint   {noted}: {NOTE}" in raysweep(*asked).out.splitlines()
    assert json.loads(raysweep(*asked, "--json").out)["notes"] == {str(noted): NOTE}
    assert json.loads(raysweep("plan", config, "--json").out)["notes"] == {}


def test_a_run_says_it_in_its_table_of_checkpoints_and_on_its_page(config: Path, noted: Path, raysweep: Call) -> None:
    run = Path(yaml.safe_load(config.read_text())["storage"])
    assert raysweep("run", config).code == 0
    assert "dequantised" not in (run / "report" / "index.html").read_text(encoding="utf-8")
    chunks = sorted(path.name for path in (run / "chunks").rglob("*"))

    code, out, _ = raysweep("run", config, "--set", f"models.0.base={noted}")
    assert code == 0, out
    assert sorted(path.name for path in (run / "chunks").rglob("*")) == chunks, (
        "no key changed: nothing was computed again"
    )
    told = json.loads((run / "plan.json").read_text(encoding="utf-8"))["about"]["checkpoints"]
    assert [record.get("note") for record in told] == [NOTE, None]
    page = (run / "report" / "index.html").read_text(encoding="utf-8")
    table = next(found for found in re.findall(r"<table.*?</table>", page, re.DOTALL) if str(noted) in found)
    assert "note" in re.findall(r"<th[^>]*>([^<]*)</th>", table)
    assert html.escape(NOTE) in table
    assert NOTE not in page, "it is escaped"


def test_critical_says_it(world: Path, noted: Path, raysweep: Call) -> None:
    asked = (world / "counts.jsonl", "--resamples", 10)
    said = " ".join(raysweep("critical", noted, *asked).out.split())
    assert said.startswith(f"Critical layers of {noted}: ")
    assert f" Weights: {NOTE} To train " in said
    assert json.loads(raysweep("critical", noted, *asked, "--json").out)["note"] == NOTE
    assert "Weights" not in raysweep("critical", world / "base", *asked).out
