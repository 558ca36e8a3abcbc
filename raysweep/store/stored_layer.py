"""One layer of the activation store whose rows are read when they are asked for: for stores larger than memory.

Where the rows lie in the files is for activations.py to find. N: rows, D: width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from raysweep.errors import StoreError
from raysweep.store.places import read_range

if TYPE_CHECKING:
    from raysweep.store.places import Location


@dataclass(frozen=True)
class Run:
    """Rows [start, stop) of a layer, that lie one after the other in a file from byte `offset` on."""

    path: Location
    start: int
    stop: int
    offset: int


class StoredLayer:
    """States [N, D] on the disk; a slice of rows is read into a new tensor, and nothing is kept.

    It has what a similarity asks of a layer (shape, dtype and slices of rows), so that `cka_matrix` takes a list of them
    in place of a tensor [L, N, D]. Each read opens and closes its files: there may be more of them than may be open.
    """

    def __init__(self, runs: Sequence[Run], rows: int, width: int, dtype: torch.dtype) -> None:
        self.shape = (rows, width)
        self.dtype = dtype
        self._runs = tuple(runs)

    def __getitem__(self, rows: slice, /) -> torch.Tensor:
        """The rows of a slice with step 1. Raises StoreError where a file is shorter than it was."""
        start, stop, step = rows.indices(self.shape[0])
        if step != 1:
            raise IndexError(f"rows are read in their order, one after the other; found step {step}")
        width = self.shape[1]
        read = torch.empty((max(0, stop - start), width), dtype=self.dtype)
        bytes_: npt.NDArray[np.uint8] = read.view(torch.uint8).numpy()  # [rows, bytes of a row]
        for run in self._runs:
            first, last = max(start, run.start), min(stop, run.stop)
            if first < last:
                _read(run, first, bytes_[first - start : last - start])
        return read


def _read(run: Run, first: int, into: npt.NDArray[np.uint8]) -> None:
    at, rest = run.offset + (first - run.start) * into.shape[1], into.reshape(-1).data
    if not isinstance(run.path, Path):
        content = read_range(run.path, at, at + rest.nbytes)
        if lacking := rest.nbytes - len(content):
            raise StoreError(f"{run.path}: ends {lacking} bytes before the rows that it had when it was opened")
        rest[:] = content
        return
    with run.path.open("rb", buffering=0) as file:
        file.seek(at)
        while rest.nbytes:
            got = file.readinto(rest)
            if not got:
                raise StoreError(f"{run.path}: ends {rest.nbytes} bytes before the rows that it had when it was opened")
            rest = rest[got:]
