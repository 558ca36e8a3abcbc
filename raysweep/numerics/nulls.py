"""How often would curves that have nothing to do with one another agree as well? Null distributions of correlations.

Neighbouring layers are alike, so that layers are no independent observations, and both curves may drift with depth. The
functions differ in how much of that they know. Only `autocorrelated_p` keeps its level where both hold (see
benchmarks/calibration.py), so it alone should be called a test.

Vectors are in layer order; all use ranks alone; NaN in the input gives NaN. What a p that cannot be low is worth is left
to the caller: `SHIFT_FEWEST` and `CALIBRATED_FEWEST` say from how many places on two of them can tell anything.

Shape suffixes: N places, G autocorrelations tried, R permutations.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import scipy  # its parts are loaded where they are used, for that takes a while
from numpy.typing import ArrayLike, NDArray

from raysweep.numerics.correlation import as_pair, centred_ranks, cosine, without_trend

Array = NDArray[np.float64]

_EPS = float(np.finfo(np.float64).eps)

SHIFT_FEWEST = (
    20  # places below which a share of shifts is above 5 % even where only the unshifted curves agree so well
)
CALIBRATED_FEWEST = 10  # places from which on `autocorrelated_p` rejects 3 to 7 % at the 5 % level in simulation

# Likenesses of neighbours that are thought possible; those that the curve speaks against hardly count.
_PHI_G = np.linspace(-0.3, 0.99, 44)


class EffectiveTest(NamedTuple):
    """A correlation with depth taken out, its p, and as how many independent places the curves count."""

    correlation: float
    p: float
    effective: float


class _Candidates(NamedTuple):
    """For n places and every likeness φ of neighbours, an AR(1) with a straight line in depth taken out.

    Per φ: `projection` [G, N, N], with which yᵀPy is the squared norm of what generalised least squares leaves of y;
    `log_determinant` [G], the terms of the restricted likelihood that do not depend on y; `covariance` [G, N, N], of what
    ordinary least squares leaves of it, with trace 1.
    """

    projection: Array
    log_determinant: Array
    covariance: Array


def autocorrelated_p(x: ArrayLike, y: ArrayLike) -> EffectiveTest:
    """Two-sided p of the correlation of x and y given depth, were both independent curves of an AR(1) kind on a trend.

    r is the correlation of the residuals of both sides' ranks from a straight line in depth (`partial_depth`). Were
    they independent with covariances Σ_x and Σ_y, each with trace 1 and the line taken out, r would have variance
    tr(Σ_x Σ_y), as an ordinary correlation has among 1 / tr(Σ_x Σ_y) + 2 independent places with a line taken out (the
    effective number); r² is referred to the beta distribution that belongs to that number. That is the correction of
    Bartlett (1935) and Clifford et al. (1989), without their limit of many places.

    Σ is that of an AR(1), averaged over its φ with the restricted likelihood of the ranks (Patterson & Thompson, 1971) as
    weights: taking the line out makes neighbours look less alike than they are, which the restricted likelihood knows
    and a plain autocorrelation does not; averaging accounts for how little some dozen layers tell of φ.

    Without likeness of neighbours it is the usual t test of a partial correlation. NaN where nothing is left beside the trend.
    Raises ValueError for vectors that do not fit.
    """
    x_N, y_N = as_pair(x, y)
    a_N, b_N = without_trend(x_N), without_trend(y_N)
    r = float(cosine(a_N, b_N))
    if np.isnan(r) or len(x_N) < 4:
        return EffectiveTest(r, np.nan, np.nan)
    variance = float(np.sum(_likely_covariance(x_N) * _likely_covariance(y_N)))
    return EffectiveTest(r, correlation_p(r, variance), 1 / variance + 2)


def correlation_p(r: float, variance: float) -> float:
    """P(|r| at least so high), r² being beta distributed as that of a correlation of mean 0 and this variance is.

    NaN where the variance is 1 or more: then r is ±1 whatever the curves.
    """
    freedom = 1 / variance - 1
    return float(scipy.special.betainc(freedom / 2, 0.5, max(0.0, 1 - r**2))) if freedom > 0 else np.nan


def circular_shift_p(x: ArrayLike, y: ArrayLike) -> float:
    """Share of the n circular shifts of one side along the depth, the identity among them, that agree as well or better.

    Shifting one whole side keeps the likeness of neighbours and breaks only the tie between the sides. But a shift
    breaks a trend that both sides share as well, so that drifting with depth alone would count as a tie. Hence the
    ranks of both sides are first replaced by their residuals from a straight line in depth.

    Agreement is |Σ x y|. The share is never below 1/n, and it falls below 5 % somewhat too often: a shifted curve is
    torn where its ends meet. NaN where nothing is left beside the trend. Raises ValueError for vectors that do not fit.
    """
    x_N, y_N = as_pair(x, y)
    x_N, y_N = without_trend(x_N), without_trend(y_N)
    if np.isnan(cosine(x_N, y_N)):
        return np.nan
    places = np.arange(len(x_N))
    association_by_shift = np.abs(y_N[(places[:, None] + places) % len(places)] @ x_N)
    # Equal associations must count as such whatever their rounding.
    slack = len(places) * _EPS * np.linalg.norm(x_N) * np.linalg.norm(y_N)
    return float(np.mean(association_by_shift >= association_by_shift[0] - slack))


def permutation_p(x: ArrayLike, y: ArrayLike, permutations: int = 9999, seed: int = 0) -> float:
    """Two-sided p of Spearman's ρ, were the places exchangeable: the share of random orders of y with |ρ| as high.

    The observed order counts as one, so p is never below 1 / (permutations + 1). Layers are not exchangeable: where
    neighbours are alike or both sides drift with depth, p is far too small. Deterministic in `seed`. NaN where a side is
    constant. Raises ValueError for vectors that do not fit or no permutations.
    """
    x_N, y_N = as_pair(x, y)
    if permutations < 1:
        raise ValueError(f"permutations must be at least 1, got {permutations}")
    x_N, y_N = centred_ranks(x_N), centred_ranks(y_N)
    if np.isnan(cosine(x_N, y_N)):
        return np.nan
    orders_RN = np.random.default_rng(seed).permuted(np.tile(y_N, (permutations, 1)), axis=1)
    slack = len(x_N) * _EPS * np.linalg.norm(x_N) * np.linalg.norm(y_N)
    as_high = np.abs(orders_RN @ x_N) >= abs(x_N @ y_N) - slack
    return float((1 + as_high.sum()) / (1 + permutations))


def chance_precision(hits: int, k: int, n: int) -> tuple[float, float]:
    """Expected precision@k of k places chosen blindly out of n, k/n, and the probability of `hits` or more of the top k.

    Hypergeometric; blind means that any k places are as likely as any others, which layers that resemble their neighbours
    are not, so that the probability is no calibrated p. Raises ValueError unless 0 ≤ hits ≤ k ≤ n and k ≥ 1.
    """
    if not 0 <= hits <= k <= n or k < 1:
        raise ValueError(f"need 0 <= hits <= k <= n and k >= 1; got hits {hits}, k {k}, n {n}")
    return k / n, float(scipy.stats.hypergeom.sf(hits - 1, n, k, k))


def _likely_covariance(values_N: Array) -> Array:
    """Covariance, of trace 1, of what a straight line leaves of the ranks [N, N]; φ averaged out."""
    ranks_N = centred_ranks(values_N)
    candidates = _candidates(len(values_N))
    squares_G = np.einsum("n,gnm,m->g", ranks_N, candidates.projection, ranks_N)
    log_likelihood_G = -0.5 * (candidates.log_determinant + (len(ranks_N) - 2) * np.log(squares_G))
    weight_G = np.exp(log_likelihood_G - log_likelihood_G.max())
    covariance_NN: Array = np.tensordot(weight_G / weight_G.sum(), candidates.covariance, axes=1)
    return covariance_NN


@lru_cache(maxsize=16)
def _candidates(n: int) -> _Candidates:
    depth_N = np.arange(n) - (n - 1) / 2
    line_N2, _ = np.linalg.qr(np.stack([np.ones(n), depth_N], axis=1))
    residual_NN = np.eye(n) - line_N2 @ line_N2.T
    lag_NN = np.abs(depth_N[:, None] - depth_N).astype(int)
    projections, determinants, covariances = [], [], []
    for phi in _PHI_G:
        ar1_NN = phi**lag_NN / (1 - phi**2)
        inverse_NN = np.linalg.inv(ar1_NN)
        line_22 = line_N2.T @ inverse_NN @ line_N2
        projections.append(inverse_NN - inverse_NN @ line_N2 @ np.linalg.solve(line_22, line_N2.T @ inverse_NN))
        determinants.append(np.linalg.slogdet(ar1_NN)[1] + np.linalg.slogdet(line_22)[1])
        left_NN = residual_NN @ ar1_NN @ residual_NN
        covariances.append(left_NN / np.trace(left_NN))
    return _Candidates(np.stack(projections), np.array(determinants), np.stack(covariances))
