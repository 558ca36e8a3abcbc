"""Stretches of layers that are alike, against trying every way to cut."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_similarity import few, seeds

from raysweep.numerics.segments import segment_starts


def plain_starts(S_LL, penalty):
    """The cheapest of all 2^(L−1) segmentations."""
    layers = len(S_LL)

    def cost(starts):
        bounds = itertools.pairwise([0, *starts, layers])
        parts = [S_LL[a:b, a:b] for a, b in bounds]
        return sum(np.trace(part) - part.sum() / len(part) + penalty for part in parts)

    ways = (way for cuts in range(layers) for way in itertools.combinations(range(1, layers), cuts))
    return min(ways, key=cost)


@few
@given(seeds, st.integers(2, 9), st.floats(0.05, 5))
def test_the_cheapest_cut_is_found(seed, layers, penalty):
    X_LD = np.random.default_rng(seed).standard_normal((layers, 3)).cumsum(axis=0)
    assert tuple(segment_starts(X_LD @ X_LD.T, penalty)) == plain_starts(X_LD @ X_LD.T, penalty)


def blocks(sizes, noise=0.1, seed=0):
    """Unit vectors around one centre a block, as inner products."""
    rng = np.random.default_rng(seed)
    X_LD = np.repeat(np.eye(len(sizes), 20), sizes, axis=0) + noise * rng.standard_normal((sum(sizes), 20))
    X_LD /= np.linalg.norm(X_LD, axis=1, keepdims=True)
    return X_LD @ X_LD.T


def test_blocks_are_found_with_the_usual_penalty():
    S_LL = blocks([4, 5, 3])
    steps = 1 - S_LL.diagonal(1)
    assert segment_starts(S_LL).tolist() == [4, 9]
    assert tuple(segment_starts(S_LL)) == plain_starts(S_LL, 2 * np.median(steps) * math.log(12))


def test_nothing_to_cut():
    assert segment_starts(np.ones((6, 6))).tolist() == []
    assert segment_starts(np.eye(6)).tolist() == []  # every step is a usual one
    assert segment_starts([[1.0]]).tolist() == []
    assert segment_starts(np.full((3, 3), np.nan)).tolist() == []


def test_layers_without_a_similarity_are_left_out():
    S_LL = np.full((14, 14), np.nan)
    known = [1, *range(3, 14)]
    S_LL[np.ix_(known, known)] = blocks([4, 5, 3])
    assert segment_starts(S_LL).tolist() == [6, 11]


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"square \[L, L\]; got shape \(2, 3\)"):
        segment_starts(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="a penalty is positive; got 0"):
        segment_starts(np.eye(3), 0)
