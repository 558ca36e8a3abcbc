"""Measures of how far each example's state turns from layer to layer: cosine, angular distance, block influence.

They compare coordinates, so the layers must have one width and live in one space, as a residual stream's do.

Shape suffixes: L layers, M of the second model, N examples, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from raysweep.numerics.gram import Array, States
from raysweep.numerics.measures.layers import Compared, Layer, Models, read_models

_CHUNK = 1 << 23  # numbers of all layers' unit states held at a time


def cosine(X_LND: Iterable[States], Y_MND: Iterable[States] | None = None) -> Compared:
    """Mean over the examples of the cosine between their states at two layers.

    In [−1, 1], symmetric, 1 of a layer with itself; unchanged by a factor of a layer, and by one rotation of all layers;
    not by a rotation or a shift of one. NaN for a layer with a zero state. Raises ValueError for unequal widths.
    """
    return _mean_over_examples(
        read_models(X_LND, Y_MND), lambda x_NLD, y_NMD: (x_NLD @ y_NMD.transpose(0, 2, 1)).sum(axis=0)
    )


def block_influence(X_LND: Iterable[States], Y_MND: Iterable[States] | None = None) -> Compared:
    """1 − `cosine`: what the layers in between add to a state, of ShortGPT (Men et al., 2024), for every two layers.

    In [0, 2], symmetric, 0 of a layer with itself; the larger the farther apart. As `cosine` in all else.
    """
    found = cosine(X_LND, Y_MND)
    return Compared(1 - found.values, found.reasons)


def angular(X_LND: Iterable[States], Y_MND: Iterable[States] | None = None) -> Compared:
    """Mean over the examples of the angle between their states at two layers, divided by π.

    The distance by which Gromov et al. (2024) choose the layers to leave out. In [0, 1], symmetric, 0 of a layer
    with itself; the larger the farther apart. As `cosine` in all else. The angle is 2·atan2(‖x − y‖, ‖x + y‖) of unit states
    (Kahan), which keeps its digits where the arc cosine loses half of them.
    """

    def summed(x_NLD: Array, y_NMD: Array) -> Array:
        total_LM = np.empty((x_NLD.shape[1], y_NMD.shape[1]))
        for i in range(x_NLD.shape[1]):
            for j in range(y_NMD.shape[1]):
                if x_NLD is y_NMD and j < i:
                    total_LM[i, j] = total_LM[j, i]
                    continue
                apart_N, together_N = (
                    _norms(side_ND) for side_ND in (x_NLD[:, i] - y_NMD[:, j], x_NLD[:, i] + y_NMD[:, j])
                )
                total_LM[i, j] = 2 * np.arctan2(apart_N, together_N).sum() / np.pi
        return total_LM

    return _mean_over_examples(read_models(X_LND, Y_MND), summed)


def _mean_over_examples(models: Models, summed: Callable[[Array, Array], Array]) -> Compared:
    """`summed` of unit states [n, L, D] and [n, M, D], over chunks of n examples, divided by their number."""
    for side, layers in zip(("", " of the other model"), models.sides, strict=True):
        for place, layer in enumerate(layers):
            if layer.width != models.first[0].width:
                raise ValueError(
                    f"layer {place}{side} has width {layer.width}, layer 0 has {models.first[0].width}: states of "
                    "unequal width have no cosine; take a measure that compares distances, such as cka_linear"
                )

    def matrix(first: list[Layer], second: list[Layer] | None) -> Array:
        total_LM = np.zeros((len(first), len(first if second is None else second)))
        step = max(1, _CHUNK // (first[0].width * (len(first) + len(second or ()))))
        for start in range(0, models.examples, step):
            rows = slice(start, start + step)
            x_NLD = _units(first, rows)
            total_LM += summed(x_NLD, x_NLD if second is None else _units(second, rows))
        return total_LM / models.examples

    return models.views(lambda layer: layer.zero_state() or layer).compared(matrix)


def _units(layers: list[Layer], rows: slice) -> Array:
    return np.stack([layer.directions(rows) for layer in layers], axis=1)


def _norms(X_ND: Array) -> Array:
    norms_N: Array = np.sqrt(np.einsum("nd,nd->n", X_ND, X_ND))
    return norms_N
