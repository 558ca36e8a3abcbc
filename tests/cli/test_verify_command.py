"""`raysweep run --verify N` from the command line to its table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from command_line import Result


@pytest.mark.parametrize(
    "asked", [("--verify", "2"), ("--set", "studies.substitution.verify=2")], ids=["--verify", "verify"]
)
def test_losses_taken_again_are_a_table_of_their_own(
    asked: tuple[str, ...],
    tmp_path: Path,
    tiny_pair: Callable[..., Any],
    tokenizer: Any,
    raysweep: Callable[..., Result],
) -> None:
    for name, model in zip(("base", "tuned"), tiny_pair("llama", 4, max_position_embeddings=128), strict=True):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    records = ({"question": f"Count to {i}?", "answer": "one two three"} for i in range(6))
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    config = {
        "name": "verified",
        "models": [{"name": "m", "base": str(tmp_path / "base"), "tuned": {"d": str(tmp_path / "tuned")}}],
        "datasets": [{"name": "d", "path": str(tmp_path / "d.jsonl"), "format": "gsm8k"}],
        "studies": {"substitution": {"widths": [1]}},
        "execution": {"chunk": 4, "device": "cpu"},
        "storage": str(tmp_path / "run"),
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    code, out, err = raysweep("run", tmp_path / "config.yaml", *asked)
    assert code == 0, err
    assert "m on d: 2 windows or other changes taken again by true substitution on 4 examples, losses" in out
    rows = pd.read_parquet(tmp_path / "run" / "results" / "verification.parquet")
    assert len(rows) == 2 * 4
    assert rows["layers"].nunique() == 2
    swept = pd.read_parquet(tmp_path / "run" / "results" / "substitution.parquet")
    both = rows.merge(swept, on=["kind", "layers", "coefficient", "example_id"], suffixes=("", "_swept"))
    assert (both["loss"] == both["loss_swept"]).all()
    assert len(both) == len(rows)
    assert (rows["recomputed"] - rows["loss"]).abs().max() < 1e-5
