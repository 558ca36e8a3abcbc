"""Choices of layers and their agreement, by hand and pair by pair."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_similarity import few, seeds

from raysweep.numerics.dynamics import change_points
from raysweep.numerics.selection import agreement, chosen_layers, common_layers


def mask(layers, *sets):
    return np.array([[layer in chosen for layer in range(layers)] for chosen in sets])


@few
@given(seeds, st.integers(1, 7))
def test_choices_are_those_of_change_points_row_by_row(seed, k):
    rng = np.random.default_rng(seed)
    delta_RL = rng.integers(0, 4, (5, 7)).astype(float)  # with ties
    delta_RL[rng.random((5, 7)) < 0.3] = np.nan
    found = chosen_layers(delta_RL, k)
    assert [np.flatnonzero(row).tolist() for row in found] == [change_points(row, k).tolist() for row in delta_RL]


def test_a_fifth_is_chosen_by_default():
    assert chosen_layers(np.arange(24.0)).sum() == 5
    with pytest.raises(ValueError, match="from 1 to the number of layers, 3; got 4"):
        chosen_layers(np.arange(3.0), 4)


@few
@given(seeds, st.integers(2, 5), st.integers(1, 6))
def test_agreement_is_the_mean_of_kuncheva_s_index_over_pairs(seed, choices, k):
    rng = np.random.default_rng(seed)
    sets = [set(rng.choice(7, k, replace=False).tolist()) for _ in range(choices)]
    pairs = [len(a & b) for a, b in itertools.combinations(sets, 2)]
    expected = np.mean([(common - k**2 / 7) / (k - k**2 / 7) for common in pairs])
    assert agreement(mask(7, *sets)) == pytest.approx(expected, abs=1e-12)
    assert common_layers(mask(7, *sets)) == pytest.approx(np.mean(pairs))
    assert -1 / (choices - 1) - 1e-12 <= agreement(mask(7, *sets)) <= 1 + 1e-12


def test_agreement_by_hand():
    assert agreement(mask(10, {1, 2}, {1, 2})) == pytest.approx(1)
    assert agreement(mask(4, {0, 1}, {2, 3})) == pytest.approx(-1)
    assert np.isnan(agreement(mask(3, {0, 1, 2}, {0, 1, 2})))
    assert np.isnan(agreement(mask(3, set(), set())))
    both = np.stack([mask(10, {1, 2}, {1, 2}), mask(10, {1, 2}, {2, 3})])
    np.testing.assert_allclose(agreement(both), [1, (1 - 0.4) / (2 - 0.4)])
    np.testing.assert_allclose(common_layers(both), [2, 1])


def test_random_choices_do_not_agree():
    rng = np.random.default_rng(0)
    chosen = chosen_layers(rng.standard_normal((4000, 4, 24)))
    assert agreement(chosen).mean() == pytest.approx(0, abs=0.01)


def test_one_choice_agrees_with_nothing():
    with pytest.raises(ValueError, match="two or more choices are compared"):
        agreement(mask(5, {1}))
