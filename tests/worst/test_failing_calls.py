"""Whole runs through the command line whose calls on the run folder fail, or after which the power goes, at sampled points."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pytest
from command_line import Result, ended, started
from file_calls import ERRORS, Cut, counting, failing, power_cut

from raysweep.engine.events import CHUNK_COMMITTED, read_events

pytestmark = pytest.mark.soak
POINTS = 20


def run(world: Path, root: Path, *within: Any) -> Result:
    more = ("--set", f"storage={root}", "--set", "execution.chunk=8", "--set", "datasets.0.limit=8")
    return ended(started("run", world / "config.yaml", *more, within=(within[0], within[1:]) if within else None))


def tables(root: Path) -> Mapping[str, pd.DataFrame]:
    return {path.stem: pd.read_parquet(path) for path in sorted((root / "results").glob("*.parquet"))}


@pytest.fixture
def undisturbed(world: Path, tmp_path: Path) -> tuple[Mapping[str, pd.DataFrame], dict[str, int]]:
    """Its tables, and how many calls there are."""
    (tmp_path / "whole").mkdir()
    ended_well = run(world, tmp_path / "whole", counting, tmp_path / "whole", tmp_path / "told")
    assert ended_well.code == 0, ended_well.err
    return tables(tmp_path / "whole"), json.loads((tmp_path / "told").read_text())


def check(world: Path, root: Path, expected: Mapping[str, pd.DataFrame], point: str) -> None:
    resumed = run(world, root)
    assert resumed.code == 0, f"{point}: {resumed.err}"
    found = tables(root)
    assert found.keys() == expected.keys(), point
    for name, table in expected.items():
        pd.testing.assert_frame_equal(found[name], table, obj=f"{point}: {name}")
    log = [event["commit"] for event in read_events(root / "events.jsonl") if event["event"] == CHUNK_COMMITTED]
    assert set(Counter(log).values()) == {1}, point


@pytest.mark.parametrize("number", ERRORS, ids=["EIO", "ENOSPC", "EPERM"])
def test_a_call_that_fails_ends_the_run_in_words_and_it_is_resumed(
    world: Path, tmp_path: Path, undisturbed: Any, number: int
) -> None:
    expected, counts = undisturbed
    for n in sorted(random.Random(number).sample(range(1, counts["calls"] + 1), POINTS)):
        root = tmp_path / f"fails-{n}"
        root.mkdir()
        failed = run(world, root, failing, root, number, n)
        assert failed.code in (0, 1, 2), failed
        assert "Traceback" not in failed.err, failed.err
        if failed.code:
            assert os.strerror(number) in failed.err, failed.err
            assert str(root) in failed.err, failed.err
        check(world, root, expected, f"{os.strerror(number)} at call {n}")


@pytest.mark.parametrize("cut", get_args(Cut))
def test_a_power_cut_is_resumed_from(world: Path, tmp_path: Path, undisturbed: Any, cut: Cut) -> None:
    expected, counts = undisturbed
    for n in sorted(random.Random(cut).sample(range(1, counts["changing"] + 1), POINTS // 2)):
        root, left = tmp_path / f"cut-{n}", tmp_path / f"left-{n}"
        root.mkdir()
        assert run(world, root, power_cut, root, n, cut, left).code == 137
        check(world, left, expected, f"{cut} after call {n}")
