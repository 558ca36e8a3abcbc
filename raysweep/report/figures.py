"""The report's figures.

Every function takes data frames in the form of the result tables, or their summaries, and returns a `matplotlib.figure.Figure`.
The look they share and how they are saved is plotting.py's; what they mean in words is for those who show them to say. matplotlib
is imported by the functions, so that importing this module is cheap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from raysweep.numerics.correlation import delta_at
from raysweep.report.labels import fit, write_row
from raysweep.report.plotting import (
    CHANGE_COLOUR,
    DELTA_COLOUR,
    FRAME,
    INK,
    LOSS_COLOUR,
    MISSING,
    MUTED,
    PAPER,
    SHADE,
    SIZE,
    frame,
    header,
    integer_ticks,
    layer_axis,
    line_note,
    note,
    number_points,
    printable,
    styled,
)
from raysweep.report.summaries import change_points, costliest, swept
from raysweep.report.words import interval, likeness_name, measures_distance, metric_name, number, runs, runs_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TWO_COLUMNS = 8  # the most cells that the overview sets in two columns, which a phone can show


@styled
def loss_curve(windows: pd.DataFrame, width: int, title: str) -> Figure:
    """Mean test loss with each window of `width` replaced with the base model's layers, by the window's centre.

    `windows` is from `summaries.window_losses`. Bars are the 95 % interval of the paired cost, drawn around the mean; horizontal lines
    are the tuned model and the model with all decoder layers of the base.
    """
    figure, axes = frame(title, f"mean test loss (nats) with {_windows_text(width)} replaced")
    rows = swept(windows, width)
    layer_axis(axes, _depth(windows), "centre of the window (layer)")
    _draw_losses(axes, rows)
    low, high = _loss_limits(windows, rows)
    tuned, everything = _loss_of(windows, "tuned"), _loss_of(windows, "all")
    beyond = everything > high
    if beyond:  # a strip above the highest window, for the label of what lies higher still
        high += (high - low) / 8
    axes.set_ylim(low, high)
    middle = rows["loss"].median()
    decimals = max(2, 1 - math.floor(math.log10(high - low)))
    if not math.isnan(tuned):
        axes.axhline(tuned, color=INK, linewidth=1.1, label="tuned")
    if not math.isnan(everything):
        axes.axhline(everything, color=MUTED, linewidth=1.1, linestyle=(0, (5, 3)), label="all")
    top = costliest(windows, width)
    if top is not None:
        disc: dict[str, Any] = {"color": LOSS_COLOUR, "markersize": 7.5, "markeredgecolor": PAPER}
        axes.plot([top.centre], [top.loss], "o", **disc, zorder=5, label="top")
        depth = top.centre / _depth(windows)
        side = "left" if depth < 0.25 else "right" if depth > 0.75 else "center"
        peak = top.loss if math.isnan(top.cost_high) else top.loss + top.cost_high - top.cost
        note(axes, top.centre, peak, top.name, LOSS_COLOUR, above=True, ha=side, bold=True)
    if not math.isnan(tuned):
        line_note(axes, tuned, f"tuned model: {number(tuned, decimals)}", INK, above=tuned > middle)
    if not math.isnan(everything):
        text = f"all layers replaced: {number(everything, decimals)}{' (above this scale ↑)' if beyond else ''}"
        upwards = everything > middle and not beyond
        line_note(axes, min(everything, high), text, MUTED, above=upwards, hides=_along_bars(rows))
    return figure


def _along_bars(rows: pd.DataFrame) -> list[tuple[float, float]]:
    """Points (centre, loss) on the bars of the windows."""
    tuned = rows["loss"] - rows["cost"]
    bars = zip(rows["centre"], tuned + rows["cost_low"], tuned + rows["cost_high"], strict=True)
    return [(x, y) for x, low, high in bars if np.isfinite(high - low) for y in np.linspace(low, high, 9).tolist()]


@styled
def similarity_map(similarity: pd.DataFrame, changes: Sequence[int], title: str, metric: str) -> Figure:
    """L × L heat map of one metric between layers' representations, with the layers of `changes` marked on both axes.

    Layers that are alike are bright, whether the metric is of likeness or of distance. A pair whose value is NaN or that
    has no row is hatched grey, never given a colour of the scale.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    values_LL = similarity.pivot(index="layer_i", columns="layer_j", values="value").astype(float)
    n_layers = int(max(values_LL.index.max(), values_LL.columns.max())) + 1
    values_LL = values_LL.reindex(index=range(n_layers), columns=range(n_layers))
    values = values_LL.to_numpy()
    finite = values[np.isfinite(values)]
    low = math.floor(finite.min() * 10) / 10 if len(finite) else 0.0
    apart = measures_distance(metric)
    high = max(0.0 if apart else 1.0, float(finite.max()) if len(finite) else 1.0)

    figure = Figure(figsize=(SIZE[0], 4.6))
    what = "distance between" if apart else "similarity of"
    header(figure, title, f"{what} two layers' representations ({metric_name(metric)})")
    axes = figure.add_axes((0.115, 0.11, 0.72, 0.75))
    axes.set_facecolor(MISSING)
    axes.patch.set_hatch("////")
    colours = colormaps["viridis_r" if apart else "viridis"].with_extremes(bad=(0, 0, 0, 0))
    image = axes.imshow(
        np.ma.masked_invalid(values),
        origin="lower",
        cmap=colours,
        vmin=low,
        vmax=high,
        interpolation="none",
        aspect="equal",
    )
    axes.spines[:].set_visible(False)
    integer_ticks(axes.xaxis)
    integer_ticks(axes.yaxis)
    outside = [-0.018] * len(changes)
    for xs, ys, marker, transform in (
        (changes, outside, "^", axes.get_xaxis_transform()),
        (outside, changes, ">", axes.get_yaxis_transform()),
    ):
        axes.plot(
            xs, ys, marker, color=CHANGE_COLOUR, markersize=5, transform=transform, clip_on=False, label="changes"
        )
    axes.tick_params(length=0, pad=11)
    axes.set_xlabel("layer", labelpad=1)
    axes.set_ylabel("layer", labelpad=1)
    bar = figure.colorbar(image, cax=figure.add_axes((0.865, 0.11, 0.03, 0.75)))
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
    if changes:
        figure.text(0.835, 0.02, "▲ change-point layers", ha="right", color=CHANGE_COLOUR, fontsize=8.5)
    if len(finite) < values.size:
        figure.text(0.115, 0.02, "hatched: n/a", color=MUTED, fontsize=8.5)
    return figure


