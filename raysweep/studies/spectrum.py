"""Spectra: how the variance of each layer's states is spread, and what their first components share with the layers beside.

Takes states that were captured (or any arrays, a layer at a time); the arithmetic is numerics/spectral.py's. Shapes: L
layers, N examples, D width, K components.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from raysweep.numerics import spectral
from raysweep.numerics.gram import States, as_float64, as_states
from raysweep.numerics.spectral import Decomposition, decompose
from raysweep.studies.arguments import Counts, components_given
from raysweep.studies.comparable import check_comparable

NEIGHBOURS = (-2, -1, 1, 2)
ALONE = {  # a layer's measures that no number of components belongs to
    "effective_rank": spectral.effective_rank,
    "participation_ratio": spectral.participation_ratio,
    "stable_rank": spectral.stable_rank,
}
SHARED: dict[str, Callable[[Decomposition, Decomposition, int], float]] = {
    "cca": lambda x, y, k: float(spectral.canonical_correlations(x, y, k).mean()),
    "overlap": lambda x, y, k: float((spectral.principal_angle_cosines(x, y, k) ** 2).mean()),
}


def shared_name(measure: str, step: int) -> str:
    """A measure between a layer and the one `step` above it, as the table names it: `cca+1`."""
    return f"{measure}{step:+d}"


def spectrum(X_LND: Iterable[States], components: Counts = (1, 3, 10)) -> pd.DataFrame:
    """The table spectrum of states [L, N, D] (without model and dataset): layer, components, measure, value, reason.

    Once a layer, with `components` NA:

    - `examples`: N, those with finite states at every layer.
    - `effective_rank`: exp of the entropy of σ / Σσ (Roy and Vetterli, 2007); `participation_ratio`: (Σλ)² / Σλ²;
      `stable_rank`: Σλ / λ₁; with σ the singular values of the centred states and λ = σ².

    For each number k of `components`:

    - `explained_share`: share of the variance along component k; `explained_cumulative`: along the first k.
    - `relative_gap`: (λ_k − λ_{k+1}) / λ_k. Its `reason` warns where it is within the sampling error √(2/N) of λ_k (North et
      al., 1982), so that with other examples component k may be another.
    - `cca-2`, `cca-1`, `cca+1`, `cca+2`: mean canonical correlation of the first k components with those of the layer so far
      above: the mean singular value of U_xᵀU_y. About √(k / (N − 1)) or less between independent layers; 1 for k = N − 1.
    - `overlap-2` … `overlap+2`: mean squared cosine of the principal angles between the subspaces that the first k directions
      span in the residual stream, ‖V_xᵀV_y‖² / k; k / D between independent ones. NaN where the widths differ.

    Rows of neighbours that a model does not have are left out. NaN has its `reason`: a constant layer, fewer than k components,
    or components whose gap is lost in rounding. Examples that are not finite at some layer are left out of everything, as the
    reason of `examples` tells.

    `components` is one number or several. `X_LND` is an array or tensor [L, N, D], a list of layers, or anything that gives the
    layers [N, D] each time it is iterated over (an open activation store does, so that one layer at a time is held). Raises
    ValueError naming the layer for shapes that do not fit; InputError for components that are no different numbers from 1 on, and where fewer than two examples are finite.
    """
    components = components_given(components)
    layers = list(X_LND) if iter(X_LND) is X_LND else X_LND
    if isinstance(layers, list | tuple):
        layers = [as_states(layer, states) for layer, states in enumerate(layers)]
    finite_LN = _finite(layers)
    keep_N = np.asarray(finite_LN.all(axis=0))
    found = [_decomposed(layer, states, keep_N, max(components)) for layer, states in enumerate(layers)]
    rows = [row for layer in range(len(found)) for row in _rows(found, layer, components, finite_LN)]
    table = pd.DataFrame(rows, columns=["layer", "components", "measure", "value", "reason"])
    return table.astype({"components": "Int64", "measure": "string", "value": float, "reason": "string"})


def _finite(layers: Iterable[States]) -> np.ndarray:
    """Which examples have only finite values at each layer, bool [L, N]."""
    finite: list[np.ndarray] = []
    for layer, states in enumerate(layers):
        shape = tuple(states.shape)
        if len(shape) != 2 or shape[0] < 2 or shape[1] < 1:
            raise ValueError(f"layer {layer}: states of shape {shape}; expected [N, D] with N at least 2")
        if finite and shape[0] != len(finite[0]):
            raise ValueError(f"layer {layer} has {shape[0]} examples, layer 0 has {len(finite[0])}")
        finite.append(np.asarray(np.isfinite(as_float64(states)).all(axis=1)))
    if not finite:
        raise ValueError("no layers")
    finite_LN = np.stack(finite)
    check_comparable(finite_LN)
    return finite_LN


def _decomposed(layer: int, states: Any, keep_N: np.ndarray, k: int) -> Decomposition:
    try:
        return decompose(states if keep_N.all() else states[keep_N], k)
    except ValueError as error:
        raise ValueError(f"layer {layer}: {error}") from None


def _rows(
    found: Sequence[Decomposition], layer: int, components: Sequence[int], finite_LN: np.ndarray
) -> Iterator[tuple[int, int | None, str, float, str | None]]:
    """The table's rows for one layer."""
    x = found[layer]
    yield layer, None, "examples", x.examples, _left_out(finite_LN, layer)
    for measure, formula in ALONE.items():
        yield layer, None, measure, formula(x.singular_values) if x.rank else math.nan, _too_few(x, 1, layer)
    shares = spectral.explained_shares(x.singular_values)
    for k in components:
        few = _too_few(x, k, layer)
        yield layer, k, "explained_share", math.nan if few else shares[k - 1], few
        yield layer, k, "explained_cumulative", math.nan if few else shares[:k].sum(), few
        yield layer, k, "relative_gap", math.nan if few else x.gap(k), few or _may_swap(x, k)
        for measure, formula_of in SHARED.items():
            for step in NEIGHBOURS:
                if 0 <= layer + step < len(found):
                    y = found[layer + step]
                    reason = _undetermined(x, k, layer) or _undetermined(y, k, layer + step)
                    if measure == "overlap" and x.width != y.width and not reason:
                        reason = f"layer {layer} has {x.width} dimensions and layer {layer + step} has {y.width}"
                    yield layer, k, shared_name(measure, step), math.nan if reason else formula_of(x, y, k), reason


