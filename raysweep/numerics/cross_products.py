"""Inner products of linear kernels from products of dimensions, never of examples: ⟨K_i, K_j⟩ = ‖X_iᵀ X_j‖².

Cheaper than gram_tiles.py where examples outnumber all layers' dimensions together, as in narrow models on much data.

Shape suffixes: L layers, N examples, A the examples of a block, W all dimensions of a group of layers, side by side.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from raysweep.numerics.centred_rows import Block, CentredRows, Working
from raysweep.numerics.gram import Array, States, row_blocks
from raysweep.numerics.products import Products

_BLOCK_ROWS = 1024  # of the states that are multiplied together in the working dtype; sums of more are float64's


def groups_for(memory: int, layers: Sequence[States], dtype: Working) -> list[slice]:
    """The fewest groups of consecutive layers such that the products of two groups fit into `memory` bytes.

    Groups of W dimensions take W² float64 sums, as many products in the working dtype, and three blocks of rows. Raises
    ValueError where the widest layer alone does not fit.
    """
    widths = [states_ND.shape[1] for states_ND in layers]
    per_square = 8 + dtype.itemsize
    per_row = 3 * min(_BLOCK_ROWS, layers[0].shape[0]) * dtype.itemsize
    room = memory - 16 * len(layers) * layers[0].shape[0]
    # The positive root of per_square·W² + per_row·W = room.
    greatest = (math.sqrt(max(0.0, per_row**2 + 4 * per_square * room)) - per_row) / (2 * per_square)
    if greatest < max(widths):
        least = memory - room + per_square * max(widths) ** 2 + per_row * max(widths)
        raise ValueError(f"memory of {memory} bytes is too little for these layers; it takes {least} at least")
    starts, taken = [0], 0
    for layer, width in enumerate(widths):
        if taken + width > greatest:
            starts.append(layer)
            taken = 0
        taken += width
    return [slice(start, stop) for start, stop in itertools.pairwise([*starts, len(layers)])]


def cross_products(layers: Sequence[States], groups: Sequence[slice], dtype: Working) -> Products:
    """`Products` of the layers' linear kernels, centred, from the products of every two groups of layers."""
    examples = layers[0].shape[0]
    sources = [CentredRows(states_ND, dtype) for states_ND in layers]
    F_LL = np.zeros((len(layers), len(layers)))
    diagonal_LN = np.empty((len(layers), examples))
    for place, first in enumerate(groups):
        for second in groups[place:]:
            C_WW = _between(sources[first], None if first == second else sources[second], dtype, diagonal_LN[first])
            for i, rows in zip(range(first.start, first.stop), _columns(sources[first]), strict=True):
                for j, cols in zip(range(second.start, second.stop), _columns(sources[second]), strict=True):
                    F_LL[i, j] = F_LL[j, i] = np.square(C_WW[rows, cols]).sum()
    F_LL -= diagonal_LN @ diagonal_LN.T
    return Products(F_LL, np.zeros_like(diagonal_LN), diagonal_LN, float(np.finfo(dtype).eps))


def _between(
    first: Sequence[CentredRows], second: Sequence[CentredRows] | None, dtype: Working, diagonal_LN: Array
) -> Array:
    """XᵀY of two groups' centred states [W, W]; of one group with itself the squared norms go into `diagonal_LN`."""
    examples = first[0].examples
    widths = [sum(source.width for source in group) for group in (first, second or first)]
    C_WW = np.zeros(widths)
    sums = [np.zeros(width) for width in widths]
    blocks = row_blocks(examples, _BLOCK_ROWS)
    height = max(rows.stop - rows.start for rows in blocks)
    buffers = [np.empty((height, width), dtype) for width in widths]
    for rows in blocks:
        X_AW = _side_by_side(first, rows, buffers[0])
        Y_AW = X_AW if second is None else _side_by_side(second, rows, buffers[1])
        C_WW += X_AW.T @ Y_AW
        for total_W, block_AW in zip(sums, (X_AW, Y_AW), strict=True):
            total_W += block_AW.sum(axis=0)
        if second is None:
            for diagonal_N, columns in zip(diagonal_LN, _columns(first), strict=True):
                diagonal_N[rows] = np.einsum("ad,ad->a", X_AW[:, columns], X_AW[:, columns])
    C_WW -= np.outer(sums[0], sums[1]) / examples  # what rounding left of the means
    return C_WW


def _side_by_side(group: Sequence[CentredRows], rows: slice, buffer_AW: Block) -> Block:
    X_AW = buffer_AW[: rows.stop - rows.start]
    for source, columns in zip(group, _columns(group), strict=True):
        source.read(rows, X_AW[:, columns])
    return X_AW


def _columns(group: Sequence[CentredRows]) -> list[slice]:
    bounds = itertools.accumulate((source.width for source in group), initial=0)
    return [slice(start, stop) for start, stop in itertools.pairwise(bounds)]
