"""Ranks and neighbours where values that differ by rounding alone are ties.

Distances that are equal in exact arithmetic come out of a matrix product unequal by its rounding, and would be ranked by
it. So neighbours in ascending order that are no farther apart than `tolerance` are one tie, and so is a chain of such.

Shape suffixes: P values, N examples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raysweep.numerics.gram import Array


def tied_ranks(values_P: Array, tolerance: float) -> Array:
    """Ranks from 1 [P], ascending; ties share the mean of their ranks (as Spearman's coefficient takes them)."""
    order_P = np.argsort(values_P, kind="stable")
    starts = np.flatnonzero(np.diff(values_P[order_P], prepend=-np.inf) > tolerance)
    lengths = np.diff(starts, append=len(values_P))
    ranks_P = np.empty(len(values_P))
    ranks_P[order_P] = np.repeat(starts + (lengths + 1) / 2, lengths)
    return ranks_P


def nearest(likeness_NN: Array, k: int, tolerance: float) -> NDArray[np.intp] | None:
    """The k examples that are most like each [N, k], itself left out; of ties, those that come first among the examples.

    None where to every example all others are tied: nothing then tells who is near.
    """
    likeness_NN = likeness_NN.copy()
    np.fill_diagonal(likeness_NN, -np.inf)
    order_NN = np.argsort(-likeness_NN, axis=1, kind="stable")
    fall_NN = -np.diff(np.take_along_axis(likeness_NN, order_NN, axis=1), axis=1)
    tie_NN = np.zeros(likeness_NN.shape, dtype=np.intp)  # the number of the tie that each example belongs to
    np.put_along_axis(tie_NN, order_NN[:, 1:], np.cumsum(fall_NN > tolerance, axis=1), axis=1)
    np.put_along_axis(tie_NN, order_NN[:, :1], 0, axis=1)
    if tie_NN.max() == 1:  # 0: all the others; 1: the example itself, infinitely far
        return None
    return np.argsort(tie_NN, axis=1, kind="stable")[:, :k]
