"""What follows from a similarity matrix along the depth: the dynamics δ, and the layers where it is smallest.

Shape suffixes: L layers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysweep.numerics.gram import Array, as_float64


def local_dynamics(S_LL: ArrayLike, neighbourhood: int = 3) -> Array:
    """δ [L]: the mean of S[l, j] over |j − l| ≤ neighbourhood // 2, j = l included, cut at both ends.

    Small where representations change. NaN among the neighbours gives NaN. Raises ValueError unless S is square and
    the neighbourhood an odd number.
    """
    S_LL = as_float64(S_LL)
    reach = reach_of(neighbourhood)
    if S_LL.ndim != 2 or S_LL.shape[0] != S_LL.shape[1]:
        raise ValueError(f"a similarity matrix is square [L, L]; got shape {S_LL.shape}")
    return np.array([row_L[max(0, layer - reach) : layer + reach + 1].mean() for layer, row_L in enumerate(S_LL)])


def reach_of(neighbourhood: int) -> int:
    """How many layers to each side are neighbours. Raises ValueError for an even number."""
    if neighbourhood < 1 or neighbourhood % 2 == 0:
        raise ValueError(f"neighbourhood must be an odd number of layers, 1 or more; got {neighbourhood}")
    return neighbourhood // 2


def default_top(layers: int) -> int:
    """How many of so many layers are chosen unless a number is given: a fifth, and one at least."""
    return max(1, round(layers / 5))


def change_points(delta_L: ArrayLike, k: int | None = None) -> NDArray[np.intp]:
    """The k layers with the smallest δ, in ascending layer order; the lower layer first where δ ties.

    k is a fifth of the layers unless given. NaN is never chosen, so fewer than k may come back. Raises ValueError
    unless 1 ≤ k ≤ L.
    """
    delta_L = as_float64(delta_L)
    if delta_L.ndim != 1:
        raise ValueError(f"δ has one value a layer [L]; got shape {delta_L.shape}")
    k = default_top(len(delta_L)) if k is None else k
    if not 1 <= k <= len(delta_L):
        raise ValueError(f"k must be from 1 to the number of layers, {len(delta_L)}; got {k}")
    ascending = np.argsort(delta_L, kind="stable")
    return np.sort(ascending[~np.isnan(delta_L[ascending])][:k])