@styled
def dynamics_curve(dynamics: pd.DataFrame, title: str, metric: str) -> Figure:
    """δ by layer with its interval as a band where there is one, and the change-point layers marked and numbered.

    `dynamics` holds one model, data set, metric and neighbourhood.
    """
    neighbourhood = int(dynamics["neighbourhood"].iloc[0])
    figure, axes = frame(title, f"δ: mean {likeness_name(metric)} over the {neighbourhood} layers around each")
    rows = dynamics.sort_values("layer")
    layer_axis(axes, len(rows), "layer")
    _draw_dynamics(axes, rows)
    axes.margins(y=0.14)
    by_layer = rows.set_index("layer")
    for first, last in runs(change_points(rows)):
        run = by_layer.loc[first:last]
        foot = float(run["ci_low"].fillna(run["delta"]).min())
        note(axes, (first + last) / 2, foot, runs_text(range(first, last + 1)), CHANGE_COLOUR, above=False, bold=True)
    style: dict[str, Any] = {"ha": "right", "va": "bottom", "color": CHANGE_COLOUR, "fontsize": 8.5}
    axes.text(1, 1.02, "▼ change-point layers", transform=axes.transAxes, **style)
    return figure


@styled
def dynamics_against_loss(
    dynamics: pd.DataFrame,
    windows: pd.DataFrame,
    width: int,
    rho: tuple[float, float, float] | None,
    title: str,
    metric: str,
) -> Figure:
    """Mean test loss after substitution against δ at the window's centre, one point a window, numbered where there is room.

    `rho` is the rank correlation with its interval (value, low, high), for the heading; NaN counts as none.
    """
    heading = "no rank correlation was computed"
    if rho is not None and not math.isnan(rho[0]):
        heading = f"rank correlation ρ = {number(rho[0])} {interval(*rho[1:])} (95 % interval)"
    figure, axes = frame(title, heading)
    rows = swept(windows, width)
    delta_L = dynamics.sort_values("layer")["delta"].to_numpy(dtype=float)
    points = rows[["centre", "loss"]].assign(delta=delta_at(delta_L, rows["centre"]))
    points = points[np.isfinite(points.to_numpy(dtype=float)).all(axis=1)]
    axes.grid(True)
    axes.margins(0.08)
    axes.set_xlabel(f"δ ({printable(likeness_name(metric), 30)}) at the centre of windows of width {width}", labelpad=2)
    axes.set_position((*FRAME[:3], FRAME[3] - 0.025))
    axes.text(0, 1.02, "mean test loss (nats)", transform=axes.transAxes, color=MUTED, fontsize=8.5)
    changes = set(change_points(dynamics))
    points["marked"] = [{math.floor(centre), math.ceil(centre)} <= changes for centre in points["centre"]]
    for marked, colour, name in ((False, MUTED, "others"), (True, CHANGE_COLOUR, "changes")):
        part = points[points["marked"] == marked]
        axes.plot(part["delta"], part["loss"], "o", color=colour, markersize=4.5, markeredgecolor=PAPER, label=name)
    number_points(axes, points.sort_values("marked", ascending=False))
    return figure


@dataclass(frozen=True)
class CellCurves:
    """What the overview draws of one model on one data set."""

    title: str
    windows: pd.DataFrame
    width: int
    dynamics: pd.DataFrame


