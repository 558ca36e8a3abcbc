"""A batch's labels (the response tokens whose loss counts) on the devices that need them.

Shapes: B examples of a batch, M labelled tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from raysweep.data.batches import labelled_positions
from raysweep.data.examples import Example
from raysweep.models.transfers import to_device


@dataclass(frozen=True)
class PlacedLabels:
    """Labels on one device: `rows`, `cols` and `targets` [M] as `labelled_positions` has them, `counts` [B] by example."""

    rows: torch.Tensor
    cols: torch.Tensor
    targets: torch.Tensor
    counts: torch.Tensor

    def means(self, values: torch.Tensor) -> torch.Tensor:
        """Mean by example, float64 [..., B], of float64 values [..., M] on the same device."""
        return values.new_zeros(*values.shape[:-1], len(self.counts)).index_add_(-1, self.rows, values) / self.counts


class Labels:
    """The labels of one batch, copied to each device once."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._positions = torch.from_numpy(np.stack(labelled_positions(examples)))
        self._counts = torch.from_numpy(np.array([example.n_tokens for example in examples], dtype=np.int64))
        self._placed: dict[torch.device, PlacedLabels] = {}

    def on(self, device: torch.device) -> PlacedLabels:
        """The labels on this device."""
        if device not in self._placed:
            rows, cols, targets = to_device(self._positions, device).unbind()
            self._placed[device] = PlacedLabels(rows, cols, targets, to_device(self._counts, device))
        return self._placed[device]
