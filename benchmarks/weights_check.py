"""Bytes a second at which a checkpoint's weights are read, digested and looked through for values that are not finite."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import in_turn, machine, spread
from safetensors.torch import save_file

from raysweep.models.tensors import check_finite, read_header, read_tensors

MEGABYTES = 512
_NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64", "float8_e4m3fn": "F8_E4M3"}


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.safetensors"
        one = torch.randn(4096, 4096).to(torch.bfloat16)
        save_file({f"layers.{i}.weight": one + i for i in range(MEGABYTES // 32)}, path)
        size = path.stat().st_size
        tensors = read_header(path)

        def digest() -> str:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()

        seconds = in_turn(5, digest, lambda: read_tensors(path, tensors))
        for what, times in zip(("SHA-256 alone", "with the check"), seconds, strict=True):
            print(f"{what:<15} {spread([size / 1e9 / s for s in times])} GB/s, one thread, {MEGABYTES} MB of bfloat16")
        print(f"the check adds  {spread([b / a - 1 for a, b in zip(*seconds, strict=True)])} of the time")
    for dtype, name in _NAMES.items():
        raw = torch.randn(2**20).to(getattr(torch, dtype)).view(torch.uint8).numpy()
        rows = max(1, 2**28 // len(raw))
        (times,) = in_turn(5, lambda raw=raw, name=name, rows=rows: [_check(raw, name) for _ in range(rows)])
        print(f"check, {dtype:<14} {spread([rows * len(raw) / 1e9 / s for s in times])} GB/s from the cache")
    print(machine())


def _check(raw: np.ndarray, name: str) -> None:
    check_finite(raw, name, "", "x", (len(raw),))


if __name__ == "__main__":
    main()
