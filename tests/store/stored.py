"""Activations of random bits, written as a store and read with plain pyarrow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from raysweep.store.activation_writing import publish_manifest, write_part
from raysweep.store.artifacts import FileEntry

DTYPES = ["bfloat16", "float16", "float32"]
ARROW = {"bfloat16": pa.uint16(), "float16": pa.float16(), "float32": pa.float32()}
LABELS = {"pooling": "last", "model": "tiny", "dataset": "sums"}


def random_bits(dtype: str, shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, torch.Tensor]:
    """Random bit patterns (infinities, subnormals and NaNs with payloads among them), and the tensor they are."""
    unsigned = np.uint32 if dtype == "float32" else np.uint16
    bits = np.random.default_rng(seed).integers(0, np.iinfo(unsigned).max, shape, unsigned, endpoint=True)
    return bits, torch.from_numpy(bits.copy()).view(getattr(torch, dtype))


def bits_of(tensor: torch.Tensor) -> np.ndarray:
    return tensor.view(torch.uint32 if tensor.element_size() == 4 else torch.uint16).numpy()


def write(folder: Path, states_LND: torch.Tensor, rows_of: list[int] | None = None, **changes: Any) -> list[FileEntry]:
    """A whole store of parts with the given numbers of rows; ids tell rows apart."""
    n_layers, rows, width = states_LND.shape
    entries, parts, start = [], [], 0
    for number, count in enumerate(rows_of or [rows]):
        ids = np.arange(start, start + count)
        parts.append(f"{number:04d}")
        entries += write_part(folder, parts[-1], states_LND[:, start : start + count], ids + 100, ids % 7, ids * 2**33)
        start += count
    dtype = str(states_LND.dtype).removeprefix("torch.")
    facts = {"parts": parts, "files": entries, "layers": n_layers, "width": width, "torch_dtype": dtype} | LABELS
    publish_manifest(folder, **(facts | changes))
    return entries


def read_plainly(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()
