"""What follows from a similarity matrix along the depth: the dynamics δ, and the layers where it is smallest.

Shape suffixes: L layers, K neighbourhoods.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysweep.numerics.gram import Array, as_float64


def local_dynamics(S_LL: ArrayLike, neighbourhood: int | Sequence[int] = 3, diagonal: bool = True) -> Array:
    """Compute δ: each layer's mean similarity to its neighbourhood, small where representations change.

    δ[l] is the mean of S[l, j] over |j − l| ≤ neighbourhood // 2, with fewer layers at both ends. With a measure whose diagonal is
    1, `diagonal` does not change the order of the layers except at the ends, where it makes δ higher.

    Args:
        S_LL: A similarity matrix [L, L].
        neighbourhood: How many layers to average over, an odd number; or several such numbers.
        diagonal: Count a layer's similarity to itself, as the paper does.

    Returns:
        δ [L], or [K, L] for K neighbourhoods. A NaN in the neighbourhood makes it NaN; so does having no neighbour.

    Raises:
        ValueError: S is not square, or the neighbourhood is even, or below 3 without the diagonal.
    """
    if isinstance(neighbourhood, Iterable):
        return np.stack([local_dynamics(S_LL, each, diagonal) for each in neighbourhood])
    S_LL = as_float64(S_LL)
    reach = reach_of(neighbourhood, diagonal)
    if S_LL.ndim != 2 or S_LL.shape[0] != S_LL.shape[1]:
        raise ValueError(f"a similarity matrix is square [L, L]; got shape {S_LL.shape}")
    delta_L = np.full(len(S_LL), np.nan)
    for layer, row_L in enumerate(S_LL):
        near = np.arange(max(0, layer - reach), min(len(S_LL), layer + reach + 1))
        chosen = near if diagonal else near[near != layer]
        if len(chosen):
            delta_L[layer] = row_L[chosen].mean()
    return delta_L


def reach_of(neighbourhood: int, diagonal: bool = True) -> int:
    """How many layers to each side are neighbours. Raises ValueError for an even number, and for one that leaves none."""
    if not isinstance(neighbourhood, SupportsIndex) or neighbourhood < 1 or neighbourhood % 2 == 0:
        raise ValueError(f"neighbourhood must be an odd number of layers, 1 or more; got {neighbourhood}")
    if neighbourhood == 1 and not diagonal:
        raise ValueError("a neighbourhood of 1 has no layer but its own: without the diagonal give 3 or more")
    return neighbourhood // 2


def change_points(delta_L: ArrayLike, k: int | None = None) -> NDArray[np.intp]:
    """The k layers with the smallest δ, in ascending layer order; the lower layer first where δ ties.

    k is a fifth of the layers unless given. NaN is never chosen, so fewer than k may come back. Raises ValueError
    unless 1 ≤ k ≤ L.
    """
    delta_L = as_float64(delta_L)
    if delta_L.ndim != 1:
        raise ValueError(f"δ has one value a layer [L]; got shape {delta_L.shape}")
    return np.flatnonzero(chosen_layers(delta_L, k))


def chosen_layers(delta_RL: ArrayLike, k: int | None = None) -> NDArray[np.bool_]:
    """Which layers `change_points` takes in every row of δ [..., L], as a mask of the same shape."""
    delta_RL = as_float64(delta_RL)
    k = how_many(delta_RL.shape[-1], k)
    first_RK = np.argsort(delta_RL, axis=-1, kind="stable")[..., :k]  # NaN sorts behind all numbers
    chosen_RL = np.zeros(delta_RL.shape, dtype=bool)
    np.put_along_axis(chosen_RL, first_RK, True, axis=-1)
    return chosen_RL & ~np.isnan(delta_RL)


def how_many(layers: int, k: int | None = None) -> int:
    """How many layers are chosen: k, or a fifth of them, and one at least. Raises ValueError unless 1 ≤ k ≤ layers."""
    k = max(1, round(layers / 5)) if k is None else k
    if not 1 <= k <= layers:
        raise ValueError(f"k must be from 1 to the number of layers, {layers}; got {k}")
    return k
