"""CKA with one example, and two, left out against plain CKA of the others; the jackknife's interval by its formulas and coverage."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_similarity import KERNELS, drifting_states, few, plain_cka, plain_debiased_cka, plain_gram, seeds
from scipy import stats

from raysweep.numerics import left_out
from raysweep.numerics.cka import cka_matrix
from raysweep.numerics.left_out import cka_left_out
from raysweep.numerics.resampling import halfway_interval, jackknife_interval


@few
@given(seed=seeds, kernel=st.sampled_from(KERNELS), examples=st.integers(9, 12), width=st.integers(2, 25))
def test_leaving_out_is_cka_of_the_others(seed, kernel, examples, width):
    X_LND = drifting_states(seed, 3, examples, width)
    grams = [plain_gram(X_ND, kernel) for X_ND in X_LND]
    half = examples // 2
    for found, pair in zip(cka_left_out(X_LND, kernel), (plain_cka, plain_debiased_cka), strict=True):
        for values, groups in (
            (found.one, [[a] for a in range(examples)]),
            (found.two, [[a, a + half] for a in range(half)]),
        ):
            assert len(values) == len(groups)
            for S_LL, group in zip(values, groups, strict=True):
                rest = np.ix_(*[np.setdiff1d(np.arange(examples), group)] * 2)
                expected = [[pair(K_NN[rest], M_NN[rest]) for M_NN in grams] for K_NN in grams]
                np.testing.assert_allclose(S_LL, expected, rtol=0, atol=1e-8)


def test_rows_may_be_read_in_parts(monkeypatch):
    X_LND = drifting_states(1, 3, 13)
    whole = cka_left_out(X_LND)
    monkeypatch.setattr(left_out, "_MOST_ROWS", 2 * 13 * 3 * 2)
    for parts, once in zip(cka_left_out(X_LND), whole, strict=True):
        for found, expected in zip(parts, once, strict=True):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)


def test_constant_layers_and_subsets_are_nan():
    X_LND = drifting_states(5, 4, 12)
    X_LND[0] = X_LND[0, 0]
    X_LND[3, 1:] = X_LND[3, 1]  # without example 0 nothing differs
    one_NLL, two_HLL = cka_left_out(X_LND)[0]
    expected = [[True, False, False, value] for value in [True] + [False] * 11]
    np.testing.assert_array_equal(np.isnan(np.einsum("nll->nl", one_NLL)), expected)
    np.testing.assert_array_equal(np.isnan(np.einsum("hll->hl", two_HLL)), expected[:6])


def test_too_few_examples_are_refused():
    with pytest.raises(ValueError, match="needs at least 6 examples, got 5"):
        cka_left_out(drifting_states(0, 2, 5))


def test_the_interval_by_its_formulas():
    rng = np.random.default_rng(0)
    n, half = 9, 4
    z, z_N, z_H = 0.8, 0.8 + 0.02 * rng.standard_normal(n), 0.8 + 0.02 * rng.standard_normal(half)
    jackknife = (n - 1) ** 2 / n * z_N.var(ddof=1)
    for scale in (0.05, 1.0):  # of what pairs add: little, and more than is possible
        z_H = scale * (z_H - 0.8) + ((n - 1) * (z_N[:half] + z_N[half:8]) - n * z) / (n - 2)
        pairs = (n - 1) / (2 * n) * np.mean((n * z - (n - 1) * (z_N[:half] + z_N[half:8]) + (n - 2) * z_H) ** 2)
        freedom = 2 * n / (stats.kurtosis(z_N, fisher=False) - 1)
        width = stats.t.ppf(0.95, freedom) * np.sqrt(max(jackknife - pairs, jackknife / 2))
        found = jackknife_interval(np.tanh([z]), np.tanh(z_N)[:, None], np.tanh(z_H)[:, None], 0.9)
        np.testing.assert_allclose(np.ravel(found), np.tanh([z - width, z + width]), rtol=1e-10)


def test_of_a_linear_mean_it_is_the_standard_error():
    """z that is a mean of normal values: the jackknife is exact, and pairs add nothing."""
    x_N = 0.1 * np.random.default_rng(1).standard_normal(40)
    one_N, two_H = (x_N.sum() - x_N) / 39, (x_N.sum() - x_N[:20] - x_N[20:]) / 38
    (low,), (high,) = jackknife_interval(np.tanh([x_N.mean()]), np.tanh(one_N)[:, None], np.tanh(two_H)[:, None])
    freedom = 80 / (stats.kurtosis(x_N, fisher=False) - 1)
    assert (np.arctanh(high) - np.arctanh(low)) / 2 == pytest.approx(stats.sem(x_N) * stats.t.ppf(0.975, freedom))


def test_certain_and_undefined_values():
    one_NE, two_HE = np.full((8, 3), 1.0), np.full((4, 3), 1 - 1e-15)
    one_NE[0, 1] = np.nan
    one_NE[:, 2], two_HE[:, 2] = 0.5, 0.5
    low_E, high_E = jackknife_interval([1.0, 1.0, 0.5], one_NE, two_HE)
    np.testing.assert_allclose(low_E, [1, np.nan, 0.5])
    np.testing.assert_allclose(high_E, [1, np.nan, 0.5])


def test_the_jackknife_refuses_misuse():
    with pytest.raises(ValueError, match=r"\[E\], \[N, E\] and \[N // 2, E\]; got \(1,\), \(8, 1\) and \(3, 1\)"):
        jackknife_interval([0.5], np.zeros((8, 1)), np.zeros((3, 1)))
    with pytest.raises(ValueError, match=r"must lie in \[-1, 1\]; got 1.5"):
        jackknife_interval([1.5], np.zeros((8, 1)), np.zeros((4, 1)))
    with pytest.raises(ValueError, match="level must be between 0 and 1"):
        jackknife_interval([0.5], np.zeros((8, 1)), np.zeros((4, 1)), 2)


def test_intervals_cover_where_dimensions_outnumber_examples():
    """Debiased CKA of two Gaussian layers, 30 examples of 60 dimensions; the truth is that of their covariances."""
    rng = np.random.default_rng(0)
    A_DD, B_DD = (rng.standard_normal((60, 60)) * np.arange(1, 61) ** -0.5 for _ in range(2))
    B_DD += A_DD
    cross, own_a, own_b = (np.linalg.norm(P.T @ Q) ** 2 for P, Q in ((A_DD, B_DD), (A_DD, A_DD), (B_DD, B_DD)))
    truth = cross / np.sqrt(own_a * own_b)
    inside = []
    for _ in range(300):
        Z_ND = rng.standard_normal((30, 60))
        X_LND = np.stack([Z_ND @ A_DD, Z_ND @ B_DD])
        one, two = cka_left_out(X_LND)[1]
        low, high = jackknife_interval(cka_matrix(X_LND, debiased=True)[:1, 1], one[:, 0, 1:], two[:, 0, 1:])
        inside.append(low[0] <= truth <= high[0])
    assert 0.91 < np.mean(inside) < 0.99


def test_halfway_between_the_percentiles_and_the_estimate():
    assert halfway_interval(0.07, np.arange(101) / 200, 0.9) == pytest.approx((0.025 - 0.09, 0.475 - 0.09))
    assert np.isnan(halfway_interval(1.5, [1.0, np.nan, 2.0])).all()
    assert np.isnan(halfway_interval(np.nan, [1.0, 1.5, 2.0])).all()


def test_no_end_of_an_interval_of_a_correlation_is_beyond_one():
    assert halfway_interval(-1.0, np.linspace(-1, -0.6, 101), 0.9) == pytest.approx((-1, -0.62 - 0.1))
    assert halfway_interval(1.0, np.linspace(0.6, 1, 101), 0.9) == pytest.approx((0.62 + 0.1, 1))
