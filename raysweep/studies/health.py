"""Which examples can be compared, and how far each layer's similarity is to be trusted, as a table.

Shapes: L layers, N examples, D width.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from raysweep.numerics.health import health
from raysweep.studies.comparable import check_comparable

_TRUST = {  # measure → (limit, words): above the limit, a layer's linear CKA says little
    "mean_to_rms": (0.999, "the states hardly differ between examples"),
    "top_component_share": (0.9, "one direction carries nearly all variance"),
    "top_dimension_share": (0.9, "one dimension carries nearly all variance"),
}


def finite_examples(states: torch.Tensor) -> np.ndarray:
    """Which examples of states [L, N, D] have only finite values at each layer, bool [L, N].

    Raises InputError where fewer than two have them at all layers, so that there is nothing to compare.
    """
    finite_LN = torch.stack([layer_ND.isfinite().all(dim=-1) for layer_ND in states]).cpu().numpy()
    check_comparable(finite_LN)
    return finite_LN


def health_table(states: torch.Tensor, finite_LN: np.ndarray) -> pd.DataFrame:
    """The table health of finite states [L, N, D], of examples of which `finite_LN` tells which were finite."""
    rows = []
    if not finite_LN.all():
        n, out = finite_LN.shape[1], int((~finite_LN.all(axis=0)).sum())
        for layer, bad in enumerate((~finite_LN).sum(axis=1)):
            told = f"{bad} of {n} examples have states that are not finite; {out} are left out of every similarity"
            rows.append(
                {"layer": layer, "measure": "not_finite", "value": float(bad), "warning": told if bad else None}
            )
    for measure, values in health(states).items():
        limit, words = _TRUST.get(measure, (np.inf, ""))
        for layer, value in enumerate(values):
            warning = f"{measure} is {value:.4g}, above {limit}: {words}" if value > limit else None
            rows.append({"layer": layer, "measure": measure, "value": float(value), "warning": warning})
    return pd.DataFrame(rows).astype({"warning": "string"})
