"""`raysweep run --verify N` from the command line to its table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from command_line import Result


@pytest.mark.parametrize(
    "asked", [("--verify", "2"), ("--set", "studies.substitution.verify=2")], ids=["--verify", "verify"]
)
def test_losses_taken_again_are_a_table_of_their_own(
    asked: tuple[str, ...], config: Path, tmp_path: Path, raysweep: Callable[..., Result]
) -> None:
    code, out, err = raysweep("run", config, *asked)
    assert code == 0, err
    text = " ".join(out.split())
    assert (
        "m on d: 2 windows or other changes recomputed by actually swapping the modules, on 4 examples; losses" in text
    )
    rows = pd.read_parquet(tmp_path / "run" / "results" / "verification.parquet")
    assert len(rows) == 2 * 4
    assert rows["layers"].nunique() == 2
    swept = pd.read_parquet(tmp_path / "run" / "results" / "substitution.parquet")
    both = rows.merge(swept, on=["kind", "layers", "coefficient", "example_id"], suffixes=("", "_swept"))
    assert (both["loss"] == both["loss_swept"]).all()
    assert len(both) == len(rows)
    assert (rows["recomputed"] - rows["loss"]).abs().max() < 1e-5