@styled
def overview(cells: Sequence[CellCurves], metric: str) -> Figure:
    """Small multiples: for every cell its loss curve above its δ, on one layer axis, change-point layers shaded in both."""
    from matplotlib.figure import Figure

    columns = 2 if len(cells) <= TWO_COLUMNS else 3
    rows = math.ceil(len(cells) / columns)
    width, height = 2.7 * columns, 2.55 * rows + 0.35
    figure = Figure(figsize=(width, height))
    names = (
        ("● loss (nats)", LOSS_COLOUR),
        (f"▬ δ ({printable(likeness_name(metric), 40)})", DELTA_COLOUR),
        ("■ change-point layers", SHADE),
    )
    write_row(figure, names, 0.12 / width, 1 - 0.16 / height)
    margins = {"left": 0.42 / width, "right": 1 - 0.1 / width, "top": 1 - 0.52 / height, "bottom": 0.36 / height}
    grid = figure.add_gridspec(rows, columns, **margins, hspace=0.32, wspace=0.24)
    for place, cell in enumerate(cells):
        inner = grid[place // columns, place % columns].subgridspec(2, 1, height_ratios=(1.25, 1), hspace=0.18)
        loss_axes = figure.add_subplot(inner[0])
        delta_axes = figure.add_subplot(inner[1], sharex=loss_axes)
        title = printable(cell.title)
        named = loss_axes.set_title(title, fontsize=8.5, fontweight="bold", color=INK, loc="left", pad=4)
        fit(named, loss_axes.get_position().x1)
        layer_axis(loss_axes, max(_depth(cell.windows), len(cell.dynamics)), None)
        loss_axes.tick_params(labelbottom=False)
        _draw_losses(loss_axes, swept(cell.windows, cell.width), small=True)
        loss_axes.axhline(_loss_of(cell.windows, "tuned"), color=INK, linewidth=0.8)
        _draw_dynamics(delta_axes, cell.dynamics.sort_values("layer"), small=True)
        for axes in (loss_axes, delta_axes):
            for layer in change_points(cell.dynamics):
                axes.axvspan(layer - 0.5, layer + 0.5, color=CHANGE_COLOUR, alpha=0.14, linewidth=0, zorder=0)
            axes.grid(True, axis="y")
            axes.tick_params(labelsize=7.5, length=0, pad=2)
            axes.locator_params(axis="y", nbins=3)
            axes.margins(y=0.12)
        if place >= len(cells) - columns:
            delta_axes.set_xlabel("layer", fontsize=8, labelpad=1)
    return figure


# Parts of figures -----------------------------------------------------------------------------------------------------


def _depth(windows: pd.DataFrame) -> int:
    return int(windows["stop"].max())


def _loss_of(windows: pd.DataFrame, role: str) -> float:
    found = windows.loc[windows["role"] == role, "loss"]
    return float(found.iloc[0]) if len(found) else math.nan


def _windows_text(width: int) -> str:
    return "one layer at a time" if width == 1 else f"{width} layers at a time"


def _loss_limits(windows: pd.DataFrame, rows: pd.DataFrame) -> tuple[float, float]:
    """The loss axis: all windows with their bars and the tuned line; the all-base line unless it would flatten them."""
    spread = rows["cost_high"] - rows["cost"], rows["cost"] - rows["cost_low"]
    ends = [
        rows["loss"] + spread[0].fillna(0),
        rows["loss"] - spread[1].fillna(0),
        windows.loc[windows["role"] == "tuned", "loss"],
    ]
    shown = pd.concat(ends)
    shown = shown[np.isfinite(shown)]
    if shown.empty:
        return 0.0, 1.0
    low, high = float(shown.min()), float(shown.max())
    everything = _loss_of(windows, "all")
    if everything <= high + 2 * (high - low):
        low, high = min(low, everything), max(high, everything)
    room = (high - low) or 0.1
    return low - 0.14 * room, high + 0.14 * room


def _draw_losses(axes: Axes, rows: pd.DataFrame, small: bool = False) -> None:
    x, y = rows["centre"], rows["loss"]
    bars = [rows["cost"] - rows["cost_low"], rows["cost_high"] - rows["cost"]]
    axes.errorbar(x, y, yerr=bars, fmt="none", color=LOSS_COLOUR, elinewidth=0.9 if small else 1.4)
    axes.plot(x, y, "-", color=LOSS_COLOUR, linewidth=1.0, alpha=0.55, label="path")
    axes.plot(x, y, "o", color=LOSS_COLOUR, markersize=2.4 if small else 4, label="losses")


def _draw_dynamics(axes: Axes, rows: pd.DataFrame, small: bool = False) -> None:
    layers, delta = rows["layer"].to_numpy(dtype=float), rows["delta"].to_numpy(dtype=float)
    low, high = rows["ci_low"].to_numpy(dtype=float), rows["ci_high"].to_numpy(dtype=float)
    if np.isfinite(low).any():
        axes.fill_between(layers, low, high, color=DELTA_COLOUR, alpha=0.18, linewidth=0, label="band")
    axes.plot(layers, delta, "-o", color=DELTA_COLOUR, linewidth=1.2, markersize=0 if small else 3, label="delta")
    if not small:
        chosen = rows[rows["layer"].isin(change_points(rows))]
        axes.plot(
            chosen["layer"],
            chosen["delta"],
            "v",
            color=CHANGE_COLOUR,
            markersize=7,
            markeredgecolor=PAPER,
            label="changes",
        )
