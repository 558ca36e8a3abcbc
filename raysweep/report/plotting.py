"""The look that the report's figures share, the parts they are made of, and how one is saved.

Figures are made without pyplot, so that no state is left behind. What is drawn is figures.py's. matplotlib is imported by the
functions, so that importing this module is cheap.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
import pandas as pd

from raysweep.report.summaries import rows_of
from raysweep.store.artifacts import publish

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_P = ParamSpec("_P")
_R = TypeVar("_R")

# Okabe and Ito's palette, told apart under every common colour blindness.
LOSS_COLOUR = "#0072B2"
DELTA_COLOUR = "#00795A"  # their bluish green, darkened for thin lines on white
CHANGE_COLOUR = "#D55E00"
ATTENTION_COLOUR, MLP_COLOUR = "#A8497F", "#7A5B00"  # their reddish purple and orange, darkened likewise
INK, MUTED, FAINT = "#1c2530", "#5b6673", "#c9d0d8"

_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib, so every machine draws the same
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,  # a name with two dollar signs is a name
    "axes.edgecolor": FAINT,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#e8ebef",
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "hatch.color": "#8a939d",
    "hatch.linewidth": 0.6,
    "svg.fonttype": "path",
    "svg.hashsalt": "raysweep",
}
# 4.8 in: at 330 px across, a phone's, the type above is still about 9 px high.
SIZE = (4.8, 3.2)
FRAME = (0.115, 0.15, 0.855, 0.655)  # one frame for all curves, so that layers line up from figure to figure


def styled(draw: Callable[_P, _R]) -> Callable[_P, _R]:
    """Run `draw` under the report's own style, whatever the user's matplotlibrc says, and restore theirs."""

    @functools.wraps(draw)
    def drawn(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        import matplotlib.style

        with matplotlib.style.context(["default", _STYLE]):
            return draw(*args, **kwargs)

    return drawn


def frame(title: str, subtitle: str) -> tuple[Figure, Axes]:
    """A figure with its heading, and the axes that every curve is drawn in."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE)
    header(figure, title, subtitle)
    return figure, figure.add_axes(FRAME)


def header(figure: Figure, title: str, subtitle: str) -> None:
    """Write the heading of a figure: a bold line and a muted one below it."""
    height = figure.get_figheight()
    figure.text(0.02, 1 - 0.1 / height, printable(title), fontsize=10.5, fontweight="bold", va="top")
    figure.text(0.02, 1 - 0.32 / height, printable(subtitle, 90), color=MUTED, va="top")


def printable(text: str, limit: int = 52) -> str:
    """`text` on one line, without characters an SVG may not hold, and cut to `limit`."""
    line = "".join(character if character.isprintable() else " " for character in text)
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def layer_axis(axes: Axes, n_layers: int, label: str | None) -> None:
    """Make the horizontal axis that of `n_layers` layers, the same in every figure of one model."""
    axes.set_xlim(-0.7, n_layers - 0.3)
    integer_ticks(axes.xaxis)
    axes.tick_params(length=0)
    axes.grid(True, axis="y")
    if label:
        axes.set_xlabel(label, labelpad=2)


def integer_ticks(axis: Any) -> None:
    """Tick an axis at whole numbers, as layers are counted."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=9, integer=True, steps=[1, 2, 4, 5, 10]))


def note(
    axes: Axes, x: float, y: float, text: str, colour: str, *, above: bool, ha: str = "center", bold: bool = False
) -> None:
    """A direct label just above or below the data point (x, y), on a white patch so that lines do not cross it."""
    axes.annotate(
        text,
        (x, y),
        xytext=(0, 3 if above else -3),
        textcoords="offset points",
        va="bottom" if above else "top",
        ha=ha,
        color=colour,
        fontsize=8.5,
        fontweight="bold" if bold else "normal",
        bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.6},
        zorder=4,
    )


def number_points(axes: Axes, points: pd.DataFrame) -> None:
    """Write each point's centre beside it, on the side that is freest; not at all where that would hide others.

    `points` has centre, delta, loss and marked; those marked, which come first, are always numbered.
    """
    axes.autoscale_view()
    places = axes.transData.transform(points[["delta", "loss"]].to_numpy()) * 72 / axes.figure.dpi  # in points
    taken = [(x - 2.5, y - 2.5, x + 2.5, y + 2.5) for x, y in places]
    for (x, y), point in zip(places, rows_of(points), strict=True):
        text = f"{point.centre:g}"
        width, height = 5.0 * len(text), 7.0
        boxes = []
        for turn in np.radians([45, 0, 90, 135, 180, 270, 315, 225]):
            left, low = x + math.cos(turn) * (4.5 + width / 2) - width / 2, y + math.sin(turn) * 8 - height / 2
            boxes.append((left, low, left + width, low + height))
        hidden, best = min((sum(_overlap(box, other) for other in taken), box) for box in boxes)
        if hidden > 0.3 * width * height and not point.marked:
            continue
        taken.append(best)
        axes.annotate(
            text,
            (point.delta, point.loss),
            xytext=(best[0] + width / 2 - x, best[1] + height / 2 - y),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=7.5,
            color=CHANGE_COLOUR if point.marked else MUTED,
        )


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


@styled
def save(figure: Figure, stem: Path) -> tuple[Path, Path]:
    """Write `figure` as <stem>.png (200 dots an inch) and <stem>.svg, and return both paths.

    The same figure gives the same bytes: SVG ids come from a fixed salt, and no date is written.
    """
    import warnings

    paths = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.svg")
    with warnings.catch_warnings():
        # A name in a script that the shipped font lacks is drawn as boxes here; the page beside it has the name itself.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        publish(paths[0], lambda path: figure.savefig(path, dpi=200))
        publish(paths[1], lambda path: figure.savefig(path, metadata={"Date": None}))
    return paths
