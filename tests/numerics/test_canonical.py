"""What is particular to the canonical correlations: the cut, the examples they need, and full CCA's invariance."""

import numpy as np
import pytest
from hypothesis import given
from plain_similarity import drifting_states, few, seeds

from raysweep.numerics.measures.registry import Parameters, compare, similarity


def stretched(X_ND, rng):
    return X_ND @ rng.uniform(-1, 1, (X_ND.shape[1],) * 2) + X_ND @ np.diag(rng.uniform(2, 9, X_ND.shape[1]))


@few
@given(seed=seeds)
def test_without_a_cut_svcca_is_blind_to_invertible_linear_maps_and_pwcca_to_those_of_the_column(seed):
    X_LND, rng = drifting_states(seed, 2, 30, 4), np.random.default_rng([seed, 1])
    moved = [X_LND[0], stretched(X_LND[1], rng)]
    for metric in ("svcca", "pwcca"):
        still = similarity(X_LND, metric, variance=1.0)
        changed = similarity(moved, metric, variance=1.0)
        np.testing.assert_allclose(changed[0, 1], still[0, 1], rtol=0, atol=1e-7)
    assert abs(changed[1, 0] - still[1, 0]) > 1e-9


def test_the_cut_keeps_the_fewest_components_that_hold_the_share():
    """Variances 8 : 1 : 1 along orthogonal axes; the first axis is shared, the others are not."""
    H = np.array([[1, 1, 1, 1, 1, 1, 1, 1], [1, -1, 1, -1, 1, -1, 1, -1], [1, 1, -1, -1, 1, 1, -1, -1]]).T
    H = np.column_stack([H, H[:, 1] * H[:, 2], np.repeat([1, -1], 4)])[:, 1:]  # four orthogonal contrasts of 8 examples
    first, other = H[:, :2] * [3, 1], H[:, [0, 2]] * [3, 1]
    for variance, expected in ((0.5, 1.0), (0.9, 1.0), (0.9 + 1e-9, 0.5), (1.0, 0.5)):
        assert similarity([first, other], "svcca", variance=variance)[0, 1] == pytest.approx(expected, abs=1e-12)
    assert similarity([first, other], "cca_top_k", components=1)[0, 1] == pytest.approx(1, abs=1e-12)
    assert similarity([first, other], "cca_top_k", components=2)[0, 1] == pytest.approx(0.5, abs=1e-12)
    # α is 3·8 along the shared axis and 1·8 along the other, in units of h
    assert similarity([first, other], "pwcca", variance=1.0)[0, 1] == pytest.approx(3 / 4, abs=1e-12)


def test_a_layer_is_nan_where_correlations_of_1_are_forced_and_only_there():
    X_LND = np.random.default_rng(0).standard_normal((2, 12, 20))
    X_LND[0, :, 3:] = 0  # 3 components and 11 in the 11 dimensions of 12 centred examples
    found = compare(X_LND, "svcca", parameters=Parameters(variance=1.0))
    assert np.isnan(found.values).tolist() == [[False, True], [True, True]]
    assert found.reasons[0, 1] == (
        "so many components hold the asked share of the two layers' variance that they share directions whatever the "
        "states, for there are only 12 examples; give more, or ask for a smaller share"
    )


def test_a_layer_with_fewer_components_than_asked_for_is_nan():
    X_LND = np.random.default_rng(0).standard_normal((2, 12, 6))
    X_LND[1, :, 2:] = X_LND[1, :, :1]
    found = compare(X_LND, "cca_top_k", parameters=Parameters(components=4))
    assert np.isnan(found.values).tolist() == [[False, True], [True, True]]
    assert found.reasons[1, 1] == "the states vary in fewer directions at layer 1 (2) than the 4 components asked for"


def test_independent_states_are_no_more_alike_than_chance():
    X_LND = np.random.default_rng(0).standard_normal((2, 4000, 3))
    assert similarity(X_LND, "svcca")[0, 1] < 0.05
    assert similarity(X_LND, "procrustes")[0, 1] < 0.05
    wide = np.random.default_rng(0).standard_normal((2, 20, 8000))
    assert similarity(wide, "procrustes")[0, 1] > 0.9, "few examples against the width"
