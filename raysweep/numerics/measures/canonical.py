"""Measures by canonical correlations: SVCCA, PWCCA and the mean over the top k components; and Procrustes.

With U the left singular vectors of a layer's centred states, the canonical correlations of two layers are the singular
values of U_xᵀ U_y: no iterative solver is needed, and one decomposition a layer serves all pairs.

Shape suffixes: N examples, D width, K components of one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from raysweep.numerics.gram import Array, States
from raysweep.numerics.measures.layers import CONSTANT, Compared, Layer, Undefined, over_pairs, read_models

_EPS = float(np.finfo(np.float64).eps)


class Components(NamedTuple):
    """A layer's leading principal components: U [N, K] and singular values [K]."""

    left: Array
    values: Array

    @property
    def kept(self) -> int:
        """K."""
        return len(self.values)


def principal_components(layer: Layer) -> Components | Undefined:
    """All principal components of a layer that rounding in float64 leaves, largest first (numpy's rule for a rank)."""
    if layer.constant:
        return CONSTANT
    X_ND = layer.centred()
    if layer.width > layer.examples:  # X = L Q has the left vectors and values of the square L
        X_ND = np.asarray(np.linalg.qr(X_ND.T, mode="r")).T
    left_NK, values_K, _ = np.linalg.svd(X_ND, full_matrices=False)
    rank = int((values_K > max(layer.examples, layer.width) * _EPS * values_K[0]).sum())
    return Components(left_NK[:, :rank], values_K[:rank])


def svcca(X_LND: Iterable[States], Y_MND: Iterable[States] | None = None, *, variance: float) -> Compared:
    """Mean canonical correlation after each layer is cut to the components that hold `variance` of its variance.

    Raghu et al. (2017): Σ ρ / min(K_x, K_y). In [0, 1], symmetric, 1 of a layer with itself. Unchanged by a rotation,
    a common factor and a shift of a layer; not by an invertible linear map, which moves the cut, unless `variance` is 1.

    In the N − 1 dimensions of centred examples two subspaces of K_x and K_y dimensions share K_x + K_y − (N − 1): so
    many correlations are 1 whatever the states. Where that is positive the value is NaN.
    """
    models = read_models(X_LND, Y_MND)
    views = models.views(_holding(variance))
    return views.compared(lambda x, y: over_pairs(x, y, _mean_correlation), _too_few)


def pwcca(X_LND: Iterable[States], Y_MND: Iterable[States] | None = None, *, variance: float) -> Compared:
    """Canonical correlations weighted by how much of the row layer's states each accounts for.

    Morcos et al. (2018): Σ αρ / Σ α with α = Σ_d |⟨h, x_d⟩|, h a canonical variable of the row layer and x_d its
    centred dimensions. Each layer is first cut as for `svcca`; `variance` 1 is the paper's measure. In [0, 1], 1 of a
    layer with itself; not symmetric. Unchanged by a common factor and a shift of a layer, but not by a rotation of the
    row layer, for α adds magnitudes over single dimensions. NaN where `svcca` is.
    """
    cut = _holding(variance)

    def weighed(layer: Layer) -> _Weighed | Undefined:
        found = cut(layer)
        return found if isinstance(found, Undefined) else _Weighed(found, found.left.T @ layer.centred())

    def matrix(first: list[_Weighed], second: list[_Weighed] | None) -> Array:
        columns = first if second is None else second
        S_LM = np.full((len(first), len(columns)), np.nan)
        for i, x in enumerate(first):
            for j, y in enumerate(columns):
                if (second is None and j < i) or not _enough(x.cut, y.cut):
                    continue
                left_KK, correlations_K, right_KK = np.linalg.svd(x.cut.left.T @ y.cut.left, full_matrices=False)
                S_LM[i, j] = x.mean(correlations_K, left_KK.T)
                if second is None:
                    S_LM[j, i] = y.mean(correlations_K, right_KK)
        return S_LM

    views = read_models(X_LND, Y_MND).views(weighed)
    return views.compared(matrix, lambda x, y: _too_few(x.cut, y.cut))


