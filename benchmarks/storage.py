"""What checksums cost where stored states are read: a run's store on a local disk, read with and without comparing them.

32 layers, 320 examples of width 4,096 in bfloat16, in 10 parts: what the paper's largest model leaves of one data set. Beside it
the time of the study that reads them, linear CKA between all layers. Page cache warm; medians of 5 rounds.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from raysweep.numerics.cka import cka_matrix
from raysweep.store.activation_writing import publish_manifest, write_part
from raysweep.store.activations import Activations, open_activations

LAYERS, PARTS, ROWS, WIDTH = 32, 10, 32, 4096
ROUNDS = 5


def make(folder: Path) -> None:
    """Write the store."""
    torch.manual_seed(0)
    files, ids = [], np.arange(ROWS)
    for part in range(PARTS):
        states = torch.randn(LAYERS, ROWS, WIDTH).to(torch.bfloat16)
        files += write_part(folder, f"{part:04d}", states, ids + part * ROWS, ids, ids)
    told = {"torch_dtype": "bfloat16", "pooling": "last", "model": "made", "dataset": "up"}
    publish_manifest(folder, [f"{part:04d}" for part in range(PARTS)], files, layers=LAYERS, width=WIDTH, **told)


def seconds(store: Activations) -> float:
    """Of reading all states."""
    started = time.perf_counter()
    store.states()
    return time.perf_counter() - started


def main() -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "store"
        make(folder)
        checked, unchecked = [], []
        for _ in range(ROUNDS):
            store = open_activations(folder)
            checked.append(seconds(store))
            unchecked.append(seconds(store))  # each file's checksum was found right just now
        started = time.perf_counter()
        cka_matrix(open_activations(folder).states(), debiased="both")
        study = time.perf_counter() - started
        size = sum(entry.bytes for entry in store.files)
    with_, without = statistics.median(checked), statistics.median(unchecked)
    print(
        f"{size / 1e6:.0f} MB in {LAYERS * PARTS} files: read in {with_:.3f} s with checksums, {without:.3f} s without"
    )
    print(
        f"checksums: {size / (with_ - without) / 1e9:.2f} GB/s; {(with_ - without) / study:.1%} of reading and linear CKA ({study:.2f} s)"
    )


if __name__ == "__main__":
    main()
