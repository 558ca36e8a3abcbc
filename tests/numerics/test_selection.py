"""Choices of layers and their agreement, by hand and pair by pair."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_similarity import few, seeds

from raysweep.numerics.dynamics import change_points, chosen_layers
from raysweep.numerics.selection import Choices, agreement, agreement_between, common_layers


def mask(layers, *sets):
    return np.array([[layer in chosen for layer in range(layers)] for chosen in sets])


@few
@given(seeds, st.integers(1, 7))
def test_the_smallest_are_chosen_row_by_row_the_first_of_ties_and_never_nan(seed, k):
    rng = np.random.default_rng(seed)
    delta_RL = rng.integers(0, 4, (5, 7)).astype(float)  # with ties
    delta_RL[rng.random((5, 7)) < 0.3] = np.nan
    known = [[(value, layer) for layer, value in enumerate(row) if not np.isnan(value)] for row in delta_RL]
    layers = [sorted(layer for _, layer in sorted(row)[:k]) for row in known]
    assert [np.flatnonzero(row).tolist() for row in chosen_layers(delta_RL, k)] == layers
    assert [change_points(row, k).tolist() for row in delta_RL] == layers


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


def draws_of(layers, whole, **shares):
    """Choices of a data set: `a12=0.5` is a half of the resamples choosing layers 1 and 2."""
    sets = [set(map(int, name[1:])) for name in shares]
    return Choices(mask(layers, whole)[0], mask(layers, *sets), np.array(list(shares.values())))


def test_agreement_between_data_sets_by_hand():
    one, two = draws_of(6, {1, 2}, a12=0.5, a13=0.5), draws_of(6, {1, 3}, a13=1.0)
    found = agreement_between([one, two], draws=4000)
    assert (found.common, found.chance) == (1, pytest.approx(4 / 6))
    assert found.value == pytest.approx((1 - 4 / 6) / (2 - 4 / 6))
    assert (found.ci_low, found.ci_high) == pytest.approx((0.25, 1))
    # two draws of the first have 2 layers in common in a half of all cases, else 1; those of the second always 2
    assert found.repeated == pytest.approx(((1.5 - 4 / 6) / (2 - 4 / 6) + 1) / 2)
    assert agreement_between([one, two], draws=4000) == found


def test_the_interval_is_where_the_drawn_choices_agree():
    rng = np.random.default_rng(1)
    sets = []
    for _ in range(3):
        chosen = chosen_layers(np.arange(10) + 2 * rng.standard_normal((40, 10)), 3)
        distinct, counts = np.unique(chosen, axis=0, return_counts=True)
        sets.append(Choices(chosen[0], distinct, counts / 40))
    found = agreement_between(sets, draws=20_000)
    all_ways = [
        (agreement(np.stack(ways)), np.prod(shares))
        for ways, shares in zip(
            itertools.product(*(each.distinct for each in sets)),
            itertools.product(*(each.shares for each in sets)),
            strict=True,
        )
    ]
    values, weights = (np.array(column) for column in zip(*sorted(all_ways, key=lambda way: way[0]), strict=True))
    low, high = (values[np.searchsorted(np.cumsum(weights), tail)] for tail in (0.025, 0.975))
    assert (found.ci_low, found.ci_high) == pytest.approx((low, high), abs=0.1)  # its steps are that wide


def test_without_resamples_there_is_no_interval():
    bare = Choices(mask(6, {1, 2})[0], np.empty((0, 6), dtype=bool), np.empty(0))
    found = agreement_between([bare, draws_of(6, {1, 2}, a12=1.0)])
    assert found.value == 1
    assert np.isnan([found.ci_low, found.ci_high, found.repeated]).all()
