"""Rank correlations against scipy and the textbook formulas."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from raysweep.numerics.correlation import (
    delta_at,
    kendall,
    partial_depth,
    precision_at_k,
    spearman,
    spearman_rows,
)

MEASURES = (spearman, kendall, partial_depth, precision_at_k)
few = settings(max_examples=40, deadline=None)
# Few distinct values, so that ties are common.
tied_pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=4, max_size=30)


def columns(pairs):
    x_N, y_N = np.array(pairs, dtype=float).T
    assume(np.ptp(x_N) > 0)
    assume(np.ptp(y_N) > 0)
    return x_N, y_N


@few
@given(tied_pairs)
def test_rank_correlations_equal_scipys(pairs):
    x_N, y_N = columns(pairs)
    assert spearman(x_N, y_N) == pytest.approx(stats.spearmanr(x_N, y_N).statistic, abs=1e-12)
    assert kendall(x_N, y_N) == pytest.approx(stats.kendalltau(x_N, y_N).statistic, abs=1e-12)


def test_kendall_by_counting():
    """Pairs of (1, 1), (2, 3), (3, 2), (3, 4): four concordant, one discordant, one tied in x."""
    assert kendall([1, 2, 3, 3], [1, 3, 2, 4]) == pytest.approx((4 - 1) / math.sqrt(5 * 6))


def test_spearman_row_by_row():
    rng = np.random.default_rng(0)
    X_RN, Y_RN = rng.integers(0, 9, (2, 50, 13)).astype(float)
    X_RN[3], Y_RN[5], X_RN[7, 2] = 1.0, 2.0, np.nan
    rho_R = spearman_rows(X_RN, Y_RN)
    for row in range(50):
        expected = np.nan if row in (3, 5, 7) else stats.spearmanr(X_RN[row], Y_RN[row]).statistic
        assert rho_R[row] == pytest.approx(expected, abs=1e-12, nan_ok=True)


@few
@given(tied_pairs)
def test_partial_depth_is_the_textbook_formula(pairs):
    x_N, y_N = columns(pairs)
    depth_N = np.arange(len(x_N))
    xy, xz, yz = (stats.spearmanr(a, b).statistic for a, b in ((x_N, y_N), (x_N, depth_N), (y_N, depth_N)))
    assume(max(abs(xz), abs(yz)) < 1 - 1e-9)
    expected = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
    assert partial_depth(x_N, y_N) == pytest.approx(expected, abs=1e-9)


def test_nothing_is_left_of_a_straight_line_in_depth():
    y_N = np.random.default_rng(0).standard_normal(17)
    assert np.isnan(partial_depth(np.arange(17) ** 3, y_N))
    assert np.isnan(partial_depth(y_N, -np.arange(17)))


@pytest.mark.parametrize("measure", [spearman, kendall, partial_depth])
def test_a_constant_side_is_nan_without_a_warning(measure):
    assert np.isnan(measure([2.0] * 6, [1.0, 5.0, 2.0, 3.0, 9.0, 4.0]))
    assert np.isnan(measure([1.0], [1.0]))


@pytest.mark.parametrize("measure", MEASURES)
def test_nan_gives_nan_and_misuse_an_error(measure):
    assert np.isnan(measure([1.0, np.nan, 2.0, 0.0, 5.0], [1.0, 2.0, 4.0, 3.0, 0.0]))
    assert np.isnan(measure([1.0, 2.0, 4.0, 3.0, 0.0], [1.0, np.nan, 2.0, 0.0, 5.0]))
    with pytest.raises(ValueError, match=r"one length; got shapes \(3,\) and \(2,\)"):
        measure([1.0, 2.0, 3.0], [1.0, 2.0])
    with pytest.raises(ValueError, match=r"one length; got shapes \(0,\)"):
        measure([], [])


@pytest.mark.parametrize("measure", MEASURES)
def test_an_infinite_loss_is_the_largest(measure):
    delta, loss = [3.0, 1.0, 2.0, 5.0, 4.0, 0.0], [1.0, 4.0, 2.0, 0.0, 1.0, 7.0]
    assert measure(delta, [*loss[:-1], np.inf]) == measure(delta, loss)


def test_spearman_rows_refuses_shapes_that_differ():
    with pytest.raises(ValueError, match=r"one shape \[R, N\]; got \(2, 3\) and \(1, 3\)"):
        spearman_rows(np.zeros((2, 3)), np.zeros((1, 3)))


def test_precision_at_k_by_hand():
    delta = [0.9, 0.2, 0.1, 0.8, 0.3]
    loss = [1.0, 5.0, 2.0, 4.0, 3.0]
    assert precision_at_k(delta, loss) == 0  # layer 2 against layer 1
    assert precision_at_k(delta, loss, 2) == 1 / 2
    assert precision_at_k(delta, loss, 3) == 2 / 3
    assert precision_at_k(delta, loss, 5) == 1
    with pytest.raises(ValueError, match="got 6"):
        precision_at_k(delta, loss, 6)


def test_delta_at_whole_and_half_centres():
    np.testing.assert_allclose(delta_at([1.0, 2.0, 4.0], [0, 0.5, 1, 1.5, 2]), [1, 1.5, 2, 3, 4])
    assert np.isnan(delta_at([1.0, np.nan, 4.0], [0.5]))


@pytest.mark.parametrize("centre", [-0.5, 2.5, 0.25, np.nan, np.inf])
def test_delta_at_refuses_other_centres(centre):
    with pytest.raises(ValueError, match=f"centre {centre} is no multiple of 0.5 from 0 to 2"):
        delta_at([1.0, 2.0, 4.0], [1, centre])


@pytest.mark.parametrize("n", range(3, 40))
def test_the_same_order_is_exactly_one(n):
    """So that it is told from a correlation that has a finite z."""
    order_N = np.random.default_rng(n).permutation(n)
    for x_N in (order_N, order_N // 2):
        assert spearman(x_N, 3.0 * x_N) == 1
        assert spearman(x_N, -3.0 * x_N) == -1
