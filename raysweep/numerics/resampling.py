"""How sure a figure is: subsets of the examples, and intervals from what is computed on them.

What is computed on the subsets is left to the caller.

Shape suffixes: N examples, R resamples, L layers.
"""

from __future__ import annotations

import numpy as np
import scipy  # its parts are loaded where they are used, for that takes a while
from numpy.typing import ArrayLike, NDArray

_ROUNDING = 1e-9  # how far from 1 a similarity of a layer with itself may come out


def half_samples(n: int, resamples: int, seed: int) -> NDArray[np.bool_]:
    """Random halves of n examples [R, N]: each row is True for exactly n // 2 of them, drawn without replacement.

    Why halves: the mean over m of n examples has variance (s²/n)(n/m − 1) over the subsets, which at m = n/2 is s²/n,
    the squared standard error of the mean over all n. So, to first order, a statistic spreads over halves as its
    estimate does over samples of n, and intervals need no rescaling (for odd n they are wider by about 1/n).
    Why not the bootstrap: it repeats examples, and a repeated row's similarity to itself biases Gram statistics upward.

    Deterministic in `seed`. Raises ValueError for fewer than 8 examples, which have too few halves, or no resamples.
    """
    if n < 8:
        raise ValueError(f"half-samples need at least 8 examples, got {n}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    first_half_N = np.arange(n) < n // 2
    return np.random.default_rng(seed).permuted(np.tile(first_half_N, (resamples, 1)), axis=1)


def percentile_interval(values_R: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """The central interval (low, high) that holds `level` of the values, by linear interpolation between them.

    If any value is NaN so are both ends: leaving out the resamples on which a statistic is undefined would describe
    another sample. Raises ValueError for no values, infinite values, or a level outside (0, 1).
    """
    values_R = _vector(values_R)
    tail = _tail(level)
    if not len(values_R):
        raise ValueError("an interval needs at least one value")
    if np.isnan(values_R).any():
        return np.nan, np.nan
    low, high = np.quantile(values_R, [tail, 1 - tail])
    return float(low), float(high)


def halfway_interval(estimate: float, values_R: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of the resamples, shifted halfway to where their mean would fall on the estimate.

    For rank correlations: noise in the curves draws them towards 0, on half the examples more than on all, so that the
    resamples' own percentiles lie too near 0; but the estimate strays farther than the resamples' mean does, so that an
    interval around it misses more often. Halfway covers best (benchmarks/calibration.py). The ends are cut at −1 and 1, beyond
    which there is no correlation. NaN and errors as in `percentile_interval`.
    """
    values_R = _vector(values_R)
    low, high = percentile_interval(values_R, level)
    shift = (estimate - float(values_R.mean())) / 2
    low, high = np.clip([low + shift, high + shift], -1, 1)
    return float(low), float(high)


def jackknife_interval(
    estimate: ArrayLike, one_NE: ArrayLike, two_HE: ArrayLike, level: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Intervals (low [E], high [E]) of estimates [E] in [−1, 1] from their values with one, and two, examples left out.

    Row a of `one_NE` is without example a, row h of `two_HE` without the pair h and h + H, H = N // 2. On Fisher's scale,
    z = artanh, on which values near 1 spread evenly and which keeps the ends in range, the interval is z ± t·√v with

        v = (N − 1)/N Σ_a (z_(a) − mean)² − (N − 1)/(2N) mean_h Q_h²,  Q = N z − (N − 1)(z_(a) + z_(b)) + (N − 2) z_(ab).

    The first term is the jackknife's variance, which counts twice what depends on pairs of examples (Efron & Stein, 1981),
    as much of a similarity does where examples are fewer than their dimensions. Q is that part, free of what depends on
    single examples; the second term takes it out once. Since no more than half can be counted twice, v is never taken to
    be below half the first term, where the pairs' scatter would have it so.

    t is Student's with 2N / (κ − 1) degrees of freedom, κ being the kurtosis of the z_(a): those of a variance estimated
    from N values of that kurtosis, about N for normal ones, fewer where some examples outweigh the others.

    It covers the value that samples of N examples give on average: for biased CKA, not the population's.
    NaN where any value is; where all are 1 up to rounding, as a layer with itself, both ends are the estimate. Raises
    ValueError for shapes that do not fit, values outside [−1, 1] by more than rounding or a level outside (0, 1).
    """
    estimate_E, one_NE, two_HE = (np.asarray(values, dtype=np.float64) for values in (estimate, one_NE, two_HE))
    n, half = len(one_NE), len(one_NE) // 2
    if (
        estimate_E.ndim != 1
        or one_NE.shape != (n, len(estimate_E))
        or two_HE.shape != (half, len(estimate_E))
        or not half
    ):
        shapes = estimate_E.shape, one_NE.shape, two_HE.shape
        raise ValueError(f"expected shapes [E], [N, E] and [N // 2, E]; got {shapes[0]}, {shapes[1]} and {shapes[2]}")
    tail = _tail(level)
    all_VE = np.concatenate([estimate_E[None], one_NE, two_HE])
    if (np.abs(all_VE) > 1 + _ROUNDING).any():
        raise ValueError(f"values must lie in [-1, 1]; got {all_VE[np.abs(all_VE) > 1 + _ROUNDING][0]}")
    certain_E = (np.abs(all_VE) >= 1 - _ROUNDING).all(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        z_VE = np.arctanh(np.where(certain_E, 0.0, all_VE))
        z_E, z_NE, z_HE = z_VE[0], z_VE[1 : n + 1], z_VE[n + 1 :]
        deviation_NE = z_NE - z_NE.mean(axis=0)
        q_HE = n * z_E - (n - 1) * (z_NE[:half] + z_NE[half : 2 * half]) + (n - 2) * z_HE
        pairs_E = (n - 1) / (2 * n) * (q_HE**2).mean(axis=0)
        squares_E = (deviation_NE**2).sum(axis=0)
        kurtosis_E = np.where(squares_E > 0, n * (deviation_NE**4).sum(axis=0) / squares_E**2, 3.0)
        jackknife_E = (n - 1) / n * squares_E
        freedom_E = 2 * n / (kurtosis_E - 1)
        half_width_E = scipy.stats.t.ppf(1 - tail, freedom_E) * np.sqrt(
            np.maximum(jackknife_E - pairs_E, jackknife_E / 2)
        )
        low_E, high_E = np.tanh(z_E - half_width_E), np.tanh(z_E + half_width_E)
    return np.where(certain_E, estimate_E, low_E), np.where(certain_E, estimate_E, high_E)


def mean_interval(values_N: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Student's t interval (low, high) of the mean over independent examples; NaN values are left out.

    (nan, nan) where fewer than two values are left. Raises ValueError for infinite values or a level outside (0, 1).
    """
    values_N = _vector(values_N)
    tail = _tail(level)
    values_N = values_N[~np.isnan(values_N)]
    if len(values_N) < 2:
        return np.nan, np.nan
    mean = float(values_N.mean())
    half_width = float(scipy.stats.t.ppf(1 - tail, len(values_N) - 1) * values_N.std(ddof=1) / np.sqrt(len(values_N)))
    return mean - half_width, mean + half_width


def _vector(values: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"expected a vector of values; got shape {values.shape}")
    if np.isinf(values).any():
        raise ValueError("values must not be infinite")
    return values


def _tail(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    return (1 - level) / 2
