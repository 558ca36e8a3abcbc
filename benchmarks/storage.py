"""What checksums cost where stored states are read, and what writing them by several threads gains.

32 layers, 320 examples of width 4,096 in bfloat16, in 10 parts: what the paper's largest model leaves of one data set. Beside it
the time of the study that reads them, linear CKA between all layers. Page cache warm; medians of 5 rounds.

Writing: one part at a time, by one thread and by several, in turn; on this disk, and with flushes of 5 ms, as of a network
file system or a disk that others use.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from common import in_turn, spread

from raysweep.numerics.cka import cka_matrix
from raysweep.store import activation_writing
from raysweep.store.activation_writing import publish_manifest, write_part
from raysweep.store.activations import Activations, open_activations

LAYERS, PARTS, ROWS, WIDTH = 32, 10, 32, 4096
ROUNDS = 5
FLUSH_SECONDS = 0.005
WRITTEN_PARTS = 4


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


def writing(folder: Path) -> None:
    """Compare writing parts by one thread and by several."""
    states, ids = torch.randn(LAYERS, ROWS, WIDTH).to(torch.bfloat16), np.arange(ROWS)
    several, flush, cpu = activation_writing.WRITERS, os.fsync, dict[int, float]()

    def write(threads: int) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        started = time.process_time()
        with patch.object(activation_writing, "WRITERS", threads):
            for part in range(WRITTEN_PARTS):
                write_part(folder, f"{part:04d}", states, ids, ids, ids)
        cpu[threads] = time.process_time() - started

    def slow(descriptor: int) -> None:
        flush(descriptor)
        time.sleep(FLUSH_SECONDS)

    for what, used in (("this disk", flush), (f"flushes take {1000 * FLUSH_SECONDS:.0f} ms more", slow)):
        with patch.object(os, "fsync", used):
            one, more = in_turn(ROUNDS, lambda: write(1), lambda: write(several))
        ratios = [b / a for a, b in zip(one, more, strict=True)]
        print(
            f"writing {WRITTEN_PARTS} parts of {LAYERS} layers, {what}: 1 thread {spread(one)} s, {several} threads {spread(more)} s, "
            f"ratio {spread(ratios)}; CPU time {cpu[1]:.2f} and {cpu[several]:.2f} s"
        )


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
        writing(Path(name) / "written")
    with_, without = statistics.median(checked), statistics.median(unchecked)
    print(
        f"{size / 1e6:.0f} MB in {LAYERS * PARTS} files: read in {with_:.3f} s with checksums, {without:.3f} s without"
    )
    print(
        f"checksums: {size / (with_ - without) / 1e9:.2f} GB/s; {(with_ - without) / study:.1%} of reading and linear CKA ({study:.2f} s)"
    )


if __name__ == "__main__":
    main()
