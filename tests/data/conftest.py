"""A tiny tokenizer with a chat template, and a writer of JSONL."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from raysweep.lab.tokenizer import train_tokenizer

TEXTS = ["Name a red fruit.", "A: cherry", "A: cherry", "Cherries are red; limes are green.", "2 + 3 = 5"] * 4


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """Small enough to train for each test, so that a test may change it."""
    return train_tokenizer(TEXTS, vocabulary=320)


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., str]:
    def write(*records: Any) -> str:
        path = tmp_path / "my.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return str(path)

    return write
