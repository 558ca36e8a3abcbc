"""Which examples can be compared, and how far each layer's similarity is to be trusted, as a table.

Shapes: L layers, N examples, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from raysweep.numerics.health import OUTLIER, health
from raysweep.studies.comparable import check_comparable

_FEW = 0.1  # of the examples: on so few, or fewer, a layer's CKA may rest
_MOVED = 0.1  # in CKA: by so much, or more, outlier dimensions may move it


@dataclass(frozen=True)
class Limit:
    """Above `most` a layer's linear CKA is not to be trusted, or says something else than it seems to; `words` say why."""

    most: float
    words: str


TRUST: Mapping[str, Limit] = {
    "mean_to_rms": Limit(0.999, "the states hardly differ between examples"),
    "cka_floor": Limit(
        0.5,
        "biased CKA would be as high with a layer that has nothing to do with this one, for there are few examples for what "
        "the states vary in; read the debiased one",
    ),
    "top_component_weight": Limit(
        0.9,
        "two layers that share one direction and nothing else would have a linear CKA as high, debiased or not",
    ),
    "top_dimension_share": Limit(0.5, "one dimension carries most of the variance"),
    "massive_ratio": Limit(1000, "a massive activation: norms, angles and the mean state are that dimension's"),
    "longest_ratio": Limit(10, "one example's state is far longer than the others, a sink perhaps"),
}


def finite_examples(states: torch.Tensor) -> np.ndarray:
    """Which examples of states [L, N, D] have only finite values at each layer, bool [L, N].

    Raises InputError where fewer than two have them at all layers, so that there is nothing to compare.
    """
    finite_LN = torch.stack([layer_ND.isfinite().all(dim=-1) for layer_ND in states]).cpu().numpy()
    check_comparable(finite_LN)
    return finite_LN


def health_table(states: torch.Tensor, finite_LN: np.ndarray, example_ids: np.ndarray | None = None) -> pd.DataFrame:
    """The table health of finite states [L, N, D], of examples of which `finite_LN` tells which were finite.

    The measures are those of `numerics.health.health`; the examples it names are those of `example_ids`, which belong to
    `finite_LN`, or counted where none are given. `warning` says why a layer's similarity is not to be trusted, and why a
    value is NaN.
    """
    n = finite_LN.shape[1]
    ids = np.arange(n) if example_ids is None else np.asarray(example_ids)
    ids = ids[finite_LN.all(axis=0)]
    rows: list[dict[str, Any]] = []
    if not finite_LN.all():
        out = n - len(ids)
        for layer, bad in enumerate((~finite_LN).sum(axis=1)):
            told = f"{bad} of {n} examples have states that are not finite; {out} are skipped in every similarity"
            rows.append(_row(layer, "not_finite", bad, told if bad else None))
    found = health(states)
    for name in ("massive_example", "longest_example"):
        found[name] = ids[found[name].astype(int)].astype(float)
    for measure, values in found.items():
        for layer, value in enumerate(values):
            if measure.startswith("cka_next") and layer == len(values) - 1:
                continue  # it has no next
            figures = {name: float(of_layers[layer]) for name, of_layers in found.items()}
            rows.append(_row(layer, measure, value, _warning(measure, figures, len(ids))))
    return pd.DataFrame(rows).astype({"warning": "string"})


def _row(layer: int, measure: str, value: float, warning: str | None) -> dict[str, Any]:
    return {"layer": layer, "measure": measure, "value": float(value), "warning": warning}


def _warning(measure: str, figures: Mapping[str, float], n: int) -> str | None:
    """Why a layer's `measure` is NaN or tells not to trust its similarity; None where it does neither."""
    value = figures[measure]
    if np.isnan(value):
        return _undefined(measure, figures)
    if measure in TRUST and value > TRUST[measure].most:
        limit = TRUST[measure]
        place = ""
        if measure == "massive_ratio":
            place = f" (dimension {figures['massive_dimension']:.0f} of example {figures['massive_example']:.0f})"
        elif measure == "longest_ratio":
            place = f" (example {figures['longest_example']:.0f})"
        return f"{measure} is {value:.4g}{place}, above {limit.most:g}: {limit.words}"
    if measure == "effective_examples" and value < _FEW * n:
        return f"effective_examples is {value:.3g} of {n}, below {100 * _FEW:.0f} %: a few examples far from the others decide the similarity"
    if measure == "cka_next_trimmed" and abs(value - figures["cka_next"]) > _MOVED:
        return (
            f"without the dimensions that vary more than {OUTLIER:g} times as much as others CKA with the next layer is "
            f"{value:.3f}, with them {figures['cka_next']:.3f}: the plain one is mostly theirs"
        )
    return None


def _undefined(measure: str, figures: Mapping[str, float]) -> str:
    if measure in ("massive_ratio", "longest_ratio"):
        return "half of the values are zero, or more"
    if measure == "mean_to_rms":
        return "all states are zero"
    if np.isnan(figures["participation_ratio"]):
        return "all examples have the same state"
    if measure == "cka_next_trimmed" and not np.isnan(figures["cka_next"]):
        return "only the outlier dimensions vary"
    return "all examples have the same state at the next layer"
