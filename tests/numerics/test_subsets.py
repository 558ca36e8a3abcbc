"""δ on subsets against CKA of each subset."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_similarity import KERNELS, drifting_states, few, plain_cka, plain_gram, plain_matrix, seeds

from raysweep.numerics.dynamics import local_dynamics
from raysweep.numerics.subsets import dynamics_resamples


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
