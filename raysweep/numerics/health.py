"""How far a layer's similarity is to be trusted: figures of its states alone.

Everything is of the centred states, but for `mean_to_rms` and what is massive or long: those are of the states as they are.

Shape suffixes: L layers, N examples, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigvalsh

from raysweep.numerics.gram import Array, LinearGram, States, as_float64, read_layers

OUTLIER = 6.0  # an outlier dimension's standard deviation over that of the dimension in the middle


def health(X_LND: Iterable[States]) -> dict[str, Array]:
    """Figures [L] that tell how far a layer's linear CKA is to be trusted; all in float64.

    Of the mean and the size of the data:
    - `mean_to_rms`: |mean state| / root mean square of the states' norms, in [0, 1]; near 1, states hardly differ.
    - `n_over_d`: examples over width; biased CKA of independent Gaussian states is about 1 / (1 + n_over_d).
    - `cka_floor`: biased CKA with a layer of the same spectrum whose examples are matched at random, in (0, 1]:
      (tr K)² / ((N − 1) ‖K‖²), exact over permutations of the examples. Of isotropic states it is about D / (N + D).

    Of what the variance rests on, p being the shares of it that examples or components have:
    - `effective_examples`: 1 / Σ p² over the examples' squared distances from the mean, in [1, N].
    - `participation_ratio`: 1 / Σ p² over the principal components' variances, in [1, min(N − 1, D)].
    - `top_component_share`: share of the variance along the first principal component, in (0, 1].
    - `top_component_weight`: the share it has of ‖K‖², p² / Σ p²: the linear CKA of two layers with such a spectrum that
      share this component and nothing else. Debiasing does not help against it.
    - `top_dimension_share`: share of the variance in the dimension with most of it, in (0, 1].

    Of outliers:
    - `massive_ratio`: largest |value| over the median |value|; `massive_dimension` and `massive_example` are where it is.
    - `longest_ratio`: the longest state's norm over the median norm; `longest_example` is whose. A sink at the pooled token
      shows here; one at another token cannot be seen in pooled states (see `sink_ratio`).
    - `outlier_dimensions`: how many dimensions are outliers (`outlier_dimensions`).
    - `cka_next`, `cka_next_trimmed`: biased linear CKA with the next layer, of all dimensions and without those that are
      outliers at any layer (of layers of unlike width, at the layer itself). The last layer has no next: NaN.

    A constant layer has no variance to share, and no CKA: NaN. States that are all zero have no `mean_to_rms`, and where half
    of the values (norms) are zero there is no `massive_ratio` (`longest_ratio`): NaN.
    """
    grams = read_layers(X_LND)
    rows: list[dict[str, float]] = []
    before = None
    for gram, outlying_D in zip(grams, outliers_anywhere(grams), strict=True):
        layer = _Layer.of(gram, outlying_D)
        row = {**_of_values(gram), **_of_variance(gram, layer), **_of_outliers(layer)}
        rows.append({**row, "cka_next": np.nan, "cka_next_trimmed": np.nan})
        if before is not None and layer is not None:
            rows[-2]["cka_next"] = before.whole.cka(layer.whole)
            rows[-2]["cka_next_trimmed"] = before.trimmed.cka(layer.trimmed)
        before = layer
    return {measure: np.array([row[measure] for row in rows]) for measure in rows[0]}


def outlier_dimensions(X_ND: Array) -> NDArray[np.bool_]:
    """Which dimensions [D] of centred states vary more than six times as much as others: sd > 6 × the median sd.

    The median is over the dimensions that vary at all. After centring a large mean alone is no outlier: it does not enter CKA.
    """
    sd_D = np.sqrt(np.einsum("nd,nd->d", X_ND, X_ND))
    varying = sd_D[sd_D > 0]
    usual = float(np.median(varying)) if len(varying) else 0.0
    outlying_D: NDArray[np.bool_] = (sd_D > OUTLIER * usual) & (sd_D > 0)
    return outlying_D


def outliers_anywhere(grams: Sequence[LinearGram]) -> list[NDArray[np.bool_]]:
    """The dimensions [D] that are outliers at any layer, once a layer; of layers of unlike width each one's own.

    The same for all layers, so that two of them differ in no dimension that one has an inch above the limit and one below.
    """
    own = [
        np.zeros(gram.width, dtype=bool)
        if gram.constant  # what is left of it is rounding, which grows with a dimension's magnitude
        else outlier_dimensions(gram.centred(slice(0, gram.examples)))
        for gram in grams
    ]
    if len({gram.width for gram in grams}) > 1:
        return own
    return [np.asarray(np.any(own, axis=0))] * len(own)


def sink_ratio(first_LND: Sequence[States], pooled_LND: Sequence[States]) -> Array:
    """How much longer the first token's state is than the pooled one [L]: the median over examples of the ratio of norms.

    Both are of the same examples. Far above 1 where the first token is a sink. NaN where a pooled state is zero.
    """
    ratios = []
    for first_ND, pooled_ND in zip(first_LND, pooled_LND, strict=True):
        norms_N, pooled_N = (np.linalg.norm(as_float64(X_ND), axis=1) for X_ND in (first_ND, pooled_ND))
        ratios.append(float(np.median(norms_N / np.where(pooled_N > 0, pooled_N, np.nan))))
    return np.array(ratios)


@dataclass(frozen=True)
class _Side:
    """Centred states [N, D] of a layer that varies, their Gram by the shorter side, and its squared norm."""

    X_ND: Array
    gram: Array
    squares: float

    @classmethod
    def of(cls, X_ND: Array) -> _Side:
        gram = X_ND @ X_ND.T if X_ND.shape[0] < X_ND.shape[1] else X_ND.T @ X_ND
        return cls(X_ND, gram, float(np.vdot(gram, gram)))

    def cka(self, other: _Side) -> float:
        """Biased linear CKA; NaN where one of the two has no variance, or no dimension."""
        norms = self.squares * other.squares
        if not norms > 0:
            return np.nan
        n = len(self.X_ND)
        if n < min(self.X_ND.shape[1], other.X_ND.shape[1]):
            return float(np.vdot(self.gram, other.gram) / np.sqrt(norms))
        product_DD = self.X_ND.T @ other.X_ND
        return float(np.vdot(product_DD, product_DD) / np.sqrt(norms))


@dataclass(frozen=True)
class _Layer:
    """A layer that varies, with its outlier dimensions and without them."""

    whole: _Side
    trimmed: _Side

    @classmethod
    def of(cls, gram: LinearGram, outlying_D: NDArray[np.bool_]) -> _Layer | None:
        if gram.constant:
            return None
        X_ND = gram.centred(slice(0, gram.examples))
        whole = _Side.of(X_ND)
        return cls(whole, _Side.of(X_ND[:, ~outlying_D]) if outlying_D.any() else whole)


def _of_values(gram: LinearGram) -> dict[str, float]:
    """Figures of the states as they are."""
    states_ND = np.abs(as_float64(gram.states_ND))
    example, dimension = np.unravel_index(states_ND.argmax(), states_ND.shape)
    usual, norms_N = float(np.median(states_ND)), np.linalg.norm(states_ND, axis=1)
    usual_norm = float(np.median(norms_N))
    rms = float(np.sqrt(np.mean(norms_N**2)))
    return {
        "mean_to_rms": float(np.linalg.norm(gram.mean_D)) / rms if rms else np.nan,
        "massive_ratio": float(states_ND[example, dimension]) / usual if usual else np.nan,
        "massive_dimension": float(dimension),
        "massive_example": float(example),
        "longest_ratio": float(norms_N.max()) / usual_norm if usual_norm else np.nan,
        "longest_example": float(norms_N.argmax()),
    }


_VARIANCE = (
    *("effective_examples", "participation_ratio", "cka_floor"),
    *("top_component_share", "top_component_weight", "top_dimension_share"),
)


def _of_variance(gram: LinearGram, layer: _Layer | None) -> dict[str, float]:
    """Figures of how the variance is spread over examples, components and dimensions."""
    n_over_d = {"n_over_d": gram.examples / gram.width}
    if layer is None:
        return {**n_over_d, **dict.fromkeys(_VARIANCE, np.nan)}
    X_ND = layer.whole.X_ND
    total = float(np.trace(layer.whole.gram))
    top = _largest_eigenvalue(layer.whole.gram) / total
    squares = layer.whole.squares / total**2  # Σ p² over components
    example_N = np.einsum("nd,nd->n", X_ND, X_ND) / total
    dimension_D = np.einsum("nd,nd->d", X_ND, X_ND) / total
    figures = (
        float(1 / np.sum(example_N**2)),
        1 / squares,
        1 / squares / (gram.examples - 1),
        top,
        top**2 / squares,
        float(dimension_D.max()),
    )
    return {**n_over_d, **dict(zip(_VARIANCE, figures, strict=True))}


def _of_outliers(layer: _Layer | None) -> dict[str, float]:
    return {"outlier_dimensions": 0.0 if layer is None else float(outlier_dimensions(layer.whole.X_ND).sum())}


def _largest_eigenvalue(gram: Array) -> float:
    last = len(gram) - 1
    return float(eigvalsh(gram, subset_by_index=(last, last))[0])
