"""Null distributions of correlations against their own definitions, scipy, and simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from raysweep.numerics.correlation import partial_depth
from raysweep.numerics.nulls import autocorrelated_p, chance_precision, circular_shift_p, correlation_p, permutation_p

few = settings(max_examples=40, deadline=None)


def ar1(rng, shape, phi):
    """AR(1) series along the last axis, from their stationary distribution."""
    noise = rng.standard_normal(shape)
    noise[..., 0] /= np.sqrt(1 - phi**2)
    for place in range(1, shape[-1]):
        noise[..., place] += phi * noise[..., place - 1]
    return noise


def plain_covariance(values_N):
    """Detrended AR(1) covariance averaged over φ by the textbook restricted likelihood, with explicit contrasts."""
    n = len(values_N)
    ranks_N = stats.rankdata(values_N)
    depth_N = np.arange(n)
    design_N2 = np.stack([np.ones(n), depth_N], axis=1)
    contrasts_NK = np.linalg.svd(design_N2)[0][:, 2:]  # any basis of what is orthogonal to a line
    left_K = contrasts_NK.T @ ranks_N
    weights, covariances = [], []
    for phi in np.linspace(-0.3, 0.99, 44):
        full_NN = phi ** np.abs(np.subtract.outer(depth_N, depth_N)) / (1 - phi**2)
        inner_KK = contrasts_NK.T @ full_NN @ contrasts_NK
        scale = left_K @ np.linalg.solve(inner_KK, left_K) / (n - 2)
        weights.append(stats.multivariate_normal(np.zeros(n - 2), scale * inner_KK).logpdf(left_K))
        covariances.append(contrasts_NK @ inner_KK @ contrasts_NK.T / np.trace(inner_KK))
    weights = np.exp(np.array(weights) - max(weights))
    return np.average(covariances, axis=0, weights=weights)


@few
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(6, 40), phi=st.sampled_from([0.0, 0.5, 0.9]))
def test_the_test_is_that_of_a_correlation_among_the_effective_number(seed, n, phi):
    x_N, y_N = ar1(np.random.default_rng(seed), (2, n), phi)
    found = autocorrelated_p(x_N, y_N)
    variance = np.trace(plain_covariance(x_N) @ plain_covariance(y_N))
    if np.isnan(partial_depth(x_N, y_N)):  # a side in order from first to last: nothing is left beside the trend
        assert np.isnan(found).all()
        return
    assert found.correlation == partial_depth(x_N, y_N)
    assert found.effective == pytest.approx(1 / variance + 2, rel=1e-6)
    freedom = 1 / variance - 1
    t = abs(found.correlation) * np.sqrt(freedom / (1 - found.correlation**2))
    assert found.p == pytest.approx(2 * stats.t.sf(t, freedom), abs=1e-6)


def test_of_independent_places_it_is_the_usual_test():
    x_N, y_N = np.random.default_rng(3).standard_normal((2, 400))
    assert autocorrelated_p(x_N, y_N).effective == pytest.approx(400, rel=0.02)
    variance = 1 / 28  # 30 places with a line taken out
    t = 0.4 * np.sqrt(27 / (1 - 0.4**2))
    assert correlation_p(0.4, variance) == pytest.approx(2 * stats.t.sf(t, 27), rel=1e-12)
    assert np.isnan(correlation_p(0.4, 1.0))


@pytest.mark.parametrize(("n", "trend"), [(20, 0), (20, 4), (40, 0), (40, 4)])
def test_the_test_keeps_its_level(n, trend):
    """Independent AR(1) curves of 0.8 with and without a common trend: some 5 % are rejected; 500 tell 2.4 to 8 % apart from it."""
    pairs = ar1(np.random.default_rng(n + trend), (500, 2, n), 0.8) + np.linspace(-trend, trend, n)
    rejected = np.mean([autocorrelated_p(x_N, y_N).p <= 0.05 for x_N, y_N in pairs])
    assert 0.02 < rejected < 0.08


def test_the_test_finds_a_common_curve():
    x_N = ar1(np.random.default_rng(0), (40,), 0.5)
    y_N = x_N + 0.3 * ar1(np.random.default_rng(1), (40,), 0.5)
    assert autocorrelated_p(x_N, y_N).p < 0.001
    assert autocorrelated_p(x_N, x_N).p < 1e-12


def plain_shift_p(x_N, y_N):
    def residuals(values_N):
        ranks_N = stats.rankdata(values_N)
        depth_N = np.arange(len(ranks_N))
        return ranks_N - np.polyval(np.polyfit(depth_N, ranks_N, 1), depth_N)

    x_N, y_N = residuals(x_N), residuals(y_N)
    associations = [abs((x_N * np.roll(y_N, shift)).sum()) for shift in range(len(x_N))]
    return np.mean([association >= associations[0] - 1e-6 for association in associations])


@few
@given(st.integers(0, 2**32 - 1), st.integers(9, 30))
def test_the_share_of_shifts_is_its_definition(seed, n):
    x_N, y_N = np.random.default_rng(seed).standard_normal((2, n))
    assert circular_shift_p(x_N, y_N) == plain_shift_p(x_N, y_N)
    assert circular_shift_p(x_N, y_N) >= 1 / n


def test_the_share_of_shifts_of_a_perfect_tie_is_the_least_possible():
    x_N = np.random.default_rng(0).standard_normal(25)
    assert circular_shift_p(x_N, x_N) == 1 / 25
    assert circular_shift_p(x_N, -x_N) == 1 / 25


def test_a_common_trend_is_no_tie_to_shifts():
    """Two independent AR(1) series with φ = 0.7 on a common trend; without detrending more than a third are rejected."""
    series = ar1(np.random.default_rng(0), (200, 2, 28), 0.7) + np.linspace(-4, 4, 28)
    rejected = np.mean([circular_shift_p(x_N, y_N) <= 0.05 for x_N, y_N in series])

    def plain_p(x_N, y_N):
        x_N, y_N = stats.zscore(stats.rankdata(x_N)), stats.zscore(stats.rankdata(y_N))
        associations = np.array([abs(x_N @ np.roll(y_N, shift)) for shift in range(28)])
        return np.mean(associations >= associations[0] - 1e-9)

    assert rejected < 0.1
    assert np.mean([plain_p(x_N, y_N) <= 0.05 for x_N, y_N in series[:100]]) > 0.35


def test_permutations_agree_with_all_of_them():
    rng = np.random.default_rng(5)
    x_N, y_N = rng.standard_normal((2, 6))

    def statistic(y_N):
        return stats.spearmanr(x_N, y_N).statistic

    exact = stats.permutation_test((y_N,), statistic, permutation_type="pairings", n_resamples=np.inf).pvalue
    assert permutation_p(x_N, y_N, 20_000) == pytest.approx(exact, abs=0.015)
    assert permutation_p(x_N, x_N, 999) == pytest.approx(2 / 720, abs=0.006)
    assert permutation_p(x_N, y_N, 50, seed=1) == permutation_p(x_N, y_N, 50, seed=1)
    with pytest.raises(ValueError, match="permutations must be at least 1, got 0"):
        permutation_p(x_N, y_N, 0)


def test_chance_of_precision_by_counting():
    """Two of five chosen, two right: 1 in 10; one at least: 1 less 3 in 10."""
    assert chance_precision(2, 2, 5) == pytest.approx((0.4, 0.1))
    assert chance_precision(1, 2, 5) == pytest.approx((0.4, 0.7))
    assert chance_precision(0, 2, 5) == pytest.approx((0.4, 1))
    with pytest.raises(ValueError, match="got hits 3, k 2, n 5"):
        chance_precision(3, 2, 5)


MEASURES = (circular_shift_p, permutation_p, lambda x, y: autocorrelated_p(x, y).p)


@pytest.mark.parametrize("measure", MEASURES)
def test_degenerate_curves_have_no_p_and_misuse_is_an_error(measure):
    assert np.isnan(measure([2.0] * 6, [1.0, 5.0, 2.0, 3.0, 9.0, 4.0]))
    assert np.isnan(measure([1.0], [1.0]))
    assert np.isnan(measure([1.0, np.nan, 2.0, 0.0, 5.0], [1.0, 2.0, 4.0, 3.0, 0.0]))
    with pytest.raises(ValueError, match=r"one length; got shapes \(3,\) and \(2,\)"):
        measure([1.0, 2.0, 3.0], [1.0, 2.0])
    delta, loss = [3.0, 1.0, 2.0, 5.0, 4.0, 0.0], [1.0, 4.0, 2.0, 0.0, 1.0, 7.0]
    assert measure(delta, [*loss[:-1], np.inf]) == measure(delta, loss)


@pytest.mark.parametrize("measure", [MEASURES[0], MEASURES[2]])
def test_nothing_is_left_of_a_straight_line_in_depth(measure):
    y_N = np.random.default_rng(0).standard_normal(17)
    assert np.isnan(measure(np.arange(17) ** 3, y_N))
    assert np.isnan(measure(y_N, -np.arange(17)))
