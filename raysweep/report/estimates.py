"""What the page and the commands say about losses that are estimates, and how they compare with exact ones.

A run by the gradient measures some changes exactly, too; both are compared by their means over the examples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from raysweep.numerics.correlation import spearman
from raysweep.numerics.resampling import mean_interval
from raysweep.report.cells import Cell, cells_of
from raysweep.report.summaries import layers_in
from raysweep.report.words import number

if TYPE_CHECKING:
    import pandas as pd

_CHANGE = ["kind", "layers", "coefficient"]


def compared(substitution: pd.DataFrame) -> pd.DataFrame:
    """Mean loss of each change that was both estimated and measured: columns kind, layers, coefficient, exact, estimate.

    Both means are over the examples that have both. No rows if nothing was estimated, or nothing was measured as well.
    """
    exact = substitution["estimator"] == "exact"
    both = substitution[exact].merge(substitution[~exact], on=[*_CHANGE, "example_id"], suffixes=("_exact", ""))
    both = both[np.isfinite(both["loss_exact"]) & np.isfinite(both["loss"])]
    means = both.groupby(_CHANGE, sort=False)[["loss_exact", "loss"]].mean().reset_index()
    named: pd.DataFrame = means.rename(columns={"loss_exact": "exact", "loss": "estimate"})
    return named


def estimate_sentences(cell: Cell) -> list[Markup]:
    """That the cell's losses are estimates, and how good they are on its sample; nothing if they are exact."""
    if "substitution" not in cell.tables or not (cell.tables["substitution"]["estimator"] != "exact").any():
        return []
    told = "These losses are <strong>estimates</strong>, to first order in the weights (gradient)"
    sample = _sample(compared(cell.tables["substitution"]), cell.n_layers)
    if not len(sample):
        return [Markup(told + ". None of them was also measured exactly, so their error is unknown.")]
    off = (sample["estimate"] - sample["exact"]).to_numpy()
    rho = spearman(sample["estimate"].to_numpy(), sample["exact"].to_numpy()) if len(off) > 2 else math.nan
    low, high = mean_interval(off) if len(off) > 1 else (math.nan, math.nan)
    order = (
        Markup("the rank correlation with the estimates is <strong>{}</strong>").format(number(rho, 2, signed=True))
        if not math.isnan(rho)
        else Markup("these are too few for a rank correlation")
    )
    text = told + (
        ". {} changes, drawn at random, were also measured exactly: {}. Estimate minus exact loss is {} nats on average "
        "[{}, {}] and at most {} in size; the exact losses range from {} to {}."
    )
    span = (number(float(sample["exact"].min()), 3), number(float(sample["exact"].max()), 3))
    figures = (number(float(off.mean()), 3, signed=True), number(low, 3, signed=True), number(high, 3, signed=True))
    return [Markup(text).format(len(off), order, *figures, number(float(np.abs(off).max()), 3), *span)]


def estimate_lines(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """A plain line for every model and data set whose losses are estimates."""
    cells = cells_of({name: rows for name, rows in tables.items() if len(rows)}, [])
    return [
        f"{cell.model} on {cell.dataset}: {sentence.striptags()}"
        for cell in cells
        for sentence in estimate_sentences(cell)
    ]


def _sample(found: pd.DataFrame, n_layers: int) -> pd.DataFrame:
    """Those drawn at random: without the unchanged models and all layers replaced, which are always measured."""
    sizes = found["layers"].map(lambda text: len(layers_in(text)))
    return found[(sizes > 0) & (sizes < n_layers)]
