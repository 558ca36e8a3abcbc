"""Whether the examples seen so far are enough: pure functions of a prefix of examples in random order.

The examples are a finite population of N, seen in an order drawn at random, so that every prefix is a sample without
replacement. Which prefixes are looked at, and what is concluded, is left to the caller.

Shape suffixes: C curves (windows), n examples seen.
"""

from __future__ import annotations

import numpy as np
import scipy  # its parts are loaded where they are used, for that takes a while
from numpy.typing import ArrayLike, NDArray

from raysweep.numerics.resampling import mean_interval


def half_widths(values_Cn: ArrayLike, level: float = 0.95) -> NDArray[np.float64]:
    """Half of the width [C] of each row's Student's t interval, NaN values left out, in the units of the values.

    NaN for a row with fewer than two values, or with an infinite one. Raises ValueError for a level outside (0, 1).
    """
    values_Cn = _matrix(values_Cn)
    ends = [mean_interval(row, level) if not np.isinf(row).any() else (np.nan, np.nan) for row in values_Cn]
    return np.array([(high - low) / 2 for low, high in ends])


def top_candidates(values_Cn: ArrayLike, k: int, of: int, error: float, resolution: float = 0.0) -> NDArray[np.bool_]:
    """Which rows [C] may be among the k whose means over all `of` examples are highest, given the n seen.

    Row v is told to be above row w where the lower limit of the mean of their paired difference is above `resolution`:
    Student's t at the one-sided level error / (k · (C − k)), the variance of a mean of n out of N drawn without
    replacement, (s²/n)(1 − n/N). A row is a candidate while fewer than k others are told to be above it.

    Why k · (C − k): a row of the true top k has fewer than k rows truly above it, so it is lost only if it is told to
    be below one of the C − k others; by Bonferroni over these pairs that has a probability of at most `error`, however
    the rows depend on one another, where the paired means are near normal.

    Examples with a NaN in any row are left out. At n = N the means are exact and `error` plays no part; rows within
    `resolution` of the k-th are candidates too. Before, nothing is told of a pair whose differences have a standard
    deviation of no more than `resolution`, or are not finite. Raises ValueError unless 1 ≤ k < C, 2 ≤ n ≤ N and 0 < error < 1.
    """
    values_Cn = _matrix(values_Cn)
    curves, seen = values_Cn.shape
    if not 1 <= k < curves or not 2 <= seen <= of or not 0 < error < 1:
        raise ValueError(f"need 1 <= k < {curves}, 2 <= {seen} <= of and 0 < error < 1; got {k}, {of} and {error}")
    values_Cn = values_Cn[:, ~np.isnan(values_Cn).any(axis=0)]
    n = values_Cn.shape[1]
    above_C = np.zeros(curves, dtype=int)
    if n < 2 and seen < of:
        return above_C < k
    critical = float(scipy.stats.t.isf(error / (k * (curves - k)), n - 1)) if seen < of else 0.0
    with np.errstate(invalid="ignore"):
        means_C = values_Cn.mean(axis=1) if n else np.full(curves, np.nan)
        for v in range(curves):
            apart_C = means_C[v] - means_C
            if seen < of:
                variance_C = (values_Cn[v] - values_Cn).var(axis=1, ddof=1)
                limit_C = apart_C - critical * np.sqrt(variance_C / n * (1 - seen / of))
                apart_C = np.where(variance_C > resolution**2, limit_C, resolution)
            above_C += apart_C > resolution
    return above_C < k


def _matrix(values: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2:
        raise ValueError(f"expected a matrix of values; got shape {values.shape}")
    return values
