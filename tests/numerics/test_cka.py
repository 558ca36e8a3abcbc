"""CKA between layers against the plain formulas."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain_similarity import (
    KERNELS,
    drifting_states,
    few,
    plain_cka,
    plain_debiased_cka,
    plain_gram,
    plain_lower_median,
    plain_matrix,
    seeds,
)

from raysweep.numerics.cka import cka_matrix, constant_layers


@few
@given(seed=seeds, examples=st.integers(4, 14), width=st.integers(2, 20), kernel=st.sampled_from(KERNELS))
def test_both_estimators_equal_the_plain_formulas(seed, examples, width, kernel):
    X_LND = drifting_states(seed, 3, examples, width)
    biased, debiased = cka_matrix(X_LND, kernel, debiased="both")
    np.testing.assert_allclose(biased, plain_matrix(X_LND, kernel), rtol=0, atol=1e-10)
    np.testing.assert_allclose(debiased, plain_matrix(X_LND, kernel, plain_debiased_cka), rtol=0, atol=1e-10)
    np.testing.assert_array_equal(cka_matrix(X_LND, kernel), biased)
    np.testing.assert_array_equal(cka_matrix(X_LND, kernel, debiased=True), debiased)


@few
@given(seed=seeds, kernel=st.sampled_from(KERNELS), examples=st.integers(4, 30))
def test_symmetric_with_unit_diagonal_and_in_range(seed, kernel, examples):
    biased, debiased = cka_matrix(drifting_states(seed, 4, examples), kernel, debiased="both")
    for S_LL, lowest in ((biased, 0), (debiased, -1)):
        np.testing.assert_array_equal(S_LL, S_LL.T)
        np.testing.assert_allclose(S_LL.diagonal(), 1, rtol=1e-15)
        assert S_LL.min() >= lowest - 1e-12
        assert S_LL.max() <= 1 + 1e-12


@few
@given(
    seed=seeds,
    kernel=st.sampled_from(KERNELS),
    factor=st.floats(1e-30, 1e30),
    mean=st.sampled_from([0.0, 1.0, 100.0, 1e4]),
)
def test_rotation_factor_and_common_mean_change_nothing(seed, kernel, factor, mean):
    X_LND = drifting_states(seed)
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((6, 6)))
    moved_LND = X_LND.copy()
    moved_LND[1] = factor * (moved_LND[1] @ rotation + mean)
    moved, still = (cka_matrix(states, kernel, debiased="both") for states in (moved_LND, X_LND))
    np.testing.assert_allclose(moved, still, rtol=0, atol=1e-8)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_common_mean_of_100_in_float32_leaves_the_value(kernel):
    X_LND = np.random.default_rng(0).standard_normal((3, 60, 40))
    moved = cka_matrix((X_LND + 100).astype(np.float32), kernel)
    np.testing.assert_allclose(moved, plain_matrix(X_LND, kernel), rtol=0, atol=1e-6)
    assert moved[0, 1] < 0.9


@few
@given(seed=seeds, kernel=st.sampled_from(KERNELS), examples=st.integers(4, 23), tile=st.integers(1, 25))
def test_tile_size_changes_nothing(seed, kernel, examples, tile):
    X_LND = drifting_states(seed, examples=examples)
    tiled, whole = (cka_matrix(X_LND, kernel, debiased="both", tile=size) for size in (tile, examples))
    np.testing.assert_allclose(tiled, whole, rtol=0, atol=1e-12)


def test_memory_follows_the_tile_not_the_examples():
    layers, examples, tile = 12, 600, 50
    X_LND = drifting_states(0, layers, examples, 4)
    tracemalloc.start()
    try:
        cka_matrix(X_LND, debiased="both", tile=tile)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * layers * tile**2 * 8
    assert peak < layers * examples**2 * 8 / 20


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_torch_tensors_of_any_precision(dtype):
    X_LND = torch.tensor(drifting_states(1)).to(dtype)
    expected = plain_matrix(X_LND.double().numpy(), "linear")
    np.testing.assert_allclose(cka_matrix(X_LND), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(cka_matrix(list(X_LND)), expected, rtol=0, atol=1e-12)


def test_layers_may_differ_in_width():
    layers = [drifting_states(seed, 1, 9, width)[0] for seed, width in enumerate((3, 20, 7))]
    np.testing.assert_allclose(cka_matrix(layers), plain_matrix(layers, "linear"), rtol=0, atol=1e-12)


def test_independent_gaussian_states():
    """Biased: E‖XᵀY‖² / (‖XXᵀ‖ ‖YYᵀ‖) is about D / (N + D); debiased: about 0."""
    n, d = 64, 1024
    biased, debiased = cka_matrix(np.random.default_rng(0).standard_normal((2, n, d)), debiased="both")
    assert biased[0, 1] == pytest.approx(d / (n + d), abs=0.01)
    assert debiased[0, 1] == pytest.approx(0, abs=0.05)


def test_repeated_states_are_no_nonzero_distance():
    """The squared distances that are not zero are 1, 1, 4, 9, 9, each twice: the lower median is 4."""
    line = np.array([[0.0], [0.0], [1.0], [3.0]]) + 1000.0
    other = np.random.default_rng(0).standard_normal((4, 2))
    expected = plain_cka(plain_gram(line, "rbf", median=4.0), plain_gram(other, "rbf"))
    assert plain_lower_median((line - line.T) ** 2) == 4.0
    assert cka_matrix([line, other], "rbf")[0, 1] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("place", [0, 2])
def test_a_constant_layer_is_nan_and_the_others_are_not(kernel, place):
    X_LND = drifting_states(3)
    X_LND[place] = X_LND[place, 0]
    np.testing.assert_array_equal(constant_layers(X_LND), np.arange(4) == place)
    others = np.delete(np.arange(4), place)
    for S_LL in cka_matrix(X_LND, kernel, debiased="both"):
        assert np.isnan(S_LL[place]).all()
        assert np.isnan(S_LL[:, place]).all()
        assert np.isfinite(S_LL[np.ix_(others, others)]).all()


def test_all_layers_constant():
    assert constant_layers(np.zeros((2, 5, 3))).all()
    assert np.isnan(cka_matrix(np.zeros((2, 5, 3)))).all()


@pytest.mark.parametrize(
    ("dtype", "eps"),
    [(torch.bfloat16, 2**-7), (torch.float16, 2**-10), (torch.float32, 2**-23), (torch.float64, 2**-52)],
)
def test_constant_is_judged_at_the_precision_of_the_input(dtype, eps):
    rounded = torch.ones(1, 8, 5, dtype=dtype)
    rounded[0, -1] += eps
    differing = torch.ones(1, 8, 5, dtype=dtype)
    differing[0, -1] += 2 * eps
    assert constant_layers(rounded).tolist() == [True]
    assert constant_layers(differing).tolist() == [False]


def test_an_outlier_dimension_hides_no_variation():
    X_LND = np.random.default_rng(0).standard_normal((1, 8, 5)).astype(np.float32)
    X_LND[..., 0] = 1e9
    assert constant_layers(X_LND).tolist() == [False]


def test_equidistant_states_have_no_debiased_value():
    """The U-centred Gram of a simplex is zero; its biased CKA with itself, rotated, is 1."""
    biased, debiased = cka_matrix(np.stack([np.eye(6), 2 * np.eye(6)[::-1]]), debiased="both")
    np.testing.assert_allclose(biased, 1, rtol=1e-14)
    assert np.isnan(debiased).all()


def test_cka_refuses_too_few_examples_and_a_bad_tile():
    with pytest.raises(ValueError, match="at least 4 examples, got 3"):
        cka_matrix(np.random.default_rng(0).standard_normal((2, 3, 5)), debiased=True)
    with pytest.raises(ValueError, match="tile must be at least 1, got 0"):
        cka_matrix(drifting_states(0), tile=0)
