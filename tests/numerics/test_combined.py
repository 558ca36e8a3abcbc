"""Correlations over many cells: by hand, by scipy, and by simulation of cells that share a curve."""

import numpy as np
import pytest
from scipy import stats
from test_nulls import ar1

from raysweep.numerics.combined import combined_p, mean_correlation
from raysweep.numerics.correlation import spearman
from raysweep.numerics.nulls import autocorrelated_p


def test_the_mean_is_fishers_and_the_interval_students_over_groups():
    rho_C = [-0.5, -0.7, -0.2, np.nan, -0.4]
    found = mean_correlation(rho_C, ["a", "a", "b", "b", "c"])
    z_U = np.array([(np.arctanh(-0.5) + np.arctanh(-0.7)) / 2, np.arctanh(-0.2), np.arctanh(-0.4)])
    low, high = stats.t.interval(0.95, 2, loc=z_U.mean(), scale=stats.sem(z_U))
    assert found == pytest.approx((np.tanh(z_U.mean()), np.tanh(low), np.tanh(high), 3, 4))


def test_one_group_has_its_interval_over_cells_and_one_cell_none():
    z_U = np.arctanh([-0.5, -0.7])
    low, _ = stats.t.interval(0.95, 1, loc=z_U.mean(), scale=stats.sem(z_U))
    assert mean_correlation([-0.5, -0.7], "aa")[:2] == pytest.approx((np.tanh(z_U.mean()), np.tanh(low)))
    assert mean_correlation([0.3], ["a"]) == pytest.approx((0.3, np.nan, np.nan, 1, 1), nan_ok=True)
    assert np.isnan(mean_correlation([0.3, 1.0], "ab")[:3]).all()
    assert np.isnan(mean_correlation([0.3, spearman(range(9), range(9))], "ab")[:3]).all()
    assert mean_correlation([np.nan], ["a"]).cells == 0
    with pytest.raises(ValueError, match=r"got shape \(2,\) and 1 groups"):
        mean_correlation([0.1, 0.2], ["a"])
    with pytest.raises(ValueError, match="between 0 and 1, got 95"):
        mean_correlation([0.1], ["a"], 95)


def test_one_cell_and_the_same_cell_twice_have_the_cells_own_p():
    x_N, y_N = ar1(np.random.default_rng(0), (2, 30), 0.6)
    alone = autocorrelated_p(x_N, y_N)
    assert combined_p([x_N], [y_N], ["m"]) == pytest.approx((alone.correlation, alone.p, 1))
    assert combined_p([x_N, x_N], [y_N, y_N], ["m", "m"]) == pytest.approx((alone.correlation, alone.p, 2))
    assert combined_p([x_N, x_N], [y_N, y_N], ["m", "n"]).p < alone.p, "two models that agree tell more"


def test_cells_without_a_p_are_left_out():
    x_N, y_N = ar1(np.random.default_rng(1), (2, 20), 0.6)
    line_N = np.arange(20.0)
    assert combined_p([x_N, line_N], [y_N, y_N], ["m", "m"]) == combined_p([x_N], [y_N], ["m"])
    assert combined_p([line_N], [y_N], ["m"]).cells == 0
    assert np.isnan(combined_p([line_N], [y_N], ["m"]).p)


@pytest.mark.parametrize("alike", [0.0, 0.7])
def test_the_combined_test_keeps_its_level_where_cells_share_delta_and_losses_are_alike(alike):
    """Three data sets on two models, 28 centres, φ = 0.8: δ is a model's, losses of one model have `alike` in common."""
    rng = np.random.default_rng(int(10 * alike))
    rejected = []
    for _ in range(150):
        x, y = [], []
        for _model in range(2):
            delta_N, common_N = ar1(rng, (2, 28), 0.8)
            own = ar1(rng, (3, 28), 0.8)
            x += [delta_N + 0.1 * rng.standard_normal(28) for _ in own]
            y += [np.sqrt(alike) * common_N + np.sqrt(1 - alike) * loss_N for loss_N in own]
        rejected.append(combined_p(x, y, ["a"] * 3 + ["b"] * 3).p <= 0.05)
    assert np.mean(rejected) < 0.1


def test_cells_that_do_not_fit_are_refused():
    x_N, y_N = ar1(np.random.default_rng(1), (2, 20), 0.6)
    with pytest.raises(ValueError, match="one x, y and group a cell; got 2, 1 and 1"):
        combined_p([x_N, x_N], [y_N], ["m"])
    with pytest.raises(ValueError, match="cells of group 'm' have 20 and 12 places"):
        combined_p([x_N, x_N[:12]], [y_N, y_N[:12]], ["m", "m"])
