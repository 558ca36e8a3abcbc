"""What the page shows of spectra: two figures with their captions, and a table; see spectrum_figures.py for the drawing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pandas as pd

from raysweep.report import spectrum_figures
from raysweep.report.page_tables import Table
from raysweep.report.pictures import Drawings, Picture, heading
from raysweep.report.spectrum_figures import by_layer, mean_shared
from raysweep.report.words import layers_text, number
from raysweep.studies.spectrum import ALONE

if TYPE_CHECKING:
    from raysweep.report.cells import Cell

SHOWN = 4  # numbers of components that are drawn; the table behind the page has all


def components_of(spectrum: pd.DataFrame) -> list[int]:
    """The numbers of components that were asked for, in that order; the first of very many."""
    return [int(k) for k in spectrum["components"].dropna().unique()][:SHOWN]


def spectrum_pictures(cell: Cell, drawings: Drawings) -> list[Picture]:
    """What components share with neighbouring layers, and how variance is spread; nothing where spectra were not measured."""
    if "spectrum" not in cell.tables:
        return []
    spectrum = cell.tables["spectrum"]
    components = components_of(spectrum)
    changes = cell.change_points(cell.settings[0]) if cell.settings else []
    examples = int(by_layer(spectrum, "examples").iloc[0])
    least = []
    for k in components:
        mean = mean_shared(spectrum, "cca", k)
        if mean.notna().any():
            least.append(f"for k = {k} lowest at layer {mean.idxmin()}, {number(mean.min())}")
    shading = " Shaded: the change-point layers, chosen by δ alone." if changes else ""
    return [
        drawings.add(
            spectrum_figures.shared_components(spectrum, components, changes, heading(cell)),
            ("components", cell.model, cell.dataset),
            f"Line charts by layer of what the first components share with those of layers one and two away; mean canonical "
            f"correlation {'; '.join(least) or 'n/a'}.",
            "Left: the mean canonical correlation of the first k components with those of the layer one or two above and below; 1 "
            "means that both order the examples alike. The dotted line, √(k / (N − 1)), is roughly the value for unrelated layers "
            f"with these {examples} examples. Right: the mean squared cosine of the angles between the subspaces that "
            f"these components span in the residual stream.{shading}{_undefined(spectrum)}{_unsure(spectrum, components)}",
        ),
        drawings.add(
            spectrum_figures.spread(spectrum, components, heading(cell)),
            ("spectrum", cell.model, cell.dataset),
            f"Line charts by layer of the share of variance in the first components and of the effective rank, "
            f"{_range(by_layer(spectrum, 'effective_rank'))}.",
            "Top: the share of the variance between examples that the first k principal components carry. Bottom: the number of "
            "directions it fills. Effective rank: exp of the entropy of the singular values. Participation ratio: (Σλ)² / Σλ². Stable "
            f"rank: total variance over that of the first component. None can exceed {examples - 1}, one less than the number of examples.",
        ),
    ]


def _range(values: pd.Series[float]) -> str:
    return f"from {number(values.min(), 1)} to {number(values.max(), 1)}" if values.notna().any() else "n/a"


def _undefined(spectrum: pd.DataFrame) -> str:
    """Why some values are missing, the most frequent reasons first."""
    shared = spectrum["measure"].str.startswith(("cca", "overlap"))
    reasons = spectrum.loc[shared & spectrum["value"].isna(), "reason"].dropna().value_counts()
    return f" Missing values are n/a ({'; '.join(map(str, reasons.index[:3]))})." if len(reasons) else ""


def _unsure(spectrum: pd.DataFrame, components: list[int]) -> str:
    """At which layers the last component taken and the next one have nearly the same variance."""
    said = []
    for k in components:
        rows = spectrum[(spectrum["measure"] == "relative_gap") & (spectrum["components"] == k)]
        close = rows.loc[rows["value"].notna() & rows["reason"].notna(), "layer"]
        if len(close):
            said.append(f"k = {k} at {layers_text(sorted(int(layer) for layer in close))}")
    if not said:
        return ""
    return (
        f" Uncertain with so few examples, because the next component has nearly the same variance: {'; '.join(said)}."
    )


def spectrum_table(cell: Cell) -> Table:
    """Every layer's spectrum, and its mean canonical correlation and overlap with the neighbours."""
    spectrum = cell.tables["spectrum"]
    components = components_of(spectrum)
    columns = ["layer", *(measure.replace("_", " ") for measure in ALONE)]
    values = [by_layer(spectrum, measure) for measure in ALONE]
    for k in components:
        columns += [f"variance, first {k}", f"gap after {k}", f"CCA, k = {k}", f"overlap, k = {k}"]
        values += [by_layer(spectrum, "explained_cumulative", k), by_layer(spectrum, "relative_gap", k)]
        values += [mean_shared(spectrum, "cca", k), mean_shared(spectrum, "overlap", k)]
    rows = [
        [layer, *("n/a" if math.isnan(v[layer]) else number(v[layer], 3) for v in values)] for layer in values[0].index
    ]
    return Table(
        "Spectrum of the base model's states by layer. CCA and overlap are means over the layers one and two away that have a value. "
        "results/spectrum.parquet has every value and the reason for each n/a",
        columns,
        rows,
    )
