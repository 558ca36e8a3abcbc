"""Blocks of rows of a layer's states, centred over all examples, in the dtype that they are multiplied in.

Shape suffixes: N examples, D width, A the examples of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysweep.numerics.gram import States, row_blocks

Block = NDArray[np.floating[Any]]
Working = np.dtype[np.float32] | np.dtype[np.float64]

_FEW_EXAMPLES = 64  # below, products take no longer than reading the states
_SINGLE = ("float32", "bfloat16", "float16")
_READ_NUMBERS = 2**20  # of states that are read together for their mean
_SUMMED_ROWS = 128  # in the working dtype; sums of more are float64's


def working_dtype(layers: Sequence[States]) -> Working:
    """What the states are multiplied in: float32 for many examples of states no finer than that, else float64.

    The products of float32 are summed up in float64 by who makes them.
    """
    single = all(str(states_ND.dtype).removeprefix("torch.") in _SINGLE for states_ND in layers)
    return np.dtype(np.float32) if single and layers[0].shape[0] >= _FEW_EXAMPLES else np.dtype(np.float64)


class CentredRows:
    """One layer's states less their mean, read a block of rows at a time.

    The mean is rounded to the working dtype. What is left of it in the rows is the same in all of them, about a unit in
    the last place of the states: too little to cost the products a digit, and they can be centred by what follows.
    """

    def __init__(self, states_ND: States, dtype: Working) -> None:
        self.examples, self.width = states_ND.shape
        self._states_ND = states_ND
        self._dtype = dtype
        self._mean_D: Block | None = None

    def read(self, rows: slice, out_AD: Block) -> None:
        """Put the centred rows [A, D] into `out_AD`."""
        X_AD = self._rows(rows)
        if self._mean_D is None:
            self._mean_D = self._mean_of(X_AD) if len(X_AD) == self.examples else self._mean_of(None)
        np.subtract(X_AD, self._mean_D, out=out_AD)

    def _rows(self, rows: slice) -> Block:
        """The states themselves; no copy where they are a numpy array or CPU tensor of the working dtype already."""
        block = self._states_ND[rows]
        if hasattr(block, "detach"):
            block = block.detach().cpu()
            block = (block.float() if self._dtype == np.float32 else block.double()).numpy()
        return np.asarray(block, dtype=self._dtype)

    def _mean_of(self, everything_ND: Block | None) -> Block:
        sum_D = np.zeros(self.width)
        for rows in row_blocks(self.examples, max(_SUMMED_ROWS, _READ_NUMBERS // self.width)):
            X_AD = self._rows(rows) if everything_ND is None else everything_ND[rows]
            for part in row_blocks(len(X_AD), _SUMMED_ROWS):
                sum_D += np.ones(part.stop - part.start, self._dtype) @ X_AD[part]
        mean_D: Block = (sum_D / self.examples).astype(self._dtype)
        return mean_D
