"""The figures of changes that are no complete windows (sets, parts of layers, steps between the models, the other direction), and
of every window at once.

As figures.py's, they take summaries and return a `matplotlib.figure.Figure`; what they mean in words is change_pictures.py's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from raysweep.report.labels import fit, write_row
from raysweep.report.plotting import (
    ATTENTION_COLOUR,
    CHANGE_COLOUR,
    FRAME,
    HATCH,
    INK,
    LOSS_COLOUR,
    MISSING,
    MLP_COLOUR,
    MUTED,
    PAPER,
    SIZE,
    frame,
    header,
    integer_ticks,
    layer_axis,
    line_note,
    note,
    printable,
    styled,
)
from raysweep.report.summaries import Changed, Window, changes_of
from raysweep.report.words import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BELOW_LEGEND = (*FRAME[:3], FRAME[3] - 0.025)


@styled
def set_bars(sets: Sequence[tuple[str, Changed, Window | None]], title: str) -> Figure:
    """The cost of each set with its 95 % interval; below it that of the costliest window of as many layers, where there is one.

    `sets` has the name, the set and the window of each, from the top downwards.
    """
    from matplotlib.figure import Figure

    height = 0.95 + 0.56 * len(sets)
    figure = Figure(figsize=(SIZE[0], height))
    header(figure, title, "cost (nats) of a set of layers replaced with the base model's")
    axes = figure.add_axes((0.04, 0.34 / height, 0.92, 1 - 0.95 / height))
    for place, (name, chosen, window) in enumerate(sets):
        style: dict[str, Any] = {"fontsize": 8.5, "va": "center", "transform": axes.get_yaxis_transform(), "zorder": 4}
        style["bbox"] = {"facecolor": PAPER, "linewidth": 0, "pad": 0.6}
        named = axes.text(0, place - 0.32, printable(name), color=INK, fontweight="bold", **style)
        _bar(axes, place, chosen, LOSS_COLOUR, "sets")
        if window is None:
            fit(named, 0.985, smaller=False)
        else:
            _bar(axes, place + 0.26, window, MUTED, "windows")
            text = f"costliest window: {window.span}"
            fit(named, axes.text(1, place - 0.32, text, color=MUTED, ha="right", **style), smaller=False)
    axes.axvline(0, color=INK, linewidth=1.1)
    axes.set_ylim(len(sets) - 0.45, -0.6)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0)
    axes.grid(True, axis="x")
    return figure


def _bar(axes: Axes, place: float, shown: Changed | Window, colour: str, label: str) -> None:
    if math.isfinite(shown.cost):
        axes.barh(place, shown.cost, height=0.2, color=colour, alpha=0.55, label=label)
    if math.isfinite(shown.cost_low):
        axes.plot(
            [shown.cost_low, shown.cost_high], [place, place], color=colour, linewidth=1.6, label=f"{label} interval"
        )


@styled
def module_curves(whole: pd.DataFrame, parts: pd.DataFrame, width: int, n_layers: int, title: str) -> Figure:
    """The cost of each window of `width`, whole (rows of `window_losses`) and by its parts (of `change_losses`), by its centre."""
    what = "one layer" if width == 1 else f"{width} layers"
    figure, axes = frame(title, f"cost (nats) of {what} replaced, complete and by parts")
    axes.set_position(_BELOW_LEGEND)
    layer_axis(axes, n_layers, "centre of the window (layer)")
    axes.axhline(0, color=INK, linewidth=1.1)
    names = []
    for rows, name, label, marker, colour in (
        (whole, "whole", "● complete window", "o", LOSS_COLOUR),
        (parts[parts["kind"] == "attention"], "attention", "■ attention alone", "s", ATTENTION_COLOUR),
        (parts[parts["kind"] == "mlp"], "mlp", "▲ MLP alone", "^", MLP_COLOUR),
    ):
        if len(rows):
            _curve(axes, rows.sort_values("centre"), "cost", name, marker, colour)
            names.append((label, colour))
    write_row(figure, names, FRAME[0], FRAME[1] + FRAME[3] + 0.015)
    axes.margins(y=0.1)
    return figure


def _curve(axes: Axes, rows: pd.DataFrame, measure: str, name: str, marker: str, colour: str) -> None:
    """`measure` by centre, with the interval of the cost drawn around it."""
    bars = [rows["cost"] - rows["cost_low"], rows["cost_high"] - rows["cost"]]
    axes.errorbar(rows["centre"], rows[measure], yerr=bars, fmt="none", color=colour, elinewidth=1.1)
    axes.plot(rows["centre"], rows[measure], "-", color=colour, linewidth=1.0, alpha=0.55, label=f"{name} path")
    axes.plot(rows["centre"], rows[measure], marker, color=colour, markersize=3.6, label=name)


@styled
def coefficient_lines(steps: pd.DataFrame, names: Sequence[str], title: str, subtitle: str) -> Figure:
    """Cost over the coefficient, one line a window or set; the one that costs most at 1 in colour, with its intervals.

    `steps` has the rows of `change_losses` of one width, those at 1 among them; `names` those of its distinct `layers`. A
    coefficient of 0 is the tuned model, whose cost is 0. The dashed line is what the highlighted one would cost in proportion.
    """
    figure, axes = frame(title, subtitle)
    axes.set_position(_BELOW_LEGEND)
    axes.axhline(0, color=INK, linewidth=1.1)
    axes.grid(True, axis="y")
    axes.tick_params(length=0)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("coefficient: 0 tuned, 1 base", labelpad=2)
    start = {"coefficient": 0.0, "cost": 0.0, "cost_low": 0.0, "cost_high": 0.0}
    ends = steps[steps["coefficient"] == 1].set_index("layers")["cost"]
    top = str(ends.idxmax()) if ends.notna().any() else ""
    for (layers, rows), name in zip(steps.groupby("layers", sort=False), names, strict=True):
        rows = pd.concat([pd.DataFrame([start]), rows[rows["coefficient"] > 0]]).sort_values("coefficient")
        if layers != top:
            axes.plot(
                rows["coefficient"], rows["cost"], "-", color=MUTED, linewidth=0.8, alpha=0.6, label=f"line {layers}"
            )
            continue
        bars = [rows["cost"] - rows["cost_low"], rows["cost_high"] - rows["cost"]]
        axes.errorbar(
            rows["coefficient"], rows["cost"], yerr=bars, fmt="none", color=LOSS_COLOUR, elinewidth=1.4, zorder=5
        )
        axes.plot(rows["coefficient"], rows["cost"], "-o", color=LOSS_COLOUR, markersize=4, zorder=5, label="top")
        axes.plot([0, 1], [0, ends[top]], color=LOSS_COLOUR, linewidth=1.0, linestyle=(0, (5, 3)), label="proportional")
        style: dict[str, Any] = {"fontsize": 8.5, "fontweight": "bold", "va": "bottom", "color": LOSS_COLOUR}
        fit(axes.text(0, 1.02, f"● {printable(name)}", transform=axes.transAxes, **style), 0.985)
    axes.margins(y=0.1)
    return figure


@styled
def reverse_curve(gains: pd.DataFrame, width: int, own: tuple[float, float], n_layers: int, title: str) -> Figure:
    """Loss of the base model with each window of `width` of the tuned one, by its centre, between both models' own losses.

    `gains` is from `Cell.gains`: bars are the interval of the difference to the base model on the same examples. `own` are the
    losses of the tuned and of the base model; the window with the lowest loss is named.
    """
    what = "one tuned layer" if width == 1 else f"{width} tuned layers"
    figure, axes = frame(title, f"mean test loss (nats) of the base with {what} in it")
    layer_axis(axes, n_layers, "centre of the window (layer)")
    rows = gains[gains["width"] == width].sort_values("centre")
    _curve(axes, rows, "loss", "losses", "o", LOSS_COLOUR)
    shown = rows["loss"].to_numpy(dtype=float)
    middle = float(np.median(shown[np.isfinite(shown)])) if np.isfinite(shown).any() else math.nan
    levels = (own[0], "tuned model", INK), (own[1], "base model", MUTED)
    for level, name, colour in levels:
        if math.isfinite(level):
            axes.axhline(level, color=colour, linewidth=1.1, label=name)
    if np.isfinite(shown).any():
        best = next(changes_of(rows.loc[[rows["loss"].idxmin()]]))
        disc: dict[str, Any] = {"color": LOSS_COLOUR, "markersize": 7.5, "markeredgecolor": PAPER}
        axes.plot([best.centre], [best.loss], "o", **disc, zorder=5, label="best")
        side = "left" if best.centre < n_layers / 4 else "right" if best.centre > n_layers * 3 / 4 else "center"
        foot = best.loss if math.isnan(best.cost_low) else best.loss - (best.cost - best.cost_low)
        note(axes, best.centre, foot, best.name, LOSS_COLOUR, above=False, ha=side, bold=True)
    for level, name, colour in levels:
        if math.isfinite(level):
            line_note(axes, level, f"{name}: {number(level)}", colour, above=level > middle)
    axes.margins(y=0.16)
    return figure


@styled
def window_triangle(windows: pd.DataFrame, n_layers: int, title: str, subtitle: str) -> Figure:
    """The cost of every window as a heat map: its first layer across, its last layer upwards.

    `windows` has start, stop, cost, cost_low and cost_high. A window whose interval includes 0, or that has none, carries a dot;
    one that has no finite cost or was not measured is hatched grey, never given a colour of the scale.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    cost_LL = np.full((n_layers, n_layers), np.nan)
    first, last = windows["start"].to_numpy(dtype=int), windows["stop"].to_numpy(dtype=int) - 1
    cost_LL[last, first] = windows["cost"].where(np.isfinite(windows["cost"]))
    figure = Figure(figsize=(SIZE[0], 4.6))
    header(figure, title, subtitle)
    axes = figure.add_axes((0.115, 0.11, 0.72, 0.75))
    layers = np.arange(n_layers)
    missing = np.isnan(cost_LL) & (layers[:, None] >= layers)
    for top, left in zip(*np.nonzero(missing), strict=True):
        style: dict[str, Any] = {"facecolor": MISSING, "edgecolor": HATCH, "linewidth": 0, "hatch": "////"}
        axes.add_patch(Rectangle((left - 0.5, top - 0.5), 1, 1, label="missing", **style))
    colours = colormaps["viridis"].with_extremes(bad=(0, 0, 0, 0))
    image = axes.imshow(
        np.ma.masked_invalid(cost_LL), origin="lower", cmap=colours, interpolation="none", aspect="equal", zorder=2
    )
    unsure = (windows["cost_low"].isna() | (windows["cost_low"] <= 0)) & (
        windows["cost_high"].isna() | (windows["cost_high"] >= 0)
    )
    unsure &= np.isfinite(windows["cost"])
    axes.plot(
        first[unsure],
        last[unsure],
        "o",
        color=CHANGE_COLOUR,
        markersize=40 / max(n_layers, 16),
        label="unsure",
        zorder=3,
    )
    axes.spines[:].set_visible(False)
    integer_ticks(axes.xaxis)
    integer_ticks(axes.yaxis)
    axes.tick_params(length=0)
    axes.set_xlabel("first layer replaced", labelpad=1)
    axes.set_ylabel("last layer replaced", labelpad=1)
    bar = figure.colorbar(image, cax=figure.add_axes((0.865, 0.11, 0.03, 0.75)))
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
    if unsure.any():
        figure.text(0.82, 0.14, "● not significantly different from 0", ha="right", color=CHANGE_COLOUR, fontsize=8.5)
    if missing.any():
        figure.text(0.82, 0.18, "hatched: n/a", ha="right", color=MUTED, fontsize=8.5)
    return figure
