"""A whole run on the architecture that asks most of it: several streams, and keys and values shared between layers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from architectures import DECODERS, build_pair, plain_losses
from transformers import PreTrainedTokenizerBase

import raysweep as rs


def test_a_run_on_several_streams_and_shared_keys(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    base, tuned = build_pair(DECODERS["gemma3n"])
    for name, model in (("base", base), ("tuned", tuned)):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    records = [{"q": "two " * (1 + i % 4), "a": "three " * (1 + i % 3)} for i in range(9)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    done = rs.run(
        {
            "name": "streams",
            "models": [{"name": "m", "base": str(tmp_path / "base"), "tuned": {"d": str(tmp_path / "tuned")}}],
            "datasets": [
                {"name": "d", "path": str(tmp_path / "d.jsonl"), "format": "columns", "prompt": "q", "response": "a"}
            ],
            "studies": {"substitution": {"widths": [2]}, "similarity": {}, "correlation": {"resamples": 20}},
            "execution": {"chunk": 4, "device": "cpu", "batch_tokens": 64},
            "storage": str(tmp_path / "run"),
        }
    )
    assert done.failed == {}
    examples = rs.load_examples(
        str(tmp_path / "d.jsonl"), "columns", tokenizer, prompt="q", response="a", template="chat"
    ).examples
    losses = done.substitution[done.substitution["layers"] == "2-3"].sort_values("example_id")["loss"]
    np.testing.assert_allclose(losses, plain_losses(base, tuned, examples, [(2, 4)], "model.layers")[0], atol=1e-5)
    expected = rs.cka_matrix(rs.capture(base, examples))
    assert done.similarity["value"].to_numpy() == pytest.approx(expected.ravel(), abs=1e-6)
