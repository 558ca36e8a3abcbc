"""Degenerate states: NaN where it is 0/0, an error that names the place where it is no state; never a silent number."""

import numpy as np
import pytest
import torch
from plain_similarity import KERNELS, drifting_states, oracle

from raysweep.numerics.cka import cka_matrix, constant_layers

LARGE, SMALL = 90, 12  # examples: multiplied in single and in double precision


def states(examples, dtype=np.float32):
    return drifting_states(0, 4, examples, 10).astype(dtype)


@pytest.mark.parametrize("examples", [LARGE, SMALL])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("tile", [None, 7])
def test_a_row_that_is_not_finite_is_named(examples, kernel, value, tile):
    X_LND = states(examples)
    X_LND[2, 9] = value
    with pytest.raises(
        ValueError, match=rf"^layer 2: states are not all finite: example 9 has {value} in dimension 0$"
    ):
        cka_matrix(X_LND, kernel, tile=tile)
    with pytest.raises(ValueError, match=r"layer 2: .*example 9"):
        constant_layers(X_LND)
    with pytest.raises(ValueError, match=r"layer 2: .*example 9"):
        cka_matrix(torch.from_numpy(X_LND).bfloat16(), kernel, tile=tile)


@pytest.mark.parametrize("examples", [LARGE, SMALL])
def test_an_infinite_dimension_is_named(examples):
    X_LND = states(examples)
    X_LND[3, :, 6] = np.inf
    with pytest.raises(ValueError, match=r"layer 3: .*example 0 has inf in dimension 6"):
        cka_matrix(X_LND, debiased="both")


def test_states_not_finite_where_products_are_of_dimensions():
    X_LND = drifting_states(0, 2, 600, 3).astype(np.float32)
    X_LND[1, 599, 2] = np.nan
    with pytest.raises(ValueError, match=r"layer 1: .*example 599 has nan in dimension 2"):
        cka_matrix(X_LND)


@pytest.mark.parametrize("examples", [LARGE, SMALL])
def test_a_pair_of_identical_rows_is_no_harm(examples):
    X_LND = states(examples)
    X_LND[:, 1] = X_LND[:, 0]
    np.testing.assert_allclose(cka_matrix(X_LND, debiased="both"), oracle(X_LND), rtol=0, atol=1e-6)


@pytest.mark.parametrize("examples", [2, 3])
def test_fewer_than_four_examples(examples):
    X_LND = states(examples, np.float64)
    assert np.isfinite(cka_matrix(X_LND)).all()
    with pytest.raises(ValueError, match=rf"debiased CKA needs at least 4 examples, got {examples}"):
        cka_matrix(X_LND, debiased="both")
    with pytest.raises(ValueError, match=r"expected .* N at least 2"):
        cka_matrix(X_LND[:, :1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("examples", [6, 100])
def test_equidistant_states_have_no_debiased_value_in_either_precision(dtype, examples):
    X_LND = np.stack([np.eye(examples, dtype=dtype), 3 * np.eye(examples, dtype=dtype)[::-1]])
    biased, debiased = cka_matrix(X_LND, debiased="both")
    np.testing.assert_allclose(biased, 1, rtol=1e-6)
    assert np.isnan(debiased).all()
