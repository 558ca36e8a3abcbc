"""CKA of half and single precision states, multiplied in single precision, against the oracle in float64."""

import numpy as np
import pytest
import torch
from plain_similarity import drifting_states, oracle

from raysweep.numerics.centred_rows import working_dtype
from raysweep.numerics.cka import cka_matrix, constant_layers

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_within_a_millionth_of_the_oracle(dtype, mean):
    X_LND = (torch.tensor(drifting_states(0, 4, 90, 50)) + mean).to(dtype)
    expected = oracle(X_LND.double().numpy())
    for tile in (None, 90, 37):
        np.testing.assert_allclose(cka_matrix(X_LND, debiased="both", tile=tile), expected, rtol=0, atol=1e-6)


def test_numpy_and_torch_and_any_layout_give_the_same():
    X_LND = drifting_states(1, 3, 80, 33).astype(np.float32)
    expected = cka_matrix(X_LND)
    strided = np.zeros((3, 80, 66), np.float32)
    strided[..., ::2] = X_LND
    transposed = np.ascontiguousarray(X_LND.transpose(2, 1, 0))
    for states in (torch.from_numpy(X_LND), strided[..., ::2], transposed.transpose(2, 1, 0)):
        np.testing.assert_allclose(cka_matrix(states), expected, rtol=0, atol=1e-7)
    half = X_LND.astype(np.float16)
    np.testing.assert_array_equal(cka_matrix(half), cka_matrix(torch.from_numpy(half)))


def test_float64_states_and_few_examples_stay_in_float64():
    assert working_dtype([np.zeros((64, 3), np.float32)]) == np.float32
    assert working_dtype([np.zeros((63, 3), np.float32)]) == np.float64
    assert working_dtype([np.zeros((64, 3), np.float32), np.zeros((64, 3))]) == np.float64
    X_LND = drifting_states(2, 3, 70, 20)
    np.testing.assert_allclose(cka_matrix(X_LND, debiased="both"), oracle(X_LND), rtol=0, atol=1e-13)


@pytest.mark.parametrize("factor", [1e-30, 1e-20, 1e15, 1e30])
def test_states_whose_squares_single_precision_cannot_hold(factor):
    X_LND = drifting_states(3, 3, 70, 20).astype(np.float32)
    expected = oracle(X_LND)
    X_LND[1] *= np.float32(factor)
    np.testing.assert_allclose(cka_matrix(X_LND, debiased="both"), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("factor", [1e-120, 1e120])
def test_states_whose_squares_double_precision_cannot_hold(factor):
    X_LND = drifting_states(3, 3, 20, 6)
    expected = oracle(X_LND)
    X_LND[1] *= factor
    np.testing.assert_allclose(cka_matrix(X_LND, debiased="both"), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("tile", [None, 30])
def test_a_constant_layer_is_told_whatever_its_magnitude(dtype, tile):
    X_LND = torch.tensor(drifting_states(4, 4, 70, 20)).to(dtype)
    X_LND[1] = 300.7 * torch.rand(20, generator=torch.manual_seed(0)).to(dtype)
    X_LND[2] = 0
    assert constant_layers(X_LND).tolist() == [False, True, True, False]
    for S_LL in cka_matrix(X_LND, debiased="both", tile=tile):
        np.testing.assert_array_equal(np.isnan(S_LL).all(axis=0), [False, True, True, False])
        assert np.isfinite(S_LL[np.ix_([0, 3], [0, 3])]).all()


def test_two_units_in_the_last_place_are_no_constant_layer():
    X_LND = drifting_states(5, 2, 70, 8).astype(np.float32)
    X_LND[1] = 1
    X_LND[1, ::2, 3] += 2**-21
    biased = cka_matrix(X_LND)
    assert not constant_layers(X_LND).any()
    np.testing.assert_allclose(biased, oracle(X_LND)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("factor", [1e2, 1e3, 1e4])
@pytest.mark.parametrize("width", [20, 300])
def test_one_example_far_from_all_others(factor, width):
    """The debiased value is of what is left when nearly all of the biased one is taken off."""
    X_LND = drifting_states(6, 3, 70, width).astype(np.float32)
    X_LND[:, 0] *= factor
    biased, debiased = cka_matrix(X_LND, debiased="both")
    np.testing.assert_allclose(biased, oracle(X_LND)[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(debiased, oracle(X_LND)[1], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(cka_matrix(X_LND, debiased=True), debiased)
