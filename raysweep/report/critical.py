"""Critical layers over a run's data sets: the choice on each, how sure it is, and how far the data sets agree.

The choices are the table critical's; the segments of similar layers come from the table similarity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raysweep.numerics.measures.registry import MEASURES
from raysweep.numerics.segments import segment_starts
from raysweep.numerics.selection import Agreement, Choices, agreement_between
from raysweep.report.cells import Cell, Setting
from raysweep.report.critical_words import agreement_text
from raysweep.report.page_tables import Table
from raysweep.report.pictures import Drawings, Picture
from raysweep.report.plotting import (
    CHANGE_COLOUR,
    INK,
    LOSS_COLOUR,
    MUTED,
    SIZE,
    header,
    integer_ticks,
    printable,
    styled,
)
from raysweep.report.words import percent, runs_text
from raysweep.studies.choices import choices_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OFTEN = 0.2  # of the half-samples: a layer chosen at least this often is named even if it is not among the chosen


@dataclass(frozen=True)
class CriticalView:
    """What the page shows of one model and setting: a sentence on agreement where there are data sets to agree, and the choices."""

    sentence: str
    table: Table
    picture: Picture | None


def critical_views(cells: Sequence[Cell], drawings: Drawings) -> list[CriticalView]:
    """One for each model and setting of δ; a picture for each model's first setting."""
    views = []
    for model in dict.fromkeys(cell.model for cell in cells):
        of_model = [cell for cell in cells if cell.model == model and "critical" in cell.tables]
        settings = dict.fromkeys(setting for cell in of_model for setting in cell.settings)
        for place, setting in enumerate(settings):
            found = [(cell, choices) for cell in of_model if (choices := _choices(cell, setting)) is not None]
            if found:
                views.append(_view(model, setting, found, None if place else drawings))
    return views


def _choices(cell: Cell, setting: Setting) -> Choices | None:
    rows = cell.tables["critical"]
    chosen = (rows["metric"] == setting.metric) & (rows["neighbourhood"] == setting.neighbourhood)
    return choices_of(rows[chosen], cell.n_layers) if chosen.any() else None


def _view(
    model: str, setting: Setting, found: Sequence[tuple[Cell, Choices]], drawings: Drawings | None
) -> CriticalView:
    rows = [(cell.dataset, *_row(cell, setting, choices)) for cell, choices in found]
    columns = ("data set", "chosen: smallest δ", "least certain", "also chosen often", "segments begin at")
    table = Table(
        f"Critical layers of {model} ({setting}). Percentages are shares of half-samples that choose the layer. Segments of similar "
        "layers are found separately, by ruptures, from the complete similarity matrix",
        columns,
        rows,
        words=range(len(columns)),
    )
    sentence = ""
    if len(found) > 1:
        told: Agreement = agreement_between([choices for _, choices in found])
        sentence = f"{model}, {setting}: {agreement_text(told, len(found))}"
    picture = None
    if drawings is not None and any(len(choices.shares) for _, choices in found):
        shares = {cell.dataset: choices.layer_shares for cell, choices in found}
        picture = drawings.add(
            choice_map(shares, [choices.whole for _, choices in found], model),
            ("critical", model, setting.metric, f"n{setting.neighbourhood}"),
            f"Map of how often each layer of {model} is among the critical ones, one row per data set.",
            f"Share of half-samples of the examples in which a layer is among those with the smallest δ ({setting}). Strong blue: "
            "nearly always. Orange frames: the choice on all examples. A column that is blue from top to bottom is critical on every "
            "data set.",
        )
    return CriticalView(sentence, table, picture)


def _row(cell: Cell, setting: Setting, choices: Choices) -> tuple[str, str, str, str]:
    chosen, shares = np.flatnonzero(choices.whole), choices.layer_shares
    least, often = "n/a (nothing was resampled)", "n/a"
    if len(choices.shares):
        least = "—"
        if len(chosen):
            weakest = int(chosen[shares[chosen].argmin()])
            least = f"layer {weakest}: {percent(shares[weakest])}"
        others = np.flatnonzero((shares >= _OFTEN) & ~choices.whole)
        often = ", ".join(f"{layer} ({percent(shares[layer])})" for layer in others) or "—"
    return runs_text(chosen.tolist()) or "none (δ is n/a)", least, often, _stretches(cell, setting)


def _stretches(cell: Cell, setting: Setting) -> str:
    if setting.metric not in cell.metrics:
        return "n/a (no similarity)"
    wide = cell.similarity(setting.metric).pivot(index="layer_i", columns="layer_j", values="value")
    S_LL = MEASURES[setting.metric].likeness(wide.to_numpy(dtype=float))
    return ", ".join(map(str, [0, *segment_starts(S_LL).tolist()]))  # each is a start: no runs


def _blues() -> Any:
    """From nothing to blue: what lies behind the map shows through, so that it suits light and dark pages."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgba

    ends = [to_rgba(LOSS_COLOUR, 0), to_rgba(LOSS_COLOUR, 1)]
    return LinearSegmentedColormap.from_list("chosen", ends)


@styled
def choice_map(shares: dict[str, np.ndarray], whole: Sequence[np.ndarray], title: str) -> Figure:
    """How often each layer (column) is chosen on each data set (row), the choice on all examples framed."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    names, n_layers = list(shares), len(next(iter(shares.values())))
    height = 1.05 + 0.26 * len(names)
    figure = Figure(figsize=(SIZE[0], height))
    header(figure, title, "share of half-samples of the examples that choose a layer")
    axes = figure.add_axes((0.2, 0.42 / height, 0.68, 0.26 * len(names) / height))
    image = axes.imshow(
        np.stack(list(shares.values())), cmap=_blues(), vmin=0, vmax=1, aspect="auto", interpolation="none"
    )
    for row, chosen in enumerate(whole):
        for layer in np.flatnonzero(chosen):
            frame: dict[str, Any] = {"fill": False, "edgecolor": CHANGE_COLOUR, "linewidth": 1.4}
            axes.add_patch(Rectangle((layer - 0.44, row - 0.42), 0.88, 0.84, **frame))
    axes.set_yticks(range(len(names)), [printable(name, 24) for name in names], color=INK, fontsize=8.5)
    axes.set_xlim(-0.5, n_layers - 0.5)
    integer_ticks(axes.xaxis)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("layer", labelpad=1, color=MUTED)
    bar = figure.colorbar(image, cax=figure.add_axes((0.905, 0.42 / height, 0.02, 0.26 * len(names) / height)))
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=7.5)
    return figure
