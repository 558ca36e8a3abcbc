"""Rates of success with intervals: of one run over its examples, and of several runs (seeds) over the same examples.

Shape suffixes: S seeds, N examples.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy  # its parts are loaded where they are used, for that takes a while
from numpy.typing import ArrayLike, NDArray


class Estimate(NamedTuple):
    """A figure and its interval; NaN where there is none."""

    value: float
    low: float
    high: float


def rate_interval(successes: float, n: float, level: float = 0.95, quantile: float | None = None) -> Estimate:
    """The share successes / n with Wilson's score interval, which lies in [0, 1] and has a width at shares of 0 and 1 too.

    `n` may be the size of a simple random sample that tells as much as the data do, and need not be whole; `quantile`
    takes the place of the normal one. NaN for n = 0. Raises ValueError for counts outside 0 ≤ successes ≤ n or a level
    outside (0, 1).
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be from 0 to n; got {successes} of {n}")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    if not n:
        return Estimate(math.nan, math.nan, math.nan)
    z = scipy.stats.norm.ppf((1 + level) / 2) if quantile is None else quantile
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low = 0.0 if successes == 0 else centre - half  # exactly so, and not up to rounding
    high = 1.0 if successes == n else centre + half
    return Estimate(share, float(low), float(high))


def crossed_mean(values_SN: ArrayLike, level: float = 0.95) -> Estimate:
    """The mean over seeds and examples, with an interval for other seeds and other examples of the same kinds.

    Every seed has a value of every example. Both are taken for random draws, whose effects cross: the mean's variance is

        v = s²_seeds / S + s²_examples / N − s²_rest / (S N),

    s² being the sample variances of the seeds' means, of the examples' means, and of what these two leave; so it is
    unbiased, and never taken to be below the larger of its first two terms, where chance would have it so. The interval
    is mean ± t √v, with Student's t at Satterthwaite's degrees of freedom: few seeds that differ much give a wide one.
    With one seed it is the interval over examples. (nan, nan) for its ends where there are fewer than two examples.
    Raises ValueError for shapes that are no [S, N] with a seed and an example, values that are not finite or a level outside (0, 1).
    """
    values_SN = _crossed(values_SN, level)
    mean = float(values_SN.mean())
    variance, freedom = _variance(values_SN)
    if math.isnan(variance):
        return Estimate(mean, math.nan, math.nan)
    half = float(scipy.stats.t.ppf((1 + level) / 2, freedom)) * math.sqrt(variance)
    return Estimate(mean, mean - half, mean + half)


def crossed_rate(success_SN: ArrayLike, level: float = 0.95) -> Estimate:
    """The share of successes over seeds and examples, with an interval in [0, 1] for other seeds and examples.

    Wilson's interval for the sample size at which simple random sampling would have the variance of `crossed_mean`, at most
    S N and not below 1, with its t in place of the normal quantile. Where all or none are successes no variance shows; then the
    seeds, which saw the same examples, count as one: N is the sample size. With one seed, or one example, this is Wilson's interval.
    Raises ValueError as `crossed_mean` does, and for values that are neither 0 nor 1.
    """
    success_SN = _crossed(success_SN, level)
    if not np.isin(success_SN, (0, 1)).all():
        raise ValueError("successes must be 0 or 1")
    seeds, n = success_SN.shape
    share = float(success_SN.mean())
    if seeds == 1 or n == 1 or share in (0, 1):
        return rate_interval(share * n, n, level)
    variance, freedom = _variance(success_SN)
    size = seeds * n if not variance > 0 else min(seeds * n, max(1.0, share * (1 - share) / variance))
    return rate_interval(share * size, size, level, float(scipy.stats.t.ppf((1 + level) / 2, freedom)))


def _variance(values_SN: NDArray[np.float64]) -> tuple[float, float]:
    """The variance of the mean over seeds and examples, and its degrees of freedom; NaN for both with one example."""
    seeds, n = values_SN.shape
    if n < 2:
        return math.nan, math.nan
    by_example = float(values_SN.mean(axis=0).var(ddof=1)) / n
    if seeds < 2:
        return by_example, n - 1
    by_seed = float(values_SN.mean(axis=1).var(ddof=1)) / seeds
    left_SN = values_SN - values_SN.mean(axis=0) - values_SN.mean(axis=1, keepdims=True) + values_SN.mean()
    rest = float((left_SN**2).sum()) / ((seeds - 1) * (n - 1)) / (seeds * n)
    variance = max(by_seed + by_example - rest, by_seed, by_example)
    if not variance > 0:
        return 0.0, n - 1
    return variance, variance**2 / (by_seed**2 / (seeds - 1) + by_example**2 / (n - 1))


def _crossed(values_SN: ArrayLike, level: float) -> NDArray[np.float64]:
    values_SN = np.asarray(values_SN, dtype=np.float64)
    if values_SN.ndim != 2 or not values_SN.size:
        raise ValueError(f"expected values by seed and example, [S, N]; got shape {values_SN.shape}")
    if not np.isfinite(values_SN).all():
        raise ValueError("values must be finite")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    return values_SN
