"""Losses taken again by true substitution: what is drawn, what is compared, and what comes of a difference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from raysweep.config import Config
from raysweep.engine import work
from raysweep.engine.driver import Done, drive
from raysweep.engine.inspection import inspect
from raysweep.engine.plan import plan
from raysweep.engine.substitution_plan import drawn
from raysweep.report.summary import summary_lines

ASKED = (
    "studies.substitution.sets={ends: [0, 5]}",
    "studies.substitution.modules=[mlp]",
    "studies.substitution.coefficients=[0.5]",
    "studies.substitution.reverse=true",
    "studies.similarity=null",
    "studies.correlation=null",
)


def test_all_changes_taken_again_are_the_sweeps(
    make_config: Callable[..., Config], tables_of: Callable[[Done], dict[str, pd.DataFrame]], tmp_path: Path
) -> None:
    done = drive(make_config(tmp_path / "run", *ASKED, "studies.substitution.verify=100"))
    assert not done.failed
    tables = tables_of(done)
    rows, swept = tables["verification"], tables["substitution"]
    key = ["kind", "layers", "coefficient", "example_id"]
    assert len(rows) == 4 * len(swept[key[:3]].drop_duplicates()), "four examples each"
    both = rows.merge(swept[[*key, "loss"]], on=key, suffixes=("", "_swept"))
    assert len(both) == len(rows)
    assert (both["loss"] == both["loss_swept"]).all()
    assert (both["recomputed"] - both["loss"]).abs().max() < 1e-5
    np.testing.assert_array_equal(rows["difference"], rows["recomputed"] - rows["loss"])
    assert rows.groupby(key[:3])["recomputed"].mean().nunique() > 20, (
        "the models differ, so that agreement says something"
    )
    n = len(swept[key[:3]].drop_duplicates())
    line = summary_lines(tables)[-1]
    assert line.startswith(
        f"m on first: {n} windows or other changes recomputed by actually swapping the modules, on 4 examples; losses"
    )
    assert drive(make_config(tmp_path / "run", *ASKED, "studies.substitution.verify=100")).n_calls == 0


def test_a_few_are_drawn_by_a_seed(make_config: Callable[..., Config], tmp_path: Path) -> None:
    config = make_config(tmp_path / "run", "studies.substitution.verify=3")
    facts = inspect(config)
    first, again = (drawn(config, list(plan(config, facts).of_kind("substitute"))) for _ in range(2))
    assert [task.name for task in first] == [task.name for task in again]
    assert len(first) == 3
    (task,) = plan(config, facts).of_kind("verify")
    assert task.needs == tuple(task.name for task in first)
    assert task.name == "verify m/first"


def test_a_difference_fails_the_task_and_nothing_else(
    make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = work.true_losses

    def off(*of: Any) -> np.ndarray:
        return true(*of) + np.array([0.0, 0.0, 1e-3, 0.0])

    monkeypatch.setattr(work, "true_losses", off)
    done = drive(make_config(tmp_path / "run", "studies.substitution.verify=2"))
    assert list(done.failed) == ["verify m/first"]
    message = done.failed["verify m/first"]
    assert "recomputed by swapping the modules has a different loss for record 2: " in message
    assert "which rounding in float32 does not explain. Do not trust this run's losses" in message
    monkeypatch.undo()
    assert not drive(make_config(tmp_path / "run", "studies.substitution.verify=2")).failed
