"""Changes to a checkpoint on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from raysweep.models.checkpoint import Checkpoint, describe

RANK, ALPHA = 3, 7  # of the adapters that `save_lora` writes


def edit_config(checkpoint: Checkpoint, drop: tuple[str, ...] = (), **changes: Any) -> Checkpoint:
    path = checkpoint.folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in config.items() if k not in drop} | changes))
    return describe(checkpoint.source)


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
