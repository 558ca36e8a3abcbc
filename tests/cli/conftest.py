"""A small world of checkpoints and records for the command line: random models, sentences of a few words."""

from __future__ import annotations

import json

import pytest
import yaml
from command_line import ended, started

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


@pytest.fixture(scope="session")
def world(tmp_path_factory, tiny, tiny_pair, tokenizer):
    """Checkpoints `base`, `tuned` and ones that do not belong with them, and twelve records."""
    folder = tmp_path_factory.mktemp("world")
    base, tuned = tiny_pair("llama", 5, max_position_embeddings=128)
    models = {
        "base": base,
        "tuned": tuned,
        "deeper": tiny("llama", 6, max_position_embeddings=128),
        "wider": tiny("llama", 5, width=24, max_position_embeddings=128),
        "larger": tiny("llama", 5, vocab_size=336, max_position_embeddings=128),
        "other": tiny("qwen3", 5, max_position_embeddings=128),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    records = [
        {"question": f"Count {' '.join(WORDS[: 1 + i % 7])}?", "answer": " ".join(WORDS[i % 5 : 3 + (3 * i) % 7])}
        for i in range(12)
    ]
    (folder / "counts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def settings(world, storage):
    return {
        "name": "mine",
        "models": [{"name": "m", "base": str(world / "base"), "tuned": {"d": str(world / "tuned")}}],
        "datasets": [{"name": "d", "path": str(world / "counts.jsonl"), "format": "gsm8k"}],
        "studies": {"substitution": {"widths": [2]}, "similarity": {}, "correlation": {"resamples": 20}},
        "execution": {"chunk": 4, "device": "cpu"},
        "storage": str(storage),
    }


@pytest.fixture
def config(world, tmp_path):
    """A config file whose run lies beside it, in `run`."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings(world, tmp_path / "run")))
    return path


@pytest.fixture(scope="session")
def swept(world, tmp_path_factory):
    """`raysweep sweep` as a user runs it: its result and its run folder."""
    folder = tmp_path_factory.mktemp("swept")
    arguments = [world / "base", world / "tuned", world / "counts.jsonl", "--width", 2, "--width", 1, "--limit", 11]
    changes = ["--set", "execution.chunk=4", "--set", "studies.correlation.resamples=20"]
    return ended(started("sweep", *arguments, *changes, "--out", folder / "run")), folder / "run"