class _Weighed(NamedTuple):
    """A layer's components, and its states in terms of them: Uᵀ X [K, D]."""

    cut: Components
    states: Array

    def mean(self, correlations_K: Array, variables_KK: Array) -> float:
        """Σ αρ / Σ α; `variables_KK` has the layer's canonical variables as rows, in terms of its components."""
        weights_K = np.abs(variables_KK @ self.states).sum(axis=1)
        return float(weights_K @ correlations_K / weights_K.sum())


def cca_top_k(X_LND: Iterable[States], Y_MND: Iterable[States] | None = None, *, components: int) -> Compared:
    """Mean canonical correlation between the top `components` principal components of two layers.

    The mean cosine of the principal angles between the two subspaces of examples. In [0, 1], symmetric, 1 of a layer
    with itself. Unchanged by a rotation, a common factor and a shift of a layer; not by an invertible linear map, which
    changes what the top components are. Of independent states it is nearly √(K / N), not 0.

    NaN for a layer that has fewer components, and where 2K > N − 1 (see `svcca`). Where the K-th and the next singular
    value are equal, which direction counts as the K-th is the decomposition's choice.
    """
    models = read_models(X_LND, Y_MND)
    if components < 1:
        raise ValueError(f"components must be at least 1, got {components}")
    if 2 * components > models.examples - 1:
        return models.nowhere(
            f"the top {components} components of two layers share directions whatever the states, for there are only "
            f"{models.examples} examples; give {2 * components + 1} or more, or ask for fewer components"
        )

    def top(layer: Layer) -> Components | Undefined:
        found = principal_components(layer)
        if isinstance(found, Undefined):
            return found
        if found.kept < components:
            return Undefined(
                "the states vary in fewer directions", f" ({found.kept}) than the {components} components asked for"
            )
        return _first(found, components)

    return models.views(top).compared(lambda x, y: over_pairs(x, y, _mean_correlation))


def procrustes(X_LND: Iterable[States], Y_MND: Iterable[States] | None = None) -> Compared:
    """Similarity after the best rotation: ‖XᵀY‖_* of centred states, each divided by its Frobenius norm.

    = 1 − d²/2 with d² = min_Q ‖X − YQ‖²_F the squared orthogonal Procrustes distance (Ding et al., 2021, normalise the same
    way). In [0, 1], symmetric, 1 of a layer with itself; unchanged by a rotation, a common factor and a shift of a layer.
    Of independent states it nears 1 where examples are few against the width.
    """
    models = read_models(X_LND, Y_MND)

    def scaled(layer: Layer) -> Array | Undefined:
        found = principal_components(layer)
        if isinstance(found, Undefined):
            return found
        coordinates_NK: Array = found.left * (found.values / np.linalg.norm(found.values))
        return coordinates_NK

    def nuclear_norm(x_NK: Array, y_NK: Array) -> float:
        return float(np.linalg.svd(x_NK.T @ y_NK, compute_uv=False).sum())

    return models.views(scaled).compared(lambda x, y: over_pairs(x, y, nuclear_norm))


def _holding(variance: float) -> Callable[[Layer], Components | Undefined]:
    """Keeps the fewest leading components that hold this share of a layer's variance."""
    if not 0 < variance <= 1:
        raise ValueError(f"variance must be a share above 0 and at most 1, got {variance}")

    def cut(layer: Layer) -> Components | Undefined:
        found = principal_components(layer)
        if isinstance(found, Undefined):
            return found
        held_K = np.cumsum(found.values**2)
        # A share that is met but for rounding is met, so that a rotation of the states keeps as many.
        wanted = variance * held_K[-1] * (1 - found.kept * _EPS)
        return _first(found, found.kept if variance == 1 else int(np.searchsorted(held_K, wanted)) + 1)

    return cut


def _first(found: Components, k: int) -> Components:
    return Components(found.left[:, :k], found.values[:k])


def _enough(x: Components, y: Components) -> bool:
    """Whether no canonical correlation of two subspaces is 1 for want of examples."""
    return x.kept + y.kept <= len(x.left) - 1


def _too_few(x: Components, y: Components) -> str:
    return (
        "so many components hold the asked share of the two layers' variance that they share directions whatever the "
        f"states, for there are only {len(x.left)} examples; give more, or ask for a smaller share"
    )


def _mean_correlation(x: Components, y: Components) -> float:
    if not _enough(x, y):
        return float("nan")
    return float(np.linalg.svd(x.left.T @ y.left, compute_uv=False).mean())
