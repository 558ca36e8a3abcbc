"""A small world of checkpoints, records and a config that a test may spoil."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml
from spoil import CONTEXT, LAYERS

WORDS = ["one", "two", "three", "four", "five", "six", "seven"]


@pytest.fixture(scope="session")
def kept(tmp_path_factory, tiny_pair, tokenizer):
    """Checkpoints `base` and `tuned`, and ten records. Not to be changed."""
    folder = tmp_path_factory.mktemp("kept")
    for name, model in zip(("base", "tuned"), tiny_pair("llama", LAYERS, max_position_embeddings=CONTEXT), strict=True):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    records = [{"question": f"Count {' '.join(WORDS[: 1 + i % 5])}?", "answer": WORDS[i % 7]} for i in range(10)]
    (folder / "counts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.fixture
def world(kept, tmp_path):
    """A copy of `kept` that a test may spoil, with a config on it whose run lies in `run`."""
    shutil.copytree(kept, tmp_path / "world")
    world = tmp_path / "world"
    values = {
        "name": "mine",
        "models": [{"name": "m", "base": str(world / "base"), "tuned": {"d": str(world / "tuned")}}],
        "datasets": [{"name": "d", "path": str(world / "counts.jsonl"), "format": "gsm8k"}],
        "studies": {"substitution": {"widths": [1]}, "similarity": {}, "correlation": {"resamples": 20}},
        "execution": {"chunk": 4, "device": "cpu"},
        "storage": str(tmp_path / "run"),
    }
    (world / "config.yaml").write_text(yaml.safe_dump(values))
    return world
