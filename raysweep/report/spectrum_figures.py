"""The figures of spectra: how variance is spread at each layer, and what the first components share with neighbouring layers.

Every function takes rows of the spectrum table of one model and data set; see figures.py for what all figures have in common.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from raysweep.report.labels import write_row
from raysweep.report.plotting import (
    ATTENTION_COLOUR,
    CHANGE_COLOUR,
    DELTA_COLOUR,
    INK,
    LOSS_COLOUR,
    MUTED,
    SIZE,
    header,
    layer_axis,
    styled,
)
from raysweep.studies.spectrum import ALONE, NEIGHBOURS, shared_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = {"cca": "canonical correlation", "overlap": "overlap of subspaces"}
_STEPS = {1: LOSS_COLOUR, 2: ATTENTION_COLOUR}
_RANKS = {"effective_rank": LOSS_COLOUR, "participation_ratio": ATTENTION_COLOUR, "stable_rank": DELTA_COLOUR}


def by_layer(spectrum: pd.DataFrame, measure: str, k: int | None = None) -> pd.Series[float]:
    """One measure by layer, for `k` components where it depends on their number; NaN at layers without a row."""
    rows = spectrum[spectrum["measure"] == measure]
    rows = rows[rows["components"].isna() if k is None else rows["components"] == k]
    values = rows.set_index("layer")["value"].astype(float)
    return values.reindex(range(int(spectrum["layer"].max()) + 1))


def mean_shared(spectrum: pd.DataFrame, measure: str, k: int) -> pd.Series[float]:
    """The mean of a measure over a layer's neighbours, those that have a value."""
    return pd.concat([by_layer(spectrum, shared_name(measure, step), k) for step in NEIGHBOURS], axis=1).mean(axis=1)


@styled
def shared_components(spectrum: pd.DataFrame, components: Sequence[int], changes: Sequence[int], title: str) -> Figure:
    """Small multiples: for each number of components, what they share with the layers one and two above and below.

    On the left the mean canonical correlation, with √(k / (N − 1)) dotted; on the right the overlap of principal subspaces. The
    layers of `changes` are shaded.
    """
    from matplotlib.figure import Figure

    height = 0.95 + 1.3 * len(components)
    figure = Figure(figsize=(SIZE[0], height))
    header(figure, title, "what the first k components share with neighbouring layers")
    _legend(figure, height)
    grid = figure.add_gridspec(
        len(components),
        2,
        left=0.115,
        right=0.985,
        top=1 - 0.87 / height,
        bottom=0.42 / height,
        hspace=0.16,
        wspace=0.1,
    )
    n_layers, examples = int(spectrum["layer"].max()) + 1, by_layer(spectrum, "examples").iloc[0]
    for place, k in enumerate(components):
        for column, measure in enumerate(COLUMNS):
            axes = figure.add_subplot(grid[place, column])
            layer_axis(axes, n_layers, "layer" if k == components[-1] else None)
            axes.set_ylim(-0.04, 1.06)
            axes.set_yticks([0, 0.5, 1])
            axes.tick_params(labelbottom=k == components[-1], labelleft=column == 0)
            for layer in changes:
                axes.axvspan(layer - 0.5, layer + 0.5, color=CHANGE_COLOUR, alpha=0.14, linewidth=0, zorder=0)
            for step in NEIGHBOURS:
                name = shared_name(measure, step)
                line: dict[str, Any] = {"color": _STEPS[abs(step)], "linewidth": 0.9, "alpha": 0.8, "label": name}
                _line(axes, by_layer(spectrum, name, k), linestyle="-" if step > 0 else (0, (2, 1.5)), **line)
            _line(axes, mean_shared(spectrum, measure, k), color=INK, linewidth=1.5, label="mean")
            if measure == "cca":
                chance = math.sqrt(k / (examples - 1))
                axes.axhline(chance, color=MUTED, linewidth=0.9, linestyle=":", label="independent")
                axes.set_ylabel(f"k = {k}", labelpad=2)
            if not place:
                axes.set_title(COLUMNS[measure], fontsize=8.5, color=MUTED, loc="left", pad=3)
    return figure


@styled
def spread(spectrum: pd.DataFrame, components: Sequence[int], title: str) -> Figure:
    """Two panels by layer: the share of the variance that the first k components carry, and how many directions are filled."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(SIZE[0], 4.3))
    header(figure, title, "how the variance of a layer's states is spread")
    grid = figure.add_gridspec(2, 1, left=0.115, right=0.815, top=0.845, bottom=0.1, hspace=0.24)
    n_layers = int(spectrum["layer"].max()) + 1
    shares = figure.add_subplot(grid[0])
    layer_axis(shares, n_layers, None)
    shares.tick_params(labelbottom=False)
    shares.set_ylim(0, 1.03)
    shares.set_title("share of variance in the first k components", fontsize=8.5, color=MUTED, loc="left", pad=3)
    ranks = figure.add_subplot(grid[1])
    layer_axis(ranks, n_layers, "layer")
    ranks.set_title("number of directions, counted in three ways", fontsize=8.5, color=MUTED, loc="left", pad=3)
    ends = []
    for place, k in enumerate(components):
        colour = (LOSS_COLOUR, ATTENTION_COLOUR, DELTA_COLOUR, CHANGE_COLOUR)[place % 4]
        values = by_layer(spectrum, "explained_cumulative", k)
        _line(shares, values, color=colour, marker="o", markersize=2.4, linewidth=1.1, label=f"k{k}")
        ends.append((values, f"k = {k}", colour))
    _name_ends(shares, ends)
    ends = []
    for measure in ALONE:
        values = by_layer(spectrum, measure)
        colour = _RANKS[measure]
        _line(ranks, values, color=colour, marker="o", markersize=2.4, linewidth=1.1, label=measure)
        ends.append((values, measure.replace("_", "\n"), colour))
    ranks.set_ylim(bottom=0)
    _name_ends(ranks, ends)
    return figure


def _line(axes: Axes, values: pd.Series[float], **style: Any) -> None:
    axes.plot(values.index.to_numpy(), values.to_numpy(), **style)


def _legend(figure: Figure, height: float) -> None:
    """The lines' names, in a row below the heading."""
    names = (
        ("─ ┄ layer +1, −1", LOSS_COLOUR),
        ("─ ┄ layer +2, −2", ATTENTION_COLOUR),
        ("━ mean", INK),
        ("┈ independent", MUTED),
    )
    write_row(figure, names, 0.02, 1 - 0.6 / height)


def _name_ends(axes: Axes, ends: Sequence[tuple[pd.Series[float], str, str]]) -> None:
    """Write each line's name next to its last point, apart from one another and within the height of the axes."""
    low, high = axes.get_ylim()
    places = [(float(values.dropna().iloc[-1]), text, colour) for values, text, colour in ends if values.notna().any()]
    line = (high - low) * 0.11  # the height of a line of text
    halves = [line * (1 + text.count("\n")) / 2 for _, text, _ in sorted(places)]
    ys: list[float] = []
    for (y, _, _), half in zip(sorted(places), halves, strict=True):
        ys.append(max(y, low + half, ys[-1] + halves[len(ys) - 1] + half if ys else -math.inf))
    top = high
    for place in reversed(range(len(ys))):  # those that were pushed above the axes come down again
        ys[place] = min(ys[place], top - halves[place])
        top = ys[place] - halves[place]
    for last, (_, text, colour) in zip(ys, sorted(places), strict=True):
        axes.annotate(
            text,
            (1, last),
            xycoords=("axes fraction", "data"),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=8.5,
            linespacing=0.95,
        )
