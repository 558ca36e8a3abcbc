"""Correlations of many cells (a model on a data set) taken together: their mean with its interval, and one p.

Cells of one base model are not independent: their δ are nearly the same curve, and their losses resemble one another.

Shape suffixes: C cells, N places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy  # its parts are loaded where they are used, for that takes a while
from numpy.typing import ArrayLike

from raysweep.numerics.correlation import as_pair, cosine, without_trend
from raysweep.numerics.nulls import autocorrelated_p, correlation_p


class MeanCorrelation(NamedTuple):
    """A mean correlation with its interval over groups, or over cells where there is but one group."""

    mean: float
    low: float
    high: float
    groups: int
    cells: int


def mean_correlation(rho_C: ArrayLike, groups: Sequence[str], level: float = 0.95) -> MeanCorrelation:
    """Mean of correlations by Fisher's z, with Student's t interval over groups: other models of the same kind.

    The z of a group's cells are averaged first, and groups count alike: a random-effects mean in which what varies is the
    group, whatever the cells' own uncertainty. With one group alone the interval is over its cells (other data sets, this
    model), which assumes those to be independent. NaN values are left out; no interval for fewer than two units. A
    correlation of ±1 has no finite z: all NaN. Raises ValueError for a level outside (0, 1) or groups that do not fit.
    """
    rho_C = np.asarray(rho_C, dtype=np.float64)
    if rho_C.ndim != 1 or len(rho_C) != len(groups):
        raise ValueError(f"need one group a correlation; got shape {rho_C.shape} and {len(groups)} groups")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    by_group: dict[str, list[float]] = {}
    for rho, group in zip(rho_C, groups, strict=True):
        if not np.isnan(rho):
            by_group.setdefault(group, []).append(float(rho))
    cells = sum(map(len, by_group.values()))
    if not cells or any(abs(rho) >= 1 for values in by_group.values() for rho in values):
        return MeanCorrelation(np.nan, np.nan, np.nan, len(by_group), cells)
    z_by_group = [np.arctanh(values) for values in by_group.values()]
    z_U = np.array([values.mean() for values in z_by_group]) if len(z_by_group) > 1 else z_by_group[0]
    mean, low, high = float(z_U.mean()), np.nan, np.nan
    if len(z_U) > 1:
        half_width = scipy.stats.t.ppf((1 + level) / 2, len(z_U) - 1) * z_U.std(ddof=1) / np.sqrt(len(z_U))
        low, high = mean - half_width, mean + half_width
    return MeanCorrelation(float(np.tanh(mean)), float(np.tanh(low)), float(np.tanh(high)), len(by_group), cells)


class Combined(NamedTuple):
    """Mean correlation with depth taken out over so many cells, and its p."""

    correlation: float
    p: float
    cells: int


def combined_p(x: Sequence[ArrayLike], y: Sequence[ArrayLike], groups: Sequence[str]) -> Combined:
    """The p of `autocorrelated_p` for the mean of r over C cells, of which those of one group are not independent.

    Cells of one group (one base model) may share x, or nearly, and have y that resemble one another. With ρ^x and ρ^y
    the correlations of their residuals, the covariance of two cells' r is ρ^x ρ^y √(v v'), v being their variances in
    `autocorrelated_p`; cells of unlike groups are taken to be independent. The mean over all cells is referred to the
    beta distribution with its variance. One cell gives that cell's own p.

    Cells whose r or p is NaN are left out, and counted out of `cells`; NaN where none is left. Raises ValueError for sides that
    do not fit, and for cells of one group that have unlike numbers of places.
    """
    if not len(x) == len(y) == len(groups):
        raise ValueError(f"need one x, y and group a cell; got {len(x)}, {len(y)} and {len(groups)}")
    rows = []
    for x_N, y_N, group in zip(x, y, groups, strict=True):
        x_N, y_N = as_pair(x_N, y_N)
        found = autocorrelated_p(x_N, y_N)
        if not np.isnan(found.p):
            rows.append((without_trend(x_N), without_trend(y_N), group, found))
    if not rows:
        return Combined(np.nan, np.nan, 0)
    covariance = 0.0
    for a_N, b_N, group, one in rows:
        for c_N, d_N, other_group, other in rows:
            if group == other_group:
                if len(a_N) != len(c_N):
                    raise ValueError(f"cells of group '{group}' have {len(a_N)} and {len(c_N)} places")
                both = 1 / np.sqrt((one.effective - 2) * (other.effective - 2))
                covariance += float(cosine(a_N, c_N) * cosine(b_N, d_N)) * both
    mean = float(np.mean([found.correlation for _, _, _, found in rows]))
    return Combined(mean, correlation_p(mean, covariance / len(rows) ** 2), len(rows))
