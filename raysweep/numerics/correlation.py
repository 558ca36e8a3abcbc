"""Does the layers' δ foretell the losses? Rank correlations along the depth.

All of them use ranks or orders alone, so that an infinite loss counts as the largest; NaN in the input gives NaN, and
so does a side without variation. Vectors are in layer order. Intervals are left to resampling.py, tests to nulls.py.

Shape suffixes: L layers, N places at which both sides are known (window centres), R resamples.
"""

from __future__ import annotations

import numpy as np
import scipy  # its parts are loaded where they are used, for that takes a while
from numpy.typing import ArrayLike, NDArray

from raysweep.numerics.dynamics import change_points

Array = NDArray[np.float64]

_EPS = float(np.finfo(np.float64).eps)


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's ρ, in [−1, 1]: Pearson's correlation of the ranks, ties given their average rank."""
    x_N, y_N = as_pair(x, y)
    return float(spearman_rows(x_N[None], y_N[None])[0])


def spearman_rows(X_RN: ArrayLike, Y_RN: ArrayLike) -> Array:
    """Spearman's ρ of each row of X with the same row of Y [R]; NaN for rows that are constant or hold NaN."""
    X_RN, Y_RN = np.asarray(X_RN, dtype=np.float64), np.asarray(Y_RN, dtype=np.float64)
    if X_RN.shape != Y_RN.shape or X_RN.ndim != 2 or not X_RN.shape[1]:
        raise ValueError(f"both sides must have one shape [R, N]; got {X_RN.shape} and {Y_RN.shape}")
    return cosine(centred_ranks(X_RN), centred_ranks(Y_RN))


def kendall(x: ArrayLike, y: ArrayLike) -> float:
    """Kendall's τ_b, in [−1, 1]: concordant less discordant pairs, over √ of the pairs untied in x and in y."""
    x_N, y_N = as_pair(x, y)
    if len(x_N) < 2:  # scipy warns
        return np.nan
    return float(scipy.stats.kendalltau(x_N, y_N).statistic)


def partial_depth(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's partial correlation of x and y given depth, in [−1, 1]: what is left when both merely drift with it.

    The correlation of the residuals of both sides' ranks after regression on the layers' order; NaN where a
    side's ranks are a straight line in depth.
    """
    x_N, y_N = as_pair(x, y)
    return float(cosine(without_trend(x_N), without_trend(y_N)))


def precision_at_k(delta: ArrayLike, loss: ArrayLike, k: int | None = None) -> float:
    """Share of the k places with the smallest δ that are among the k with the highest loss, in [0, 1].

    k is a fifth of the places unless given; the earlier place wins a tie. By chance it is k/n.
    """
    delta_N, loss_N = as_pair(delta, loss)
    lowest, highest = change_points(delta_N, k), change_points(-loss_N, k)
    if np.isnan(delta_N).any() or np.isnan(loss_N).any():
        return np.nan
    return len(np.intersect1d(lowest, highest)) / len(lowest)


def delta_at(delta_L: ArrayLike, centres: ArrayLike) -> Array:
    """δ at window centres: a layer's own, or, at x.5 (windows of even width), the mean of the two layers beside it.

    Raises ValueError for a centre that is no multiple of ½ from 0 to L − 1.
    """
    delta_L, centres_N = np.asarray(delta_L, dtype=np.float64), np.asarray(centres, dtype=np.float64)
    if delta_L.ndim != 1 or centres_N.ndim != 1:
        raise ValueError(f"δ and centres must be vectors; got shapes {delta_L.shape} and {centres_N.shape}")
    valid_N = (centres_N >= 0) & (centres_N <= len(delta_L) - 1) & (2 * centres_N == np.floor(2 * centres_N))
    if not valid_N.all():
        raise ValueError(f"centre {centres_N[~valid_N][0]} is no multiple of 0.5 from 0 to {len(delta_L) - 1}")
    delta_N: Array = (delta_L[np.floor(centres_N).astype(int)] + delta_L[np.ceil(centres_N).astype(int)]) / 2
    return delta_N


def as_pair(x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    """Both sides as float64 vectors. Raises ValueError unless they are vectors of one length, 1 at least."""
    x_N, y_N = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x_N.ndim != 1 or x_N.shape != y_N.shape or not len(x_N):
        raise ValueError(f"both sides must be vectors of one length; got shapes {x_N.shape} and {y_N.shape}")
    return x_N, y_N


def centred_ranks(values: Array) -> Array:
    """Average ranks along the last axis, centred; all NaN where there is NaN."""
    ranks: Array = scipy.stats.rankdata(values, axis=-1, nan_policy="propagate") - (values.shape[-1] + 1) / 2
    return ranks


def without_trend(values_N: Array) -> Array:
    """Residuals of the ranks from a straight line in depth; exactly zero where only rounding is left."""
    ranks_N = centred_ranks(values_N)
    depth_N = centred_ranks(np.arange(len(values_N), dtype=np.float64))
    if len(values_N) < 2:
        return ranks_N
    residuals_N: Array = ranks_N - (ranks_N @ depth_N) / (depth_N @ depth_N) * depth_N
    if np.linalg.norm(residuals_N) <= len(values_N) * _EPS * np.linalg.norm(ranks_N):
        return np.zeros_like(residuals_N)
    return residuals_N


def cosine(x: Array, y: Array) -> Array:
    """Cosine along the last axis; NaN where a side is zero."""
    xx, yy, xy = (np.asarray(np.einsum("...n,...n->...", *pair)) for pair in ((x, x), (y, y), (x, y)))
    norms = np.asarray(np.sqrt(xx * yy))  # √(s·s) is s, so that ranks in one order have exactly 1; √s·√s may not be
    cosines: Array = np.divide(xy, norms, out=np.full(norms.shape, np.nan), where=norms > 0)
    return cosines
