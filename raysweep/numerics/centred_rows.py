"""Blocks of rows of a layer's states, centred over all examples, in the dtype that they are multiplied in.

Shape suffixes: N examples, D width, A the examples of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysweep.numerics.gram import Array, States, row_blocks

Block = NDArray[np.floating[Any]]
Working = np.dtype[np.float32] | np.dtype[np.float64]

_FEW_EXAMPLES = 64  # below, products take no longer than reading the states
_SINGLE = ("float32", "bfloat16", "float16")
_SUMMED_ROWS = 512  # in the working dtype; sums of more are float64's


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
        """Put the centred rows [A, D] into `out_AD`, which is also what there is to work in."""
        if self._mean_D is None and rows.stop - rows.start < self.examples:
            sum_D = np.zeros(self.width)
            for block in row_blocks(self.examples, len(out_AD)):
                sum_D += _sum_of(self._rows(block, out_AD[: block.stop - block.start]))
            self._mean_D = self._rounded(sum_D)
        X_AD = self._rows(rows, out_AD)
        if self._mean_D is None:
            self._mean_D = self._rounded(_sum_of(X_AD))
        np.subtract(X_AD, self._mean_D, out=out_AD)

    def _rows(self, rows: slice, out_AD: Block) -> Block:
        """The states as they are, put into `out_AD` unless they are an array of the working dtype already."""
        block = self._states_ND[rows]
        if hasattr(block, "detach"):
            block = block.detach().cpu()
            if str(block.dtype) == "torch.bfloat16":
                return _widened(block, out_AD)
            block = (block.float() if str(block.dtype) == "torch.float16" else block).numpy()
        if block.dtype == out_AD.dtype:
            read_AD: Block = block
            return read_AD
        out_AD[...] = block
        return out_AD

    def _rounded(self, sum_D: Array) -> Block:
        return (sum_D / self.examples).astype(self._dtype)


def _sum_of(X_AD: Block) -> Array:
    sum_D = np.zeros(X_AD.shape[1])
    for rows in row_blocks(len(X_AD), _SUMMED_ROWS):
        sum_D += np.ones(rows.stop - rows.start, X_AD.dtype) @ X_AD[rows]
    return sum_D


def _widened(tensor: Any, out_AD: Block) -> Block:
    """A bfloat16 tensor's values in `out_AD`: numpy has no such dtype, but its bits are the upper half of a float32's.

    torch's own conversion starts threads, which get into the way of those that each work on a layer.
    """
    bits_AD = tensor.view(tensor[:0].short().dtype).numpy().view(np.uint16)
    if out_AD.dtype != np.float32:
        out_AD[...] = _widened(tensor, np.empty(out_AD.shape, np.float32))
        return out_AD
    bits_out_AD = out_AD.view(np.uint32)
    bits_out_AD[...] = bits_AD
    np.left_shift(bits_out_AD, 16, out=bits_out_AD)
    return out_AD
