"""Inner products of linear kernels on the CUDA device that the states lie on, in float64.

float64 because a device's float32 products may be rounded to ten bits, by a setting of torch's that is not ours; data
centre cards are as fast in it. Nothing but the result leaves the device.

Shape suffixes: L layers, N examples, A and B the examples of a tile's rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from raysweep.numerics.gram import States, as_float64, row_blocks
from raysweep.numerics.products import Products


def on_one_device(layers: Sequence[States]) -> bool:
    """Whether all layers are tensors on one CUDA device."""
    devices = {str(getattr(states_ND, "device", "cpu")) for states_ND in layers}
    return len(devices) == 1 and devices.pop().startswith("cuda")


def device_tile(memory: int, layers: Sequence[States]) -> int:
    """The side of the greatest tile that fits into `memory` bytes, all examples where that fits; one example at least."""
    examples, widest = layers[0].shape[0], max(states_ND.shape[1] for states_ND in layers)
    room = memory / 8
    tile = (math.sqrt((3 * widest) ** 2 + 4 * len(layers) * room) - 3 * widest) / (2 * len(layers))
    return max(1, min(math.floor(tile), examples))


def device_products(layers: Sequence[Any], tile: int) -> Products:
    """`Products` of the linear kernels of tensors that lie on one device, over tiles of `tile` × `tile` examples."""
    examples = layers[0].shape[0]
    blocks = row_blocks(examples, tile)
    height = max(rows.stop - rows.start for rows in blocks)
    means = [sum(states_ND[rows].detach().double().sum(0) for rows in blocks) / examples for states_ND in layers]
    like = means[0]  # of the dtype and on the device that everything else is to be
    F_LL = like.new_zeros((len(layers), len(layers)))
    sums_LN, diagonal_LN = (like.new_zeros((len(layers), examples)) for _ in range(2))
    K_T = like.new_empty(len(layers) * height**2)
    for place, rows in enumerate(blocks):
        for cols in blocks[place:]:
            shape = (len(layers), rows.stop - rows.start, cols.stop - cols.start)
            K_LAB = K_T[: math.prod(shape)].view(shape)
            for layer, (states_ND, mean_D) in enumerate(zip(layers, means, strict=True)):
                X_AD = states_ND[rows].detach().double() - mean_D
                X_BD = X_AD if rows == cols else states_ND[cols].detach().double() - mean_D
                K_LAB[layer] = X_AD @ X_BD.T
            sums_LN[:, rows] += K_LAB.sum(2)
            if rows == cols:
                diagonal_LN[:, rows] = K_LAB.diagonal(dim1=1, dim2=2)
                K_LAB.diagonal(dim1=1, dim2=2).zero_()
            else:
                sums_LN[:, cols] += K_LAB.sum(1)
            V_LT = K_LAB.view(len(layers), -1)
            F_LL += (1 if rows == cols else 2) * (V_LT @ V_LT.T)
    return Products(as_float64(F_LL), as_float64(sums_LN), as_float64(diagonal_LN), float(np.finfo(np.float64).eps))
