"""δ and change points by hand."""

import numpy as np
import pytest
from plain_similarity import (
    drifting_states,
)

from raysweep.numerics.dynamics import change_points, local_dynamics
from raysweep.numerics.subsets import dynamics_resamples


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


def test_local_dynamics_without_the_diagonal_by_hand():
    S_LL = [[1.0, 0.8, 0.2, 0.1], [0.8, 1.0, 0.5, 0.3], [0.2, 0.5, 1.0, 0.6], [0.1, 0.3, 0.6, 1.0]]
    np.testing.assert_allclose(local_dynamics(S_LL, diagonal=False), [0.8, 1.3 / 2, 1.1 / 2, 0.6])
    np.testing.assert_allclose(local_dynamics(S_LL, 5, diagonal=False), [1.0 / 2, 1.6 / 3, 1.3 / 3, 0.9 / 2])
    np.testing.assert_array_equal(local_dynamics([[1.0]], diagonal=False), [np.nan])
    with pytest.raises(ValueError, match="without the diagonal give 3 or more"):
        local_dynamics(S_LL, 1, diagonal=False)


def test_several_neighbourhoods_at_once():
    S_LL = np.corrcoef(drifting_states(3)[:, :, 0])
    found = local_dynamics(S_LL, [1, 3, 5], diagonal=True)
    np.testing.assert_array_equal(found, [local_dynamics(S_LL, n) for n in (1, 3, 5)])
