"""Inner products of linear kernels by the cheapest way that there is, and which layers have none to speak of.

Shape suffixes: L layers, N examples, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysweep.numerics.centred_rows import working_dtype
from raysweep.numerics.cross_products import cross_products, groups_for
from raysweep.numerics.device_products import device_products, device_tile, on_one_device
from raysweep.numerics.gram import Array, LayerError, LinearGram, States, as_float64, input_epsilon
from raysweep.numerics.gram_tiles import tile_for, tile_products
from raysweep.numerics.products import Products

# A squared norm within these bounds, and its products with others, are far from what the dtype can hold.
_SAFE_NORMS = {4: (1e-28, 1e34), 8: (1e-100, 1e100)}
_FLOAT64_COST = 4.0  # of a product of kernels, which is float64, in products of states in the working dtype
_DOUBLE = np.dtype(np.float64)
_SINGLE_EPS = 2.0**-23
_NEAR_ROUNDING = 2.0**10  # units in the last place: below, whether a layer varies is looked at exactly


def linear_products(
    layers: Sequence[States], tile: int | None, memory: int, *, debiased: bool
) -> tuple[Products, NDArray[np.bool_]]:
    """The layers' `Products`, and which layers are `constant` [L]; theirs are rounding and mean nothing.

    `tile` set asks for tiles of that side; `debiased` for digits enough to take the diagonals' part out. Raises
    ValueError, naming layer and example, for states that are not finite.
    """
    itemsize = working_dtype(layers).itemsize
    with np.errstate(over="ignore", invalid="ignore"):  # what overflowed is looked at below
        products = _cheapest(layers, tile, memory)
    constant_L, divisors = _looked_at_exactly(layers, products.diagonals, itemsize)
    if debiased and not divisors and _lacks_digits(products, constant_L):
        divisors = dict.fromkeys(range(len(layers)), 1.0)
    if divisors:
        layers = [_InDouble(states_ND, divisors.get(layer, 1.0)) for layer, states_ND in enumerate(layers)]
        products = _cheapest(layers, tile, memory)
    return products, constant_L


def _lacks_digits(products: Products, constant_L: NDArray[np.bool_]) -> bool:
    """Whether in some layer single precision leaves less than six digits of the norm that no diagonal has a part in.

    So it is where one example is very far from all others. What is taken off then, a share of the squared diagonal, is
    of the size of the biased norm over N, and rounded to about 2·eps/N of that norm.
    """
    if products.eps < _SINGLE_EPS:
        return False
    examples = products.row_sums.shape[1]
    rounding_L = 2 * products.eps / examples * products.biased.diagonal()
    return bool((products.debiased.diagonal() < 1e6 * rounding_L)[~constant_L].any())


def cheaper_by_dimensions(layers: Sequence[States]) -> bool:
    """Whether products of dimensions cost less than those of examples, by the multiplications that each way takes.

    Products of examples: N²/2 for each dimension of each layer, and N²/2 for every two layers, in float64; products of
    dimensions: N/2 for every two dimensions of all layers, each as much as two in single precision.
    """
    examples, dimensions = layers[0].shape[0], sum(states_ND.shape[1] for states_ND in layers)
    by_examples = examples**2 / 2 * (dimensions + _FLOAT64_COST * len(layers) ** 2 / 2)
    return examples * dimensions**2 / 2 * (8 / working_dtype(layers).itemsize) < by_examples


def _cheapest(layers: Sequence[States], tile: int | None, memory: int) -> Products:
    if on_one_device(layers):
        return device_products(layers, tile or device_tile(memory, layers))
    dtype = working_dtype(layers)
    if tile is None and cheaper_by_dimensions(layers):
        # In float64: what single precision rounds in ‖XᵀY‖² it does not in ‖XᵀX‖², and of layers that are alike CKA came out
        # above 1. Kernels of examples are rounded once for all their products.
        return cross_products(layers, groups_for(memory, layers, _DOUBLE), _DOUBLE)
    return tile_products(layers, tile or tile_for(memory, layers, dtype), dtype)


def _looked_at_exactly(
    layers: Sequence[States], diagonal_LN: Array, itemsize: int
) -> tuple[NDArray[np.bool_], dict[int, float]]:
    """Which layers are constant, and the greatest deviation of those that the working dtype could not hold.

    Only where the squared norms of a layer's centred states leave it open are its states read again.
    """
    least, greatest = _SAFE_NORMS[itemsize]
    working_eps = _SINGLE_EPS if itemsize == 4 else 2.0**-52
    constant_L = np.zeros(len(layers), dtype=bool)
    peaks = {}
    for layer, states_ND in enumerate(layers):
        mean_square = float(diagonal_LN[layer].mean())
        first = float(np.square(as_float64(states_ND[0:1])).sum())
        held = least < mean_square < greatest  # False for NaN
        if held and mean_square > (input_epsilon(states_ND) + _NEAR_ROUNDING * working_eps) ** 2 * first:
            continue
        try:
            gram = LinearGram(states_ND)
        except ValueError as error:
            raise LayerError(layer, error) from None
        constant_L[layer] = gram.constant
        if not gram.constant and not held:
            peaks[layer] = gram.peak
    return constant_L, peaks


class _InDouble:
    """States in float64, divided by a number: with their greatest deviation, squares neither overflow nor vanish."""

    dtype = "float64"

    def __init__(self, states_ND: States, divisor: float) -> None:
        self.shape = tuple(states_ND.shape)
        self._states_ND = states_ND
        self._divisor = divisor

    def __getitem__(self, rows: slice, /) -> Any:
        return as_float64(self._states_ND[rows]) / self._divisor
