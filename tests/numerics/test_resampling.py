"""Half-samples and intervals: their counts, their spread, their coverage."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from raysweep.numerics.resampling import (
    half_samples,
    mean_interval,
    percentile_interval,
)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(8, 60), resamples=st.integers(1, 20), seed=st.integers(0, 2**32 - 1))
def test_every_row_keeps_exactly_half(n, resamples, seed):
    keep_RN = half_samples(n, resamples, seed)
    assert keep_RN.shape == (resamples, n)
    assert keep_RN.dtype == np.bool_
    assert (keep_RN.sum(axis=1) == n // 2).all()
    np.testing.assert_array_equal(keep_RN, half_samples(n, resamples, seed))


def test_rows_and_seeds_differ_and_examples_are_kept_alike():
    keep_RN = half_samples(20, 4000, 0)
    assert len(np.unique(keep_RN, axis=0)) > 3900
    assert not np.array_equal(keep_RN, half_samples(20, 4000, 1))
    np.testing.assert_allclose(keep_RN.mean(axis=0), 0.5, atol=0.04)


def test_spread_over_halves_is_the_standard_error_of_the_mean():
    values_N = np.random.default_rng(1).exponential(size=40)
    means_R = half_samples(40, 20_000, 2) @ values_N / 20
    assert means_R.std() == pytest.approx(values_N.std(ddof=1) / math.sqrt(40), rel=0.03)


def test_half_samples_refuse_too_little():
    with pytest.raises(ValueError, match="at least 8 examples, got 7"):
        half_samples(7, 10, 0)
    with pytest.raises(ValueError, match="resamples must be at least 1, got 0"):
        half_samples(8, 0, 0)


def test_percentile_interval_by_hand():
    values_R = np.random.default_rng(0).permutation(np.arange(101.0))
    assert percentile_interval(values_R, 0.9) == pytest.approx((5, 95))
    assert percentile_interval(values_R) == pytest.approx((2.5, 97.5))
    assert percentile_interval([3.0]) == (3, 3)


def test_one_nan_makes_the_interval_nan():
    assert np.isnan(percentile_interval([1.0, np.nan, 2.0])).all()


def test_mean_interval_is_students_t():
    values_N = np.random.default_rng(0).standard_normal(12)
    expected = stats.t.interval(0.9, 11, loc=values_N.mean(), scale=stats.sem(values_N))
    assert mean_interval(values_N, 0.9) == pytest.approx(expected, rel=1e-12)
    assert mean_interval([*values_N, np.nan], 0.9) == pytest.approx(expected, rel=1e-12)
    assert mean_interval([2.0, 2.0, 2.0]) == (2, 2)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, np.nan]])
def test_mean_interval_needs_two_values(values):
    assert np.isnan(mean_interval(values)).all()


@pytest.mark.parametrize("interval", [percentile_interval, mean_interval])
def test_intervals_refuse_misuse(interval):
    with pytest.raises(ValueError, match="level must be between 0 and 1, got 95"):
        interval([1.0, 2.0], 95)
    with pytest.raises(ValueError, match="must not be infinite"):
        interval([1.0, np.inf])
    with pytest.raises(ValueError, match=r"vector of values; got shape \(2, 2\)"):
        interval(np.zeros((2, 2)))


def test_percentiles_of_nothing_are_refused():
    with pytest.raises(ValueError, match="at least one value"):
        percentile_interval([])
