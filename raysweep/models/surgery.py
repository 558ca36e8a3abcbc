"""Changes to a loaded model that are always undone: context managers that restore in `finally`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def substitute(blocks: nn.ModuleList, donors: nn.ModuleList, layers: Iterable[int]) -> Iterator[None]:
    """Put the donor's blocks in the place of `layers` (indices from 0) while the context lasts; no weight is copied.

    Raises IndexError for a layer that either list lacks, before anything is changed.
    """
    chosen = sorted(set(layers))
    for index in chosen:
        if not 0 <= index < min(len(blocks), len(donors)):
            raise IndexError(f"layer {index} is not among {len(blocks)} layers and {len(donors)} donor layers")
    real = {index: blocks[index] for index in chosen}
    try:
        for index in chosen:
            blocks[index] = donors[index]
        yield
    finally:
        for index, block in real.items():
            blocks[index] = block
