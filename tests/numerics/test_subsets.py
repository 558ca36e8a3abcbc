"""CKA and δ on subsets against plain CKA of each subset."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_similarity import (
    KERNELS,
    drifting_states,
    few,
    plain_cka,
    plain_debiased_cka,
    plain_gram,
    plain_matrix,
    seeds,
)

from raysweep.numerics import subsets
from raysweep.numerics.dynamics import local_dynamics
from raysweep.numerics.subsets import cka_resamples, dynamics_resamples


def plain_resamples(X_LND, keep_RN, kernel, pair):
    """CKA of each subset, with the full sample's Grams, so that the RBF keeps its bandwidth."""
    grams = [plain_gram(X_ND, kernel) for X_ND in X_LND]
    kept = [[K_NN[np.ix_(keep_N, keep_N)] for K_NN in grams] for keep_N in keep_RN]
    return np.array([[[pair(K_NN, M_NN) for M_NN in within] for K_NN in within] for within in kept])


@few
@given(seed=seeds, kernel=st.sampled_from(KERNELS), width=st.integers(2, 30), tile=st.sampled_from([1, 3, 5, 14, 256]))
def test_both_ckas_of_every_subset_are_plain_ckas(seed, kernel, width, tile):
    X_LND = drifting_states(seed, 4, 14, width)
    keep_RN = np.random.default_rng(seed).random((5, 14)) < 0.5  # subsets of unlike size
    keep_RN[:, :5] = True
    biased_RLL, debiased_RLL = cka_resamples(X_LND, keep_RN, kernel, debiased="both", tile=tile)
    expected = plain_resamples(X_LND, keep_RN, kernel, plain_cka)
    np.testing.assert_allclose(biased_RLL, expected, rtol=0, atol=1e-10)
    np.testing.assert_array_equal(cka_resamples(X_LND, keep_RN, kernel, tile=tile), biased_RLL)
    np.testing.assert_array_equal(cka_resamples(X_LND, keep_RN, kernel, True, tile=tile), debiased_RLL)
    expected = plain_resamples(X_LND, keep_RN, kernel, plain_debiased_cka)
    np.testing.assert_allclose(debiased_RLL, expected, rtol=0, atol=1e-7)


def test_subsets_may_be_gone_through_in_groups(monkeypatch):
    X_LND = drifting_states(2, 3, 20)
    keep_RN = np.random.default_rng(2).random((9, 20)) < 0.6
    whole = cka_resamples(X_LND, keep_RN, debiased="both")
    monkeypatch.setattr(subsets, "_MOST_SUMS", 4 * 20 * 3)
    for found, expected in zip(cka_resamples(X_LND, keep_RN, debiased="both"), whole, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)


def test_features_far_from_zero_lose_no_digits():
    """A common mean of 100 in float32: the digits that are left in the states are all used."""
    X_LND = (drifting_states(3, 3, 40, 30) + 100).astype(np.float32)
    keep_RN = np.random.default_rng(3).random((4, 40)) < 0.5
    expected = plain_resamples(X_LND.astype(np.float64) - 100, keep_RN, "linear", plain_cka)
    np.testing.assert_allclose(cka_resamples(X_LND, keep_RN), expected, rtol=0, atol=1e-12)


@few
@given(seed=seeds, neighbourhood=st.sampled_from([1, 3, 5, 11]), width=st.integers(2, 30))
def test_resamples_equal_cka_of_each_subset(seed, neighbourhood, width):
    X_LND = drifting_states(seed, 5, 14, width)
    keep_RN = np.random.default_rng(seed).random((6, 14)) < 0.5
    keep_RN[:, :4] = True
    direct = [local_dynamics(plain_matrix(X_LND[:, keep_N], "linear"), neighbourhood) for keep_N in keep_RN]
    np.testing.assert_allclose(dynamics_resamples(X_LND, keep_RN, neighbourhood), direct, rtol=0, atol=1e-10)


def test_resamples_of_the_rbf_keep_the_full_bandwidth():
    X_LND = drifting_states(7, 4, 12)
    keep_RN = np.random.default_rng(7).permuted(np.tile(np.arange(12) < 6, (5, 1)), axis=1)
    grams = [plain_gram(X_ND, "rbf") for X_ND in X_LND]
    for delta_L, keep_N in zip(dynamics_resamples(X_LND, keep_RN, kernel="rbf"), keep_RN, strict=True):
        kept = np.ix_(keep_N, keep_N)
        S_LL = np.array([[plain_cka(K_NN[kept], L_NN[kept]) for L_NN in grams] for K_NN in grams])
        np.testing.assert_allclose(delta_L, local_dynamics(S_LL), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kernel", KERNELS)
def test_resamples_are_nan_where_states_are_identical(kernel):
    """Layer 0 is constant; in layer 3 only example 0 differs, and the second subset leaves it out."""
    X_LND = drifting_states(5, 7, 12)
    X_LND[0] = X_LND[0, 0]
    X_LND[3, 1:] = X_LND[3, 1]
    keep_RN = np.ones((2, 12), dtype=bool)
    keep_RN[1, 0] = False
    expected = [[True, True, False, False, False, False, False], [True, True, True, True, True, False, False]]
    np.testing.assert_array_equal(np.isnan(dynamics_resamples(X_LND, keep_RN, kernel=kernel)), expected)


@pytest.mark.parametrize(
    ("keep_RN", "message"),
    [
        (np.ones((2, 11)), r"boolean \[R, 11\]; got float64"),
        (np.ones((2, 10), dtype=bool), r"boolean \[R, 11\]; got bool of shape \(2, 10\)"),
        (np.ones(11, dtype=bool), r"got bool of shape \(11,\)"),
        (np.arange(22).reshape(2, 11) < 12, "subset 1 has fewer than 2 examples"),
    ],
)
def test_resamples_refuse_unfit_subsets(keep_RN, message):
    with pytest.raises(ValueError, match=message):
        dynamics_resamples(drifting_states(0), keep_RN)


def test_the_debiased_needs_four_examples_and_tiles_one():
    keep_RN = np.arange(11) < np.array([[4], [3]])
    with pytest.raises(ValueError, match="subset 1 has fewer than 4 examples"):
        cka_resamples(drifting_states(0), keep_RN, debiased="both")
    with pytest.raises(ValueError, match="tile must be at least 1, got 0"):
        cka_resamples(drifting_states(0), keep_RN, tile=0)


def test_dynamics_of_subsets_without_the_diagonal():
    X_LND, keep_RN = (
        drifting_states(3, layers=5, examples=12),
        np.random.default_rng(0).permuted(np.tile(np.arange(12) < 6, (4, 1)), axis=1),
    )
    found_RL = dynamics_resamples(X_LND, keep_RN, 3, diagonal=False)
    for delta_L, keep_N in zip(found_RL, keep_RN, strict=True):
        S_LL = plain_matrix(X_LND[:, keep_N], "linear")
        plain_L = [np.mean([S_LL[i, j] for j in (i - 1, i + 1) if 0 <= j < 5]) for i in range(5)]
        np.testing.assert_allclose(delta_L, plain_L, atol=1e-12)
