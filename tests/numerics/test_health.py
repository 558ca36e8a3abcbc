"""Layer health in closed form, and against plain formulas."""

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from plain_similarity import few, plain_cka, plain_gram, seeds

from raysweep.numerics.gram import read_layers
from raysweep.numerics.health import health, outlier_dimensions, outliers_anywhere, sink_ratio


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
    np.testing.assert_allclose(figures["top_component_weight"], 16**2 / (16**2 + 9**2))
    np.testing.assert_allclose(figures["top_dimension_share"], [16 / 25, 1 / 2])
    np.testing.assert_allclose(figures["n_over_d"], 4 / (2 + padding))
    np.testing.assert_allclose(figures["effective_examples"], 4)  # all are 5 away from the mean
    np.testing.assert_allclose(figures["participation_ratio"], 25**2 / (9**2 + 16**2))
    np.testing.assert_allclose(figures["cka_floor"], 25**2 / (9**2 + 16**2) / 3)
    np.testing.assert_allclose(figures["cka_next"], [1, np.nan])


def test_health_of_constant_layers():
    figures = health([np.ones((4, 3)), np.zeros((4, 3))])
    np.testing.assert_array_equal(figures["mean_to_rms"], [1, np.nan])
    for measure in ("top_component_share", "top_dimension_share", "participation_ratio", "cka_floor", "cka_next"):
        assert np.isnan(figures[measure]).all()
    np.testing.assert_array_equal(figures["massive_ratio"], [1, np.nan])
    np.testing.assert_array_equal(figures["longest_ratio"], [1, np.nan])


def test_few_examples_and_large_values_are_found():
    X_ND = np.random.default_rng(0).standard_normal((40, 12))
    X_ND[31, 5] = -2000.0
    X_ND[7] *= 3
    figures = {name: values[0] for name, values in health([X_ND]).items()}
    assert (figures["massive_example"], figures["massive_dimension"]) == (31, 5)
    assert figures["massive_ratio"] == pytest.approx(2000 / np.median(np.abs(X_ND)))
    norms_N = np.linalg.norm(X_ND, axis=1)
    assert figures["longest_ratio"] == pytest.approx(norms_N[31] / np.median(norms_N))
    assert figures["longest_example"] == 31
    distance_N = ((X_ND - X_ND.mean(0)) ** 2).sum(1)
    assert figures["effective_examples"] == pytest.approx(distance_N.sum() ** 2 / (distance_N**2).sum())
    assert figures["effective_examples"] < 1.1


@few
@given(seeds)
def test_the_floor_is_the_mean_over_random_matchings(seed):
    rng = np.random.default_rng(seed)
    X_ND = rng.standard_normal((5, 3)) * [1, 2, 3]
    K_NN = plain_gram(X_ND, "linear")
    matched = [plain_cka(K_NN, K_NN[np.ix_(order, order)]) for order in permutations(range(5))]
    assert health([X_ND])["cka_floor"][0] == pytest.approx(np.mean(matched), abs=1e-12)


@pytest.mark.parametrize(("n", "d"), [(60, 500), (500, 60)])
def test_the_floor_of_gaussian_states_is_about_d_over_n_plus_d(n, d):
    X_ND = np.random.default_rng(1).standard_normal((n, d))
    assert health([X_ND])["cka_floor"][0] == pytest.approx(d / (n + d), rel=0.05)


@pytest.mark.parametrize(("n", "d"), [(30, 80), (80, 30)])
def test_cka_with_the_next_layer_with_and_without_outlier_dimensions(n, d):
    rng = np.random.default_rng(2)
    X_LND = rng.standard_normal((4, n, d)).cumsum(axis=0)
    X_LND[1:, :, [3, 9]] = 60 * X_LND[1, :, [3, 9]].T  # the same two large ones from layer 1 on
    figures = health(X_LND)
    assert figures["outlier_dimensions"].tolist() == [0, 2, 2, 2]
    others = np.delete(X_LND, [3, 9], axis=2)
    for name, layers in (("cka_next", X_LND), ("cka_next_trimmed", others)):
        grams = [plain_gram(X_ND, "linear") for X_ND in layers]
        expected = [plain_cka(grams[layer], grams[layer + 1]) for layer in range(3)]
        np.testing.assert_allclose(figures[name], [*expected, np.nan], atol=1e-12)
    assert figures["cka_next"][1] > 0.999 > figures["cka_next_trimmed"][1]
    masks = outliers_anywhere(read_layers(X_LND))
    assert [np.flatnonzero(mask_D).tolist() for mask_D in masks] == [[3, 9]] * 4


def test_what_rounding_leaves_of_a_constant_layer_is_no_outlier_anywhere():
    X_LND = np.random.default_rng(4).standard_normal((2, 20, 6)).astype(np.float32)
    X_LND[0] = [1, 1, 1, 1, 1, 1000]
    X_LND[0, ::2] = np.nextafter(
        X_LND[0, ::2], np.float32(2000)
    )  # a unit in the last place, the largest in the last dimension
    grams = read_layers(X_LND)
    assert [gram.constant for gram in grams] == [True, False]
    assert not np.any(outliers_anywhere(grams))
    assert health(X_LND)["outlier_dimensions"].tolist() == [0, 0]


def test_layers_of_unlike_width_lose_their_own_outliers():
    rng = np.random.default_rng(3)
    layers = [rng.standard_normal((20, 6)), rng.standard_normal((20, 9))]
    layers[1][:, 8] *= 100
    masks = outliers_anywhere(read_layers(layers))
    assert [np.flatnonzero(mask_D).tolist() for mask_D in masks] == [[], [8]]
    expected = plain_cka(plain_gram(layers[0], "linear"), plain_gram(layers[1][:, :8], "linear"))
    np.testing.assert_allclose(health(layers)["cka_next_trimmed"], [expected, np.nan], atol=1e-12)


def test_outlier_dimensions_by_hand():
    signs_N = np.array([1.0, -1, 1, -1])
    assert outlier_dimensions(np.outer(signs_N, [1, 1, 1, 6, 6.01, 0])).tolist() == [False] * 4 + [True, False]
    assert outlier_dimensions(np.outer(signs_N, [0, 0, 0, 1])).tolist() == [False] * 4  # none varies but the one
    assert outlier_dimensions(np.zeros((4, 2))).tolist() == [False] * 2


def test_sinks_by_hand():
    first = np.array([[[3.0, 4]] * 3, [[30.0, 40]] * 3])
    pooled = np.array([[[0.0, 5], [0, 1], [2, 0]], [[0.0, 5], [0, 5], [0, 0]]])
    np.testing.assert_array_equal(sink_ratio(first, pooled), [2.5, np.nan])
