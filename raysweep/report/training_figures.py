"""The figures of trainings: loss over steps, an arm a line, and the area between two arms.

As figures.py's, they take rows of the result tables and return a `matplotlib.figure.Figure`; what they mean in words is
training.py's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raysweep.report.labels import fit, write_rows
from raysweep.report.plotting import (
    ATTENTION_COLOUR,
    CHANGE_COLOUR,
    DELTA_COLOUR,
    FRAME,
    INK,
    LOSS_COLOUR,
    MLP_COLOUR,
    MUTED,
    PAPER,
    SIZE,
    frame,
    header,
    integer_ticks,
    printable,
    styled,
)
from raysweep.report.words import decimals_for, interval, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_KNOWN = {"critical": (CHANGE_COLOUR, "o"), "non_critical": (LOSS_COLOUR, "s"), "all": (INK, "^")}
_OTHERS = ((DELTA_COLOUR, "v"), (ATTENTION_COLOUR, "D"), (MLP_COLOUR, "P"), (MUTED, "X"))
_ROW = 0.058  # of the figure's height: a row of lines' names
_BAND_ROOM = 0.35  # how far beyond the lines' own range the scale goes for the bands, as a share of it


class ArmCurve(NamedTuple):
    """An arm's mean loss over seeds at each step [T], with its interval (NaN where there is none)."""

    arm: str
    name: str
    steps: NDArray[np.int64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@styled
def arm_curves(curves: Sequence[ArmCurve], seeds: int, title: str) -> Figure:
    """Mean test loss over steps, a line an arm; the band is each step's interval over seeds, cut at the scale's ends."""
    over = "one seed" if seeds == 1 else f"mean of {seeds} seeds"
    figure, axes = frame(title, f"test loss (nats) over steps of training, {over}")
    others = iter(_OTHERS * len(curves))
    names = []
    for curve in curves:
        colour, marker = _KNOWN.get(curve.arm) or next(others)
        if np.isfinite(curve.low).any():
            axes.fill_between(
                curve.steps,
                curve.low,
                curve.high,
                color=colour,
                alpha=0.13,
                linewidth=0,
                label=f"band {curve.arm}",
            )
        many = len(curve.steps) > 30
        axes.plot(curve.steps, curve.mean, "-", color=colour, linewidth=1.3, label=f"line {curve.arm}", zorder=3)
        axes.plot(
            curve.steps,
            curve.mean,
            marker,
            color=colour,
            markersize=4,
            markevery=max(1, len(curve.steps) // 15) if many else 1,
            label=curve.arm,
            zorder=3,
        )
        names.append((f"{_GLYPHS[marker]} {printable(curve.name, 24)}", colour))
    _names(figure, axes, names)
    axes.set_ylim(*_limits(curves))
    _step_axis(axes)
    return figure


@styled
def area_dots(rows: pd.DataFrame, names: Sequence[str], title: str) -> Figure:
    """The area between each pair of arms, a dot with its interval; left of 0 the arm that is named first is below.

    `rows` are those of measure `area`, with value, ci_low and ci_high, and `names` what each is called, from the top downwards.
    """
    from matplotlib.figure import Figure

    height = 1.05 + 0.52 * len(rows)
    figure = Figure(figsize=(SIZE[0], height))
    header(figure, title, "area between test losses ÷ steps (nats); left: the first is lower")
    axes = figure.add_axes((0.04, 0.4 / height, 0.92, 1 - 1.0 / height))
    axes.axvline(0, color=INK, linewidth=1.1)
    for place, ((_, row), name) in enumerate(zip(rows.iterrows(), names, strict=True)):
        value, low, high = float(row["value"]), float(row["ci_low"]), float(row["ci_high"])
        colour = LOSS_COLOUR if low > 0 or high < 0 else MUTED
        style: dict[str, Any] = {"fontsize": 8.5, "va": "center", "transform": axes.get_yaxis_transform(), "zorder": 4}
        style["bbox"] = {"facecolor": PAPER, "alpha": 0.75, "linewidth": 0, "pad": 0.6}
        named = axes.text(0, place - 0.3, printable(name), color=INK, fontweight="bold", **style)
        told = "n/a"
        if math.isfinite(value):
            axes.plot([value], [place + 0.08], "o", color=colour, markersize=6, label="areas", zorder=3)
            told = number(value, 3, signed=True)
        if math.isfinite(low) and math.isfinite(high):
            axes.plot([low, high], [place + 0.08] * 2, color=colour, linewidth=1.8, label="intervals")
            decimals = decimals_for(low, high, spare=1)
            told = f"{number(value, decimals, signed=True)} {interval(low, high, decimals)}"
        fit(named, axes.text(1, place - 0.3, told, color=MUTED, ha="right", **style))
    axes.set_ylim(len(rows) - 0.55, -0.65)
    axes.margins(x=0.06)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0)
    axes.locator_params(axis="x", nbins=7)
    axes.grid(True, axis="x")
    return figure


@styled
def finetune_curves(train: pd.DataFrame, test: pd.DataFrame, title: str) -> Figure:
    """Training and test loss over the steps of one fine-tuning; both have step and loss, and either may be empty."""
    figure, axes = frame(title, "loss (nats) over steps of fine-tuning")
    names = []
    for rows, name, label, colour, marker, alpha in (
        (test, "test", "● test examples", LOSS_COLOUR, "o", 1.0),
        (train, "train", "─ training batches", MUTED, "", 0.8),
    ):
        if len(rows):
            many = len(rows) > 30
            style: dict[str, Any] = {
                "linewidth": 1.0 if not marker else 1.3,
                "markersize": 2.4 if many else 4,
                "alpha": alpha,
            }
            axes.plot(rows["step"], rows["loss"], "-", marker=marker, color=colour, label=name, **style)
            names.append((label, colour))
    _names(figure, axes, names)
    axes.margins(x=0.02, y=0.1)
    _step_axis(axes)
    return figure


_GLYPHS = {"o": "●", "s": "■", "^": "▲", "v": "▼", "D": "◆", "P": "✚", "X": "✖"}


def _names(figure: Figure, axes: Axes, parts: Sequence[tuple[str, str]]) -> None:
    """Write the lines' names above the axes, on as many rows as they need; the axes make room for them."""
    left, bottom, wide, tall = FRAME
    rows = write_rows(figure, parts, left, bottom + tall, line=_ROW)
    axes.set_position((left, bottom, wide, tall - 0.03 - _ROW * (rows - 1)))


def _step_axis(axes: Axes) -> None:
    integer_ticks(axes.xaxis)
    axes.tick_params(length=0)
    axes.grid(True, axis="y")
    axes.set_xlabel("step", labelpad=2)


def _limits(curves: Sequence[ArmCurve]) -> tuple[float, float]:
    """The loss axis: all lines, and of their bands what is no farther off than a share of the lines' own range."""
    lines = np.concatenate([curve.mean for curve in curves])
    ends = np.concatenate([values for curve in curves for values in (curve.low, curve.high)])
    lines, ends = lines[np.isfinite(lines)], ends[np.isfinite(ends)]
    if not len(lines):
        return 0.0, 1.0
    low, high = float(lines.min()), float(lines.max())
    room = (high - low) or 0.1
    if len(ends):
        low = max(min(low, float(ends.min())), low - _BAND_ROOM * room)
        high = min(max(high, float(ends.max())), high + _BAND_ROOM * room)
    return low - 0.05 * room, high + 0.05 * room
