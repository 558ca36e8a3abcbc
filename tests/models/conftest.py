"""Checkpoints of tiny models and adapters on disk."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edits import ALPHA, RANK
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from raysweep.models.checkpoint import (
    Checkpoint,
    describe,
)

Build = Callable[..., PreTrainedModel]
Save = Callable[..., Checkpoint]


@pytest.fixture
def save(tiny: Build, tmp_path: Path) -> Save:
    """save(name, kind, **as tiny) writes a tiny model's checkpoint and describes it."""

    def write(name: str, kind: str = "llama", **more: Any) -> Checkpoint:
        tiny(kind, **more).save_pretrained(tmp_path / name)
        return describe(str(tmp_path / name))

    return write


@pytest.fixture
def save_lora(tiny: Build, tmp_path: Path) -> Save:
    """save_lora(name, **as tiny) writes a LoRA adapter with random factors, and describes it."""

    def write(name: str, **more: Any) -> Checkpoint:
        config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT's own, about transformers
            get_peft_model(tiny("llama", **more), config).save_pretrained(tmp_path / name)
        return describe(str(tmp_path / name))

    return write


@pytest.fixture(scope="module")
def kept(tiny: Callable[..., PreTrainedModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in one file (`whole`) and in several (`shards`); not to be changed by a test."""
    folder = tmp_path_factory.mktemp("kept")
    tiny("llama").save_pretrained(folder / "whole")
    tiny("llama").save_pretrained(folder / "shards", max_shard_size="20KB")
    return folder


@pytest.fixture
def whole(kept: Path, tmp_path: Path) -> Path:
    return shutil.copytree(kept / "whole", tmp_path / "whole")


@pytest.fixture
def shards(kept: Path, tmp_path: Path) -> Path:
    return shutil.copytree(kept / "shards", tmp_path / "shards")
