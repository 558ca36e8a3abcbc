"""The look that the report's figures share, the parts they are made of, and how one is saved.

Figures are made without pyplot, so that no state is left behind. What is drawn is figures.py's. matplotlib is imported by the
functions, so that importing this module is cheap.
"""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
import pandas as pd

from raysweep.report.labels import Place, fit, place_note, settle
from raysweep.report.summaries import rows_of
from raysweep.store.artifacts import publish

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_P = ParamSpec("_P")
_R = TypeVar("_R")

# Okabe and Ito's palette, distinguishable under every common colour blindness.
LOSS_COLOUR = "#0072B2"
DELTA_COLOUR = "#00795A"  # their bluish green, darkened for thin lines on white
CHANGE_COLOUR = "#D55E00"
ATTENTION_COLOUR, MLP_COLOUR = "#A8497F", "#7A5B00"  # their reddish purple and orange, darkened likewise
INK, MUTED, FAINT, PAPER = "#1c2530", "#5b6673", "#c9d0d8", "#ffffff"
MISSING, HATCH, GRID = "#dfe3e8", "#8a939d", "#e8ebef"
SHADE = "#e7a06f"  # of the words that name the shaded layers

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
    "grid.color": GRID,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "hatch.color": HATCH,
    "hatch.linewidth": 0.6,
    "svg.fonttype": "path",
    "svg.hashsalt": "raysweep",
}
# 4.8 in: at 330 px across, a phone's, the type above is still about 9 px high.
SIZE = (4.8, 3.2)
FRAME = (0.115, 0.15, 0.855, 0.655)  # one frame for all curves, so that layers line up from figure to figure


def styled(draw: Callable[_P, _R]) -> Callable[_P, _R]:
    """Run `draw` under the report's own style, whatever the user's matplotlibrc says; settle the texts of the figure it returns."""

    @functools.wraps(draw)
    def drawn(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        import matplotlib.style
        from matplotlib.figure import Figure

        with matplotlib.style.context(["default", _STYLE]), shipped_font():
            result = draw(*args, **kwargs)
            if isinstance(result, Figure):
                settle(result)
            return result

    return drawn


@contextlib.contextmanager
def shipped_font() -> Iterator[None]:
    """A name in a script that the shipped font lacks is drawn as boxes in figures, without a warning; the page has the name itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def frame(title: str, subtitle: str) -> tuple[Figure, Axes]:
    """A figure with its heading, and the axes that every curve is drawn in."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE)
    header(figure, title, subtitle)
    return figure, figure.add_axes(FRAME)


def header(figure: Figure, title: str, subtitle: str) -> None:
    """Write the heading of a figure: a bold line and a muted one below it, both cut to the figure's width."""
    height = figure.get_figheight()
    fit(figure.text(0.02, 1 - 0.1 / height, printable(title), fontsize=10.5, fontweight="bold", va="top"), 0.985)
    fit(figure.text(0.02, 1 - 0.32 / height, printable(subtitle), color=MUTED, va="top"), 0.985)


def printable(text: str, limit: int = 200) -> str:
    """`text` on one line, without characters an SVG may not hold; of one longer than `limit`, its start and its end."""
    line = "".join(character if character.isprintable() else " " for character in text)
    half = limit // 2
    return line if len(line) <= limit else f"{line[: limit - half - 1]}…{line[len(line) - half :]}"


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
    """A direct label at the data point (x, y), above or below it: `above` says which is better. See labels.py."""
    sides = [above, not above]
    aligned = dict.fromkeys((ha, "center", "left", "right"))
    _noted(axes, text, [_at(x, y, up, side) for up in sides for side in aligned], colour, bold=bold)


def line_note(
    axes: Axes, y: float, text: str, colour: str, *, above: bool, hides: Sequence[tuple[float, float]] = ()
) -> None:
    """The name of a horizontal line at `y`, above or below it, at the right end if there is room, else further left.

    Of several free places, it takes the one that covers fewest of the data points `hides`.
    """
    left, right = axes.get_xlim()
    ends = ((right, "right"), (left, "left"), ((left + right) / 2, "center"))
    _noted(
        axes, text, [_at(x, y, up, ha) for up in (above, not above) for x, ha in ends], colour, bold=False, hides=hides
    )


def _at(x: float, y: float, above: bool, ha: str) -> Place:
    return Place((x, y), (0, 3 if above else -3), ha, "bottom" if above else "top")


def _noted(
    axes: Axes,
    text: str,
    places: Sequence[Place],
    colour: str,
    *,
    bold: bool,
    hides: Sequence[tuple[float, float]] = (),
) -> None:
    """A note on a patch of the paper's colour, so that lines do not cross it."""
    patch: dict[str, Any] = {"facecolor": PAPER, "alpha": 0.75, "linewidth": 0, "pad": 0.6}
    weight = "bold" if bold else "normal"
    place_note(axes, text, places, hides=hides, color=colour, fontsize=8.5, fontweight=weight, bbox=patch)


def number_points(axes: Axes, points: pd.DataFrame) -> None:
    """Write each point's centre next to it, on the side that is freest; not at all if that would hide others.

    `points` has centre, delta, loss and marked; those marked, which come first, may hide other points.
    """
    places = list(zip(points["delta"].astype(float), points["loss"].astype(float), strict=True))
    for at, point in zip(places, rows_of(points), strict=True):
        around = [
            Place(at, (9.0 * math.cos(turn), 8.0 * math.sin(turn)), "center", "center")
            for turn in np.radians([45, 0, 90, 135, 180, 270, 315, 225])
        ]
        colour, most = (CHANGE_COLOUR, 1.0) if point.marked else (MUTED, 0.3)
        place_note(axes, f"{point.centre:g}", around, hides=places, most=most, color=colour, fontsize=7.5)


@styled
def save(figure: Figure, stem: Path) -> tuple[Path, Path]:
    """Write `figure` as <stem>.png (200 dots an inch) and <stem>.svg, and return both paths.

    The same figure gives the same bytes: SVG ids come from a fixed salt, and no date is written.
    """
    paths = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.svg")
    publish(paths[0], lambda path: figure.savefig(path, dpi=200))
    publish(paths[1], lambda path: figure.savefig(path, metadata={"Date": None}))
    return paths
