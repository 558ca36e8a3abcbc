"""Measures by how examples lie to each other: RSA by all distances, mutual k-NN and CKNNA by the nearest.

Shape suffixes: L layers, M of the second model, N examples, P pairs of examples.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raysweep.numerics.gram import Array, States
from raysweep.numerics.measures.layers import CONSTANT, Compared, Layer, Models, Undefined, read_models
from raysweep.numerics.measures.ties import nearest, tied_ranks

_EPS = float(np.finfo(np.float64).eps)
_TILE = 1 << 22  # numbers of all layers' tiles at a time


def rsa(X_LND: Iterable[States], Y_MND: Iterable[States] | None = None) -> Compared:
    """Spearman's ρ between two layers' Euclidean distances, over all pairs of examples.

    Representational similarity analysis (Kriegeskorte et al., 2008). In [−1, 1], symmetric, 1 of a layer with itself,
    about 0 of independent states; unchanged by a rotation, a common factor and a shift of a layer, and by anything that
    keeps the order of distances. Distances equal but for rounding share the mean of their ranks.

    Keeps N²/2 ranks a layer. NaN for a layer whose states are all equally far apart, and with fewer than 3 examples.
    """
    models = read_models(X_LND, Y_MND)
    if models.examples < 3:
        return models.nowhere(f"{models.examples} examples have one distance; ranks need 3 examples or more")
    pairs = np.triu_indices(models.examples, k=1)

    def ranks(layer: Layer) -> Array | Undefined:
        if layer.constant:
            return CONSTANT
        X_ND = layer.centred()
        norms_N = np.einsum("nd,nd->n", X_ND, X_ND)
        squared_P = (norms_N[:, None] + norms_N - 2 * (X_ND @ X_ND.T))[pairs]
        ranks_P = tied_ranks(squared_P, 16 * (layer.width + 2) * _EPS * float(norms_N.max()))
        ranks_P -= ranks_P.mean()
        norm = float(np.linalg.norm(ranks_P))
        if norm == 0:
            return Undefined("all states are equally far apart", ", so their distances have no order")
        return ranks_P / norm

    return models.views(ranks).compared(_inner_products)


def mutual_knn(X_LND: Iterable[States], Y_MND: Iterable[States] | None = None, *, neighbours: int) -> Compared:
    """Mean share of an example's `neighbours` nearest examples that two layers have in common.

    Huh et al. (2024). Nearest by the cosine of the states as they are, not centred; of examples equally near, but for
    rounding, the first count. In [0, 1], symmetric, 1 of a layer with itself, about k / (N − 1) of independent
    states; unchanged by a rotation and a common factor of a layer, not by a shift.

    NaN for a layer with a zero state, one where every example is equally near to all others, and where there are no more
    than `neighbours` other examples, for then all are neighbours.
    """
    models = read_models(X_LND, Y_MND)
    if too_few := _too_few(models, neighbours):
        return models.nowhere(too_few)

    def mask(layer: Layer) -> NDArray[np.bool_] | Undefined:
        near = _near(layer, neighbours)
        return near if isinstance(near, Undefined) else near.mask

    def shares(first: list[NDArray[np.bool_]], second: list[NDArray[np.bool_]] | None) -> Array:
        shared_LM = np.zeros((len(first), len(first if second is None else second)))
        step = max(1, _TILE // (models.examples * (len(first) + len(second or ()))))
        for start in range(0, models.examples, step):
            x_LP = _rows(first, slice(start, start + step))
            shared_LM += x_LP @ (x_LP if second is None else _rows(second, slice(start, start + step))).T
        return shared_LM / (models.examples * neighbours)

    return models.views(mask).compared(shares)


def cknna(X_LND: Iterable[States], Y_MND: Iterable[States] | None = None, *, neighbours: int) -> Compared:
    """CKA of the examples that are near each other in both layers: centred kernel nearest-neighbour alignment.

    Huh et al. (2024), by the formula of their appendix: A(x, y) = Σ α_ij k_ij l_ij / … normalised as
    A(x, y) / √(A(x, x) A(y, y)), where α_ij is 1 if j ≠ i is among the `neighbours` nearest examples to i in both layers,
    and k_ij, l_ij are the cosines of the states less their mean over j. (The authors' code takes an HSIC of
    the masked kernels in its place.) Ties, and where the value is NaN, as for `mutual_knn`.

    In [−1, 1], symmetric, 1 of a layer with itself; unchanged by a rotation and a common factor of a layer, not by a shift.
    """
    models = read_models(X_LND, Y_MND)
    if too_few := _too_few(models, neighbours):
        return models.nowhere(too_few)

    def local_kernel(layer: Layer) -> Array | Undefined:
        near = _near(layer, neighbours)
        if isinstance(near, Undefined):
            return near
        local_NN = np.where(near.mask, near.cosines - near.cosines.mean(axis=1, keepdims=True), 0.0)
        flat: Array = local_NN.ravel() / np.linalg.norm(local_NN)
        return flat

    return models.views(local_kernel).compared(_inner_products)


class _Near(NamedTuple):
    """Cosines between a layer's examples [N, N], and which are neighbours: [i, j] says that j is near to i."""

    cosines: Array
    mask: NDArray[np.bool_]


def _near(layer: Layer, k: int) -> _Near | Undefined:
    if layer.constant:
        return CONSTANT
    if zero := layer.zero_state():
        return zero
    X_ND = layer.directions()
    cosines_NN = X_ND @ X_ND.T
    places_NK = nearest(cosines_NN, k, 2 * (layer.width + 2) * _EPS)
    if places_NK is None:
        return Undefined("all states are equally near to each other", ", so none has nearest neighbours")
    mask_NN = np.zeros(cosines_NN.shape, dtype=bool)
    np.put_along_axis(mask_NN, places_NK, True, axis=1)
    return _Near(cosines_NN, mask_NN)


def _rows(masks: list[NDArray[np.bool_]], rows: slice) -> Array:
    return np.stack([mask_NN[rows].ravel() for mask_NN in masks]).astype(np.float64)


def _inner_products(first: list[Array], second: list[Array] | None) -> Array:
    x_LP = np.stack(first)
    products_LM: Array = x_LP @ (x_LP if second is None else np.stack(second)).T
    return products_LM


def _too_few(models: Models, neighbours: int) -> str | None:
    if neighbours < 1:
        raise ValueError(f"neighbours must be at least 1, got {neighbours}")
    if neighbours < models.examples - 1:
        return None
    return (
        f"of {models.examples} examples all others are among the {neighbours} nearest; "
        f"give {neighbours + 2} or more, or ask for fewer neighbours"
    )
