"""Change points of a similarity matrix: the depth cut into stretches of layers that are alike, by `ruptures`.

Another answer to the question that δ answers with its smallest values: here the whole matrix is used, and how many changes
there are is found, not given.

Shape suffixes: L layers, K dimensions.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysweep.numerics.gram import Array, as_float64

_EPS = float(np.finfo(np.float64).eps)


def segment_starts(S_LL: ArrayLike, penalty: float | None = None) -> NDArray[np.intp]:
    """The first layers of the second, third, … stretch of layers that are alike, ascending; none where all are.

    Kernel change-point detection (Arlot, Celisse & Harchaoui, 2019): S is taken as inner products of the layers, as biased
    CKA is (of another measure, negative eigenvalues are left out: the nearest S that is), and the stretches are those with the
    least Σ over stretches of (trace of S there − its sum / length) + penalty · (number of stretches), found exactly by PELT.

    The penalty is 2 σ² ln L unless given (Bayesian information's for a change of the mean), σ² being half the median squared
    distance S_ll + S_mm − 2 S_lm of neighbouring layers l and m: a stretch of its own must explain as much as 2 ln L usual
    steps. Layers whose similarity is NaN belong to no stretch, and their neighbours are taken as neighbours.

    Raises ValueError unless S is square and the penalty positive.
    """
    S_LL = as_float64(S_LL)
    if S_LL.ndim != 2 or S_LL.shape[0] != S_LL.shape[1]:
        raise ValueError(f"a similarity matrix is square [L, L]; got shape {S_LL.shape}")
    if penalty is not None and not penalty > 0:
        raise ValueError(f"a penalty is positive; got {penalty}")
    (known,) = np.nonzero(~np.isnan(S_LL.diagonal()))
    S_LL = S_LL[np.ix_(known, known)]
    if len(known) < 2 or np.isnan(S_LL).any():
        return np.empty(0, dtype=np.intp)
    from ruptures import KernelCPD  # slow to import, and little else needs it

    penalty = default_penalty(S_LL) if penalty is None else penalty
    ends = KernelCPD(kernel="linear", min_size=1).fit(_embedded(S_LL)).predict(pen=penalty)
    starts: NDArray[np.intp] = known[np.array(ends[:-1], dtype=np.intp)]
    return starts


def default_penalty(S_LL: Array) -> float:
    """2 σ² ln L as `segment_starts` says; where most layers equal the next, what float64's rounding comes to."""
    diagonal_L = S_LL.diagonal()
    steps = diagonal_L[1:] + diagonal_L[:-1] - 2 * S_LL.diagonal(1)
    usual = float(np.median(steps)) / 2
    return max(2 * usual * math.log(len(S_LL)), len(S_LL) ** 2 * _EPS * float(diagonal_L.max()))


def _embedded(S_LL: Array) -> Array:
    """Points [L, K] whose inner products are S, its negative eigenvalues left out."""
    values_K, vectors_LK = np.linalg.eigh((S_LL + S_LL.T) / 2)
    kept = values_K > 0
    points_LK: Array = vectors_LK[:, kept] * np.sqrt(values_K[kept])
    return points_LK
