"""Layer health in closed form."""

import math

import numpy as np
import pytest

from raysweep.numerics.health import health


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
