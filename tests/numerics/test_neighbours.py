"""What is particular to distances and neighbours: ties, states that are equally far apart, zero states, tiles."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from plain_measures import plain_measure
from plain_similarity import drifting_states, few, seeds

from raysweep.numerics.measures import neighbours
from raysweep.numerics.measures.registry import Parameters, compare, similarity
from raysweep.numerics.measures.ties import nearest, tied_ranks


@few
@given(values=st.lists(st.integers(-4, 4), min_size=1, max_size=30), seed=seeds)
def test_ranks_share_ties_as_scipy_has_them_and_rounding_breaks_none(values, seed):
    noise = np.random.default_rng(seed).uniform(-1e-12, 1e-12, len(values))
    np.testing.assert_array_equal(tied_ranks(values + noise, 1e-10), scipy.stats.rankdata(values))
    np.testing.assert_array_equal(tied_ranks(np.array(values, dtype=float), 0.0), scipy.stats.rankdata(values))


@few
@given(seed=seeds, k=st.integers(1, 7))
def test_of_examples_equally_near_the_first_count(seed, k):
    rng = np.random.default_rng(seed)
    likeness = rng.integers(0, 3, (9, 9)).astype(float)
    found = nearest(likeness + rng.uniform(-1e-12, 1e-12, (9, 9)), k, 1e-10)
    for i, places in enumerate(found):
        others = [j for j in range(9) if j != i]
        assert places.tolist() == sorted(others, key=lambda j: (-likeness[i, j], j))[:k]


def test_where_all_others_are_tied_there_are_no_neighbours():
    assert nearest(np.eye(5), 2, 1e-10) is None
    nearly = np.eye(5)
    nearly[3, 4] = 0.5
    assert nearest(nearly, 2, 1e-10)[3].tolist() == [4, 0]


@few
@given(seed=seeds)
def test_equal_distances_are_ties_whatever_the_rounding(seed):
    """Corners of a cube, turned: their 28 distances take three values."""
    cube = np.array(list(np.ndindex(2, 2, 2)), dtype=float)
    turn, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))
    other = np.random.default_rng([seed, 1]).standard_normal((8, 3))
    found = similarity([cube @ turn, other], "rsa")[0, 1]
    assert found == pytest.approx(plain_measure("rsa", cube, other), abs=1e-12)


def test_states_that_are_equally_far_apart_have_no_order():
    layers = [np.eye(6), np.random.default_rng(0).standard_normal((6, 3))]
    two = Parameters(neighbours=2)
    rsa, knn = compare(layers, "rsa"), compare(layers, "mutual_knn", parameters=two)
    assert np.isnan(rsa.values).tolist() == np.isnan(knn.values).tolist() == [[True, True], [True, False]]
    assert rsa.reasons[0, 1] == "all states are equally far apart at layer 0, so their distances have no order"
    assert knn.reasons[0, 1] == "all states are equally near to each other at layer 0, so none has nearest neighbours"
    assert compare(layers, "cknna", parameters=two).reasons == knn.reasons


@pytest.mark.parametrize("metric", ["mutual_knn", "cknna", "cosine", "angular", "block_influence"])
def test_a_zero_state_has_no_direction(metric):
    X_LND = drifting_states(0, 3, 12, 5)
    X_LND[1, 7] = 0
    X_LND[1, 9] = 0
    found = compare(X_LND, metric)
    assert np.isnan(found.values).tolist() == [[False, True, False], [True, True, True], [False, True, False]]
    assert found.reasons[1, 2] == "example 7 has the zero state at layer 1, which has no direction"


def test_the_tile_changes_nothing(monkeypatch):
    X_LND = drifting_states(0, 4, 40, 5)
    whole = similarity(X_LND, "mutual_knn")
    monkeypatch.setattr(neighbours, "_TILE", 7 * 40 * 4)
    np.testing.assert_array_equal(similarity(X_LND, "mutual_knn"), whole)


def test_independent_states_share_as_many_neighbours_as_chance_has_it():
    found = similarity(np.random.default_rng(0).standard_normal((2, 1000, 5)), "mutual_knn", neighbours=100)
    assert found[0, 1] == pytest.approx(100 / 999, abs=0.01)
