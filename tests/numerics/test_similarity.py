"""CKA against Kornblith's formulas written out, its invariances, and what is derived from it along the depth."""

import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raysweep.numerics.similarity import (
    change_points,
    cka_matrix,
    constant_layers,
    dynamics_resamples,
    health,
    local_dynamics,
)

KERNELS = ("linear", "rbf")
seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=15, deadline=None)


def drifting_states(seed, layers=4, examples=11, width=6):
    """Layers that change step by step, as a residual stream does."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((layers, examples, width)).cumsum(axis=0)


# Plain implementations: one pair of whole Gram matrices at a time.


def plain_gram(X_ND, kernel, median=None):
    if kernel == "linear":
        return X_ND @ X_ND.T
    distances_NN = np.array([[((a - b) ** 2).sum() for b in X_ND] for a in X_ND])
    return np.exp(-distances_NN / (2 * (median or plain_lower_median(distances_NN))))


def plain_lower_median(distances_NN):
    entries = sorted(distance for distance in distances_NN.ravel() if distance != 0)
    return entries[(len(entries) - 1) // 2]


def plain_cka(K_NN, L_NN):
    n = len(K_NN)
    H = np.eye(n) - np.ones((n, n)) / n

    def hsic(A_NN, B_NN):
        return np.trace(A_NN @ H @ B_NN @ H) / (n - 1) ** 2

    return hsic(K_NN, L_NN) / math.sqrt(hsic(K_NN, K_NN) * hsic(L_NN, L_NN))


def plain_debiased_cka(K_NN, L_NN):
    n = len(K_NN)

    def u_centred(A_NN):
        A_NN = A_NN - np.diag(np.diag(A_NN))
        U_NN = np.zeros((n, n))
        for i in range(n):
            for j in range(n):
                if i != j:
                    U_NN[i, j] = A_NN[i, j] - A_NN[i].sum() / (n - 2) - A_NN[:, j].sum() / (n - 2)
                    U_NN[i, j] += A_NN.sum() / ((n - 1) * (n - 2))
        return U_NN

    U_NN, V_NN = u_centred(K_NN), u_centred(L_NN)
    return (U_NN * V_NN).sum() / math.sqrt((U_NN**2).sum() * (V_NN**2).sum())


def plain_matrix(X_LND, kernel, pair=plain_cka):
    grams = [plain_gram(np.asarray(X_ND, dtype=np.float64), kernel) for X_ND in X_LND]
    return np.array([[pair(K_NN, L_NN) for L_NN in grams] for K_NN in grams])


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


def test_local_dynamics_by_hand():
    S_LL = [[1.0, 0.8, 0.2, 0.1], [0.8, 1.0, 0.5, 0.3], [0.2, 0.5, 1.0, 0.6], [0.1, 0.3, 0.6, 1.0]]
    np.testing.assert_allclose(local_dynamics(S_LL, 1), [1, 1, 1, 1])
    np.testing.assert_allclose(local_dynamics(S_LL), [1.8 / 2, 2.3 / 3, 2.1 / 3, 1.6 / 2])
    np.testing.assert_allclose(local_dynamics(S_LL, 5), [2.0 / 3, 2.6 / 4, 2.3 / 4, 1.9 / 3])
    np.testing.assert_allclose(local_dynamics(S_LL, 99), [2.1 / 4, 2.6 / 4, 2.3 / 4, 2.0 / 4])


def test_local_dynamics_carries_nan_to_neighbours_only():
    S_LL = np.ones((5, 5))
    S_LL[1] = S_LL[:, 1] = np.nan
    np.testing.assert_array_equal(np.isnan(local_dynamics(S_LL)), [True, True, True, False, False])


@pytest.mark.parametrize("neighbourhood", [0, 2, -1])
def test_neighbourhood_is_odd(neighbourhood):
    message = f"odd number of layers, 1 or more; got {neighbourhood}"
    with pytest.raises(ValueError, match=message):
        local_dynamics(np.eye(3), neighbourhood)
    with pytest.raises(ValueError, match=message):
        dynamics_resamples(drifting_states(0), np.ones((1, 11), dtype=bool), neighbourhood)


def test_local_dynamics_refuses_what_is_not_square():
    with pytest.raises(ValueError, match=r"square \[L, L\]; got shape \(2, 3\)"):
        local_dynamics(np.zeros((2, 3)))


def test_change_points_by_hand():
    delta_L = [0.9, 0.3, 0.5, 0.3, np.nan, 0.3]
    assert change_points(delta_L).tolist() == [1]
    assert change_points(delta_L, 2).tolist() == [1, 3]
    assert change_points(delta_L, 4).tolist() == [1, 2, 3, 5]
    assert change_points(delta_L, 6).tolist() == [0, 1, 2, 3, 5]


@pytest.mark.parametrize(("layers", "k"), [(1, 1), (2, 1), (8, 2), (24, 5), (32, 6)])
def test_change_points_are_a_fifth_of_the_layers(layers, k):
    assert change_points(-np.arange(layers)).tolist() == list(range(layers - k, layers))


@pytest.mark.parametrize("k", [0, 4])
def test_change_points_refuses_k_out_of_range(k):
    with pytest.raises(ValueError, match=f"from 1 to the number of layers, 3; got {k}"):
        change_points([1.0, 2.0, 3.0], k)


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


def orthogonal_states(padding=0):
    """Deviations of ±3 and ±4 along two axes around the mean (5, 12): variances 9 and 16, mean norm 13."""
    signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])
    return np.pad(signs * [3.0, 4.0] + [5.0, 12.0], [(0, 0), (0, padding)])


@pytest.mark.parametrize("padding", [0, 4])
def test_health_in_closed_form(padding):
    turn = np.eye(2 + padding)
    turn[:2, :2] = np.array([[1, -1], [1, 1]]) / math.sqrt(2)
    figures = health([orthogonal_states(padding), orthogonal_states(padding) @ turn])
    np.testing.assert_allclose(figures["mean_to_rms"], 13 / math.sqrt(13**2 + 5**2))
    np.testing.assert_allclose(figures["top_component_share"], 16 / 25)
    np.testing.assert_allclose(figures["top_dimension_share"], [16 / 25, 1 / 2])
    np.testing.assert_allclose(figures["n_over_d"], 4 / (2 + padding))


def test_health_of_constant_layers():
    figures = health([np.ones((4, 3)), np.zeros((4, 3))])
    np.testing.assert_array_equal(figures["mean_to_rms"], [1, np.nan])
    assert np.isnan(figures["top_component_share"]).all()
    assert np.isnan(figures["top_dimension_share"]).all()
