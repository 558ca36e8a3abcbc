"""The figure of a model during its training: cost of windows, δ and ρ, step by step.

As figures.py's functions, it takes rows and returns a `matplotlib.figure.Figure`; what it means in words is along.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from raysweep.report.labels import fit
from raysweep.report.plotting import (
    FAINT,
    INK,
    LOSS_COLOUR,
    MISSING,
    MUTED,
    SIZE,
    header,
    integer_ticks,
    printable,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEFT, _WIDE, _BAR = 0.115, 0.745, (0.875, 0.022)
_TICKS = 7  # steps that are named below the figure, at most


@styled
def along_training(
    steps: Sequence[int],
    cost_PC: pd.DataFrame,
    delta_PL: pd.DataFrame,
    rho_P: pd.DataFrame,
    title: str,
    what: str,
    likeness: str,
) -> Figure:
    """Up to three panels over the same steps, each step one column: cost by window, δ by layer, ρ with its interval.

    `cost_PC` has a row a step and a column a window's centre, `delta_PL` a column a layer, `rho_P` spearman, ci_low and
    ci_high; one that is empty leaves its panel out. A value that is missing is hatched grey, never given a colour of the
    scale. `what` is replaced, and `likeness` is what δ is the mean of.
    """
    from matplotlib.figure import Figure

    panels = [name for name, rows in (("cost", cost_PC), ("delta", delta_PL), ("rho", rho_P)) if len(rows)]
    tall = {"cost": 1.75, "delta": 1.75, "rho": 1.15}
    height = 0.8 + sum(tall[name] + 0.28 for name in panels)
    figure = Figure(figsize=(SIZE[0], height))
    header(figure, title, "during fine-tuning: one column for each checkpoint")
    top = height - 0.72
    hatched = False
    for name in panels:
        box = (_LEFT, (top - tall[name]) / height, _WIDE, tall[name] / height)
        axes = figure.add_axes(box, label=name)
        if name == "rho":
            _draw_rho(axes, [steps.index(step) for step in rho_P.index], rho_P)
            text = "rank correlation ρ of δ and loss"
        else:
            rows = (cost_PC if name == "cost" else delta_PL).reindex(list(steps))
            hatched |= bool(rows.isna().any(axis=None))
            _draw_map(figure, axes, rows, (box[1], box[3]), "magma_r" if name == "cost" else "viridis")
            text = f"cost (nats) of {what} replaced, by centre" if name == "cost" else f"δ (mean {likeness}), by layer"
        fit(axes.set_title(printable(text), fontsize=8.5, color=MUTED, loc="left", pad=3), 0.985)
        _step_axis(axes, steps, last=name == panels[-1])
        top -= tall[name] + 0.28
    if hatched:
        figure.text(0.98, 0.015 / height, "hatched: n/a", color=MUTED, fontsize=8.5, ha="right", va="bottom")
    return figure


def _draw_map(figure: Figure, axes: Axes, rows: pd.DataFrame, box: tuple[float, float], colours: str) -> None:
    """A heat map: a column a step, a row a layer or centre, counted upwards."""
    from matplotlib import colormaps

    values = np.ma.masked_invalid(rows.to_numpy(dtype=float).T)
    axes.set_facecolor(MISSING)
    axes.patch.set_hatch("////")
    places = rows.columns.to_numpy(dtype=float)
    half = (places[1] - places[0]) / 2 if len(places) > 1 else 0.5
    image = axes.imshow(
        values,
        origin="lower",
        cmap=colormaps[colours].with_extremes(bad=(0, 0, 0, 0)),
        interpolation="none",
        aspect="auto",
        extent=(-0.5, len(rows) - 0.5, places[0] - half, places[-1] + half),
    )
    axes.spines[:].set_visible(False)
    integer_ticks(axes.yaxis)
    axes.locator_params(axis="y", nbins=6)
    bar = figure.colorbar(image, cax=figure.add_axes((_BAR[0], box[0], _BAR[1], box[1])))
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8)
    bar.ax.locator_params(nbins=5)


def _draw_rho(axes: Axes, places: Sequence[int], rho: pd.DataFrame) -> None:
    value, low, high = (rho[name].to_numpy(dtype=float) for name in ("spearman", "ci_low", "ci_high"))
    axes.axhline(0, color=INK, linewidth=0.9)
    axes.errorbar(places, value, yerr=[value - low, high - value], fmt="none", color=LOSS_COLOUR, elinewidth=1.4)
    style: dict[str, Any] = {"color": LOSS_COLOUR, "linewidth": 1.0, "markersize": 4}
    axes.plot(places, value, "-o", **style, label="rho")
    axes.set_ylim(-1.06, max(0.25, min(1.06, float(np.nanmax([*high, *value, 0])) + 0.1)))
    axes.grid(True, axis="y")
    axes.locator_params(axis="y", nbins=4)


def _step_axis(axes: Axes, steps: Sequence[int], last: bool) -> None:
    axes.set_xlim(-0.5, len(steps) - 0.5)
    every = -(-len(steps) // _TICKS)
    shown = range(len(steps) - 1, -1, -every)  # the last step is always named
    axes.set_xticks(sorted(shown))
    axes.set_xticklabels([str(steps[place]) for place in sorted(shown)] if last else [])
    axes.tick_params(length=0)
    axes.tick_params(axis="x", length=2 if last else 0, color=FAINT)
    if last:
        axes.set_xlabel("step", labelpad=2)
