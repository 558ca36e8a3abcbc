"""Are the examples seen so far enough: against scipy, and against the definition written out pair by pair."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from scipy import stats

from raysweep.numerics.sequential import half_widths, top_candidates


def test_half_widths_are_those_of_scipys_interval():
    values = np.random.default_rng(0).normal(size=(3, 20))
    for level in (0.9, 0.95):
        low, high = stats.t.interval(level, 19, loc=values.mean(axis=1), scale=stats.sem(values, axis=1))
        np.testing.assert_allclose(half_widths(values, level), (high - low) / 2, rtol=1e-12)


def test_half_widths_leave_nan_out_and_have_no_figure_without_two_finite_values():
    found = half_widths([[1, 3, math.nan], [1, math.nan, math.nan], [1, 2, math.inf], [2, 2, 2]])
    assert found[0] == pytest.approx(stats.t.ppf(0.975, 1) * math.sqrt(2) / math.sqrt(2))
    assert np.isnan(found[1:3]).all()
    assert found[3] == 0


def plain(values, k, of, error, resolution):
    """The definition, a pair at a time, in plain Python."""
    n, rows = len(values[0]), range(len(values))
    critical = stats.t.ppf(1 - error / (k * (len(values) - k)), n - 1)

    def is_above(v, w):
        differences = [a - b for a, b in zip(values[v], values[w], strict=True)]
        spread = statistics.stdev(differences)
        if n == of:
            return statistics.fmean(differences) > resolution
        error_of_mean = spread * math.sqrt((of - n) / (n * of))
        return spread > resolution and statistics.fmean(differences) - critical * error_of_mean > resolution

    return [sum(is_above(v, w) for v in rows if v != w) < k for w in rows]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("k", "of"), [(1, 40), (2, 31), (3, 1000), (2, 30)])
def test_candidates_are_those_of_the_definition(seed, k, of):
    rng = np.random.default_rng(seed)
    values = np.linspace(0, 1, 6)[:, None] + rng.normal(size=30) + 0.6 * rng.normal(size=(6, 30))
    for resolution in (0.0, 0.05):
        told = list(top_candidates(values, k, of, 0.05, resolution))
        assert told == plain(values.tolist(), k, of, 0.05, resolution)


def test_the_definition_is_met_in_a_case_worked_by_hand():
    # differences 1 and 3: mean 2, standard deviation sqrt 2; of four examples two are seen, so the error of the mean is
    # sqrt(2/2 · 1/2) = 0.7071, and one pair at 0.1 one-sided has t(1) = 3.0777: 2 − 2.176 is below 0, at 0.2 (1.3764) above
    values = [[1.0, 3.0], [0.0, 0.0]]
    assert list(top_candidates(values, 1, 4, 0.1)) == [True, True]
    assert list(top_candidates(values, 1, 4, 0.2)) == [True, False]
    assert list(top_candidates(values, 1, 4, 0.2, 1.02)) == [True, False]
    assert list(top_candidates(values, 1, 4, 0.2, 1.03)) == [True, True]


def test_once_all_is_seen_the_top_is_exact_and_ties_stay():
    values = np.array([[3.0, 1.0], [2.0, 2.0], [1.0, 1.0], [0.0, 1.0]])  # means 2, 2, 1, 0.5
    assert list(top_candidates(values, 2, 2, 0.05)) == [True, True, False, False]
    assert list(top_candidates(values, 1, 2, 0.05)) == [True, True, False, False], "two tie for the first place"
    assert list(top_candidates(values, 3, 2, 0.05)) == [True, True, True, False]
    assert list(top_candidates(values, 3, 2, 0.05, 0.5)) == [True] * 4, "apart by no more than the resolution"


def test_what_has_no_spread_or_is_not_finite_is_not_told_apart_before_the_end():
    flat = np.array([[1.0] * 20, [0.0] * 20])
    assert list(top_candidates(flat, 1, 40, 0.05)) == [True, True]
    assert list(top_candidates(flat, 1, 20, 0.05)) == [True, False]
    noise = np.random.default_rng(0).normal(size=20) / 100
    endless = np.array([[math.inf, *[1.0] * 19], noise])
    assert list(top_candidates(endless, 1, 40, 0.05)) == [True, True]
    assert list(top_candidates(endless, 1, 20, 0.05)) == [True, False], "an infinite mean is above any other"
    clear = np.stack([1 + noise, noise[::-1]])
    assert list(top_candidates(clear, 1, 40, 0.05)) == [True, False]


def test_examples_with_a_nan_are_left_out_of_every_row():
    rng = np.random.default_rng(1)
    values = np.linspace(0, 2, 4)[:, None] + rng.normal(size=(4, 30))
    holed = np.concatenate([values, np.full((4, 3), 99.0)], axis=1)
    holed[[0, 1, 2], [30, 31, 32]] = math.nan
    assert list(top_candidates(holed, 2, 33, 0.05)) == list(top_candidates(values, 2, 30, 0.05))
    assert list(top_candidates(np.full((3, 20), math.nan), 1, 40, 0.05)) == [True] * 3
    assert list(top_candidates(np.full((3, 20), math.nan), 1, 20, 0.05)) == [True] * 3


@pytest.mark.parametrize(("k", "of", "error"), [(0, 9, 0.1), (3, 9, 0.1), (1, 4, 0.1), (1, 9, 0.0), (1, 9, 1.0)])
def test_what_makes_no_sense_is_refused(k, of, error):
    with pytest.raises(ValueError, match="need 1 <= k < 3, 2 <= 5 <= of and 0 < error < 1; got"):
        top_candidates(np.zeros((3, 5)), k, of, error)
    with pytest.raises(ValueError, match=r"expected a matrix of values; got shape \(3,\)"):
        half_widths([1, 2, 3])
