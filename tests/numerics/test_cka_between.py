"""CKA between the layers of two models."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain_similarity import KERNELS, drifting_states, few, oracle, plain_cka, plain_gram, seeds

import raysweep as rs
from raysweep.numerics.cka import cka_between, cka_matrix


@few
@given(seed=seeds, examples=st.integers(4, 20), ours=st.integers(1, 4), theirs=st.integers(1, 4))
def test_equals_the_oracle_over_depths_and_widths(seed, examples, ours, theirs):
    X_LND, Y_MND = drifting_states(seed, ours, examples, 5), drifting_states(seed + 1, theirs, examples, 9) + 3
    expected = oracle(X_LND, Y_MND)
    np.testing.assert_allclose(cka_between(X_LND, Y_MND, debiased="both"), expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(cka_between(X_LND, Y_MND, debiased=True), expected[1], rtol=0, atol=1e-9)
    np.testing.assert_allclose(cka_between(Y_MND, X_LND), expected[0].T, rtol=0, atol=1e-9)


def test_rbf_between_models():
    X_LND, Y_MND = drifting_states(0, 2, 9, 5), drifting_states(1, 3, 9, 8)
    plain = [[plain_cka(plain_gram(X, "rbf"), plain_gram(Y, "rbf")) for Y in Y_MND] for X in X_LND]
    np.testing.assert_allclose(cka_between(X_LND, Y_MND, "rbf"), plain, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_model_with_itself_is_its_own_matrix(kernel):
    X_LND = torch.tensor(drifting_states(0)).float()
    np.testing.assert_allclose(cka_between(X_LND, X_LND, kernel), cka_matrix(X_LND, kernel), rtol=0, atol=1e-12)
    assert rs.cka_between is cka_between


def test_single_and_half_precision_meet():
    X_LND, Y_MND = drifting_states(0, 2, 80, 30), drifting_states(1, 2, 80, 20)
    X, Y = torch.tensor(X_LND).bfloat16(), Y_MND.astype(np.float32)
    expected = oracle(X.double().numpy(), Y)
    np.testing.assert_allclose(cka_between(X, Y, debiased="both"), expected, rtol=0, atol=1e-6)


def test_a_constant_layer_of_either_is_nan():
    X_LND, Y_MND = drifting_states(0, 2, 9, 5), drifting_states(1, 3, 9, 8)
    Y_MND[1] = 4.0
    assert np.isnan(cka_between(X_LND, Y_MND)).tolist() == [[False, True, False]] * 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda X, Y: (X, Y[:, :8]),
            "the first model's states are of 9 examples, the second's of 8; give both the same",
        ),
        (lambda X, Y: (X, Y[:, :1]), r"the second model: layer 0: states of shape \(1, 8\)"),
        (lambda X, Y: (X[0], Y), r"layer 0: states of shape \(5,\)"),
    ],
)
def test_unfit_models_are_refused(damage, message):
    X_LND, Y_MND = damage(drifting_states(0, 2, 9, 5), drifting_states(1, 3, 9, 8))
    with pytest.raises(ValueError, match=message):
        cka_between(X_LND, Y_MND)


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_is_not_finite_is_named_in_its_own_model(kernel):
    X_LND, Y_MND = drifting_states(0, 2, 9, 5), drifting_states(1, 3, 9, 8)
    Y_MND[1, 4, 2] = np.nan
    with pytest.raises(ValueError, match=r"^the second model: layer 1: .*example 4 has nan in dimension 2"):
        cka_between(X_LND, Y_MND, kernel)
    with pytest.raises(ValueError, match=r"^layer 1: .*example 4 has nan in dimension 2"):
        cka_between(Y_MND, X_LND, kernel)
