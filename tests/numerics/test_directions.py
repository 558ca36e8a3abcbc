"""What is particular to the cosine and the angles: small and straight angles, extreme norms, chunks of examples."""

import numpy as np
import pytest
from plain_similarity import drifting_states

from raysweep.numerics.measures import directions
from raysweep.numerics.measures.registry import similarity


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-9, 1e-4, 1.0, np.pi - 1e-9, np.pi])
def test_angles_keep_their_digits(angle):
    """Two examples in a plane, turned by ±angle; the cosine of 1e-9 is 1 to the last digit."""
    states = np.array([[1.0, 0.0], [0.0, 2.0]])
    turned = np.array([[np.cos(angle), np.sin(angle)], [3 * np.sin(angle), 3 * np.cos(angle)]])
    found = similarity([states, turned], "angular")
    np.testing.assert_allclose(found[0, 1] * np.pi, angle, rtol=1e-6, atol=1e-15)
    assert found[0, 0] == 0


def test_block_influence_is_one_minus_the_cosine():
    """Orthogonal states, opposed states, and the same with another norm: 1, 2 and 0."""
    states = np.array([[1.0, 0.0], [0.0, 1.0]])
    layers = [states, states[:, ::-1], -states, 7 * states]
    np.testing.assert_allclose(similarity(layers, "block_influence")[0], [0, 1, 2, 0], atol=1e-15)
    np.testing.assert_allclose(similarity(layers, "cosine")[0], [1, 0, -1, 1], atol=1e-15)


@pytest.mark.parametrize("factor", [1e-200, 1e200])
@pytest.mark.parametrize("metric", ["cosine", "angular", "mutual_knn"])
def test_no_square_over_or_underflows(metric, factor):
    X_LND = drifting_states(0, 3, 14, 5)
    np.testing.assert_allclose(similarity(X_LND * factor, metric), similarity(X_LND, metric), rtol=0, atol=1e-12)


@pytest.mark.parametrize("metric", ["cosine", "angular"])
def test_the_chunk_of_examples_changes_nothing(metric, monkeypatch):
    X_LND = drifting_states(0, 4, 40, 5)
    whole = similarity(X_LND, metric), similarity(X_LND[:2], metric, X_LND[1:])
    monkeypatch.setattr(directions, "_CHUNK", 7 * 5 * 4)
    np.testing.assert_allclose(similarity(X_LND, metric), whole[0], rtol=0, atol=1e-14)
    np.testing.assert_allclose(similarity(X_LND[:2], metric, X_LND[1:]), whole[1], rtol=0, atol=1e-14)