def _left_out(finite_LN: np.ndarray, layer: int) -> str | None:
    n, out, bad = finite_LN.shape[1], int((~finite_LN.all(axis=0)).sum()), int((~finite_LN[layer]).sum())
    if not out:
        return None
    return f"{bad} of {n} examples have states that are not finite at this layer; {out} are left out of every layer"


def _too_few(x: Decomposition, k: int, layer: int) -> str | None:
    if k <= x.rank:
        return None
    if x.constant:
        return f"all examples have the same state at layer {layer}"
    return f"layer {layer} has {x.rank} components: {x.why_few(k)}"


def _undetermined(x: Decomposition, k: int, layer: int) -> str | None:
    """Why the first `k` components of a layer span no definite subspace, if they do not."""
    few = _too_few(x, k, layer)
    if few or x.determined(k):
        return few
    return (
        f"components {k} and {k + 1} of layer {layer} are equally large to within rounding (relative gap {x.gap(k):.2g}), so that "
        f"the first {k} are not determined"
    )


def _may_swap(x: Decomposition, k: int) -> str | None:
    """The warning that sampling alone may exchange component `k` and the next, by North's rule of thumb."""
    error = math.sqrt(2 / x.examples)
    if x.gap(k) > error:
        return None
    return (
        f"component {k + 1} is within {x.gap(k):.2g} of component {k}, and {x.examples} examples determine variances only to "
        f"{error:.2g}, so other examples may swap the two"
    )
