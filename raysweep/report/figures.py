"""The report's figures, and the per-window summary that they and the page share.

Every drawing function takes data frames in the form of the result tables and returns a `matplotlib.figure.Figure`, with no
pyplot and no state left behind; `save` writes one as PNG and SVG, the same bytes for the same figure. What the figures mean in
words is the page's to say. matplotlib is imported by the functions, so that importing this module is cheap.

Words: a window is the decoder layers [start, stop) put back to the base model's; its centre is start + (width − 1) / 2; its
cost is the mean over examples of (loss under the window − loss of the tuned model untouched), in nats; δ is a layer's mean
similarity to its neighbourhood, and change-point layers are those of smallest δ.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

import numpy as np
import pandas as pd

from raysweep.numerics.correlation import delta_at
from raysweep.numerics.resampling import mean_interval
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
INK, MUTED, FAINT = "#1c2530", "#5b6673", "#c9d0d8"

TWO_COLUMNS = 8  # the most cells that the overview sets in two columns, which a phone can show

_METRICS = {"cka_linear": "linear CKA", "cka_linear_debiased": "debiased linear CKA", "cka_rbf": "RBF CKA"}

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
_SIZE = (4.8, 3.2)
_FRAME = (0.115, 0.15, 0.855, 0.655)  # one frame for all curves, so that layers line up from figure to figure


def _styled(draw: Callable[_P, _R]) -> Callable[_P, _R]:
    """Run `draw` under the report's own style, whatever the user's matplotlibrc says, and restore theirs."""

    @functools.wraps(draw)
    def styled(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        import matplotlib.style

        with matplotlib.style.context(["default", _STYLE]):
            return draw(*args, **kwargs)

    return styled


# Summaries ------------------------------------------------------------------------------------------------------------


def paired_losses(substitution: pd.DataFrame) -> pd.DataFrame:
    """Per-example losses side by side: index example_id, one column for each (start, stop), in nats.

    `substitution` holds one model and data set; only whole windows put back exactly (coefficient 1) are taken.
    """
    exact = (
        (substitution["kind"] == "window") & (substitution["coefficient"] == 1) & (substitution["estimator"] == "exact")
    )
    rows = substitution.loc[exact, ["example_id", "start", "stop", "loss"]].astype({"start": int, "stop": int})
    rows = rows.drop_duplicates(["example_id", "start", "stop"])
    return rows.pivot(index="example_id", columns=["start", "stop"], values="loss").sort_index(axis="columns")


def mean_difference(a_E: pd.Series[float], b_E: pd.Series[float]) -> tuple[float, float, float]:
    """Mean of a − b over the examples that have both, and its 95 % interval.

    All NaN without such an example; the interval is NaN for a single one, and where a difference is infinite.
    """
    difference_E = (a_E - b_E).dropna().to_numpy(dtype=float)
    if not len(difference_E):
        return math.nan, math.nan, math.nan
    low, high = mean_interval(difference_E) if np.isfinite(difference_E).all() else (math.nan, math.nan)
    return float(difference_E.mean()), low, high


class Window(NamedTuple):
    """One window's losses over the examples of one data set; also the columns of `window_losses`."""

    role: str  # tuned: nothing put back; window; all: every layer put back
    start: int
    stop: int
    width: int
    centre: float  # NaN where nothing is put back
    loss: float  # mean over the examples whose loss is not NaN, nats
    cost: float  # mean paired difference to the tuned model; NaN where that was not measured
    cost_low: float
    cost_high: float
    examples: int
    left_out: int  # losses that are NaN

    @property
    def name(self) -> str:
        """The layers put back, as a reader names them."""
        return layers_text(range(self.start, self.stop))


def window_losses(paired: pd.DataFrame, n_layers: int) -> pd.DataFrame:
    """One row for each column of `paired_losses`, from the tuned model untouched to all layers put back: `Window`s."""
    tuned_E = paired[(0, 0)] if (0, 0) in paired.columns else pd.Series(math.nan, index=paired.index)
    spans: Iterable[Any] = paired.columns
    windows = []
    for start, stop in spans:
        loss_E, width = paired[(start, stop)], stop - start
        windows.append(
            Window(
                "tuned" if width == 0 else "all" if width == n_layers else "window",
                start,
                stop,
                width,
                start + (width - 1) / 2 if width else math.nan,
                float(loss_E.mean()),
                *mean_difference(loss_E, tuned_E),
                int(loss_E.notna().sum()),
                int(loss_E.isna().sum()),
            )
        )
    return pd.DataFrame(windows, columns=Window._fields)


def rows_of(frame: pd.DataFrame) -> Iterator[Any]:
    """The rows as named tuples; a data frame does not tell the types of its columns."""
    return frame.itertuples(index=False)


def windows_of(windows: pd.DataFrame) -> Iterator[Window]:
    """The rows of `window_losses` as what they are."""
    return (Window(*row) for row in rows_of(windows))


def costliest(windows: pd.DataFrame, width: int) -> Window | None:
    """The window of `width` that costs most (by mean loss where there is no tuned model to compare with), or None."""
    rows = _swept(windows, width)
    measure = rows["cost"] if rows["cost"].notna().any() else rows["loss"]
    if not measure.notna().any():
        return None
    return next(windows_of(rows.loc[[measure.idxmax()]]))


def change_points(dynamics: pd.DataFrame) -> list[int]:
    """The change-point layers of one model, data set, metric and neighbourhood: the fifth of the layers ranked first."""
    chosen = dynamics["rank"].astype(float) <= max(1, round(len(dynamics) / 5))
    return sorted(int(layer) for layer in dynamics.loc[chosen, "layer"])


def metric_name(metric: str) -> str:
    """A metric's name as it is written in prose; the column's own word where there is no other."""
    return _METRICS.get(metric, metric)


def layers_text(layers: Iterable[int]) -> str:
    """Layers in ascending order, as runs: "layer 3", "layers 8–12", "layers 1, 10–13"."""
    text = ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in runs(layers))
    return f"layer {text}" if text.isdigit() else f"layers {text}"


def runs(layers: Iterable[int]) -> list[tuple[int, int]]:
    """Ascending layers as (first, last) of each run of consecutive ones."""
    found: list[tuple[int, int]] = []
    for layer in layers:
        if found and layer == found[-1][1] + 1:
            found[-1] = found[-1][0], layer
        else:
            found.append((layer, layer))
    return found


def number(value: float, decimals: int = 2, signed: bool = False) -> str:
    """A number with a true minus sign, none before a zero; "n/a" for NaN."""
    if math.isnan(value):
        return "n/a"
    return f"{value:{'+' if signed else ''}z.{decimals}f}".replace("-", "−")


def interval(low: float, high: float, decimals: int = 2) -> str:
    """ "[low, high]", or "[n/a]" where there is no interval."""
    return "[n/a]" if math.isnan(low) or math.isnan(high) else f"[{number(low, decimals)}, {number(high, decimals)}]"


# Figures --------------------------------------------------------------------------------------------------------------


@_styled
def loss_curve(windows: pd.DataFrame, width: int, title: str) -> Figure:
    """Mean test loss after each window of `width` is put back, by the window's centre.

    `windows` is from `window_losses`. Bars are the 95 % interval of the paired cost, drawn around the mean; horizontal lines
    are the tuned model untouched and the model with every layer put back.
    """
    figure, axes = _frame(title, f"mean test loss (nats) with {_windows_text(width)} put back to base")
    rows = _swept(windows, width)
    _layer_axis(axes, _depth(windows), "centre of the window (layer)")
    _draw_losses(axes, rows)
    low, high = _loss_limits(windows, rows)
    axes.set_ylim(low, high)
    tuned, everything = _loss_of(windows, "tuned"), _loss_of(windows, "all")
    right, middle = axes.get_xlim()[1], rows["loss"].median()
    decimals = max(2, 1 - math.floor(math.log10(high - low)))
    if not math.isnan(tuned):
        axes.axhline(tuned, color=INK, linewidth=1.1, label="tuned")
        _note(
            axes,
            right,
            tuned,
            f"tuned model, untouched: {number(tuned, decimals)}",
            INK,
            above=tuned > middle,
            ha="right",
        )
    if not math.isnan(everything):
        axes.axhline(everything, color=MUTED, linewidth=1.1, linestyle=(0, (5, 3)), label="all")
        beyond = everything > high
        text = f"all layers put back: {number(everything, decimals)}{' (above this scale ↑)' if beyond else ''}"
        _note(axes, right, min(everything, high), text, MUTED, above=everything > middle and not beyond, ha="right")
    top = costliest(windows, width)
    if top is not None:
        disc: dict[str, Any] = {"color": LOSS_COLOUR, "markersize": 7.5, "markeredgecolor": "white"}
        axes.plot([top.centre], [top.loss], "o", **disc, zorder=5, label="top")
        depth = top.centre / _depth(windows)
        side = "left" if depth < 0.25 else "right" if depth > 0.75 else "center"
        peak = top.loss if math.isnan(top.cost_high) else top.loss + top.cost_high - top.cost
        _note(axes, top.centre, peak, top.name, LOSS_COLOUR, above=True, ha=side, bold=True)
    return figure


@_styled
def similarity_map(similarity: pd.DataFrame, changes: Sequence[int], title: str, metric: str) -> Figure:
    """L × L heat map of one metric between layers' representations, with the layers of `changes` marked on both axes.

    A pair whose value is NaN or that has no row is hatched grey, never given a colour of the scale.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    values_LL = similarity.pivot(index="layer_i", columns="layer_j", values="value").astype(float)
    n_layers = int(max(values_LL.index.max(), values_LL.columns.max())) + 1
    values_LL = values_LL.reindex(index=range(n_layers), columns=range(n_layers))
    values = values_LL.to_numpy()
    finite = values[np.isfinite(values)]
    low = math.floor(finite.min() * 10) / 10 if len(finite) else 0.0
    high = max(1.0, float(finite.max())) if len(finite) else 1.0

    figure = Figure(figsize=(_SIZE[0], 4.6))
    _header(figure, title, f"similarity of two layers' representations ({metric_name(metric)})")
    axes = figure.add_axes((0.115, 0.11, 0.72, 0.75))
    axes.set_facecolor("#dfe3e8")
    axes.patch.set_hatch("////")
    colours = colormaps["viridis"].with_extremes(bad=(0, 0, 0, 0))
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
    _integer_ticks(axes.xaxis)
    _integer_ticks(axes.yaxis)
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


@_styled
def dynamics_curve(dynamics: pd.DataFrame, title: str, metric: str) -> Figure:
    """δ by layer with its interval as a band where there is one, and the change-point layers marked and numbered.

    `dynamics` holds one model, data set, metric and neighbourhood.
    """
    neighbourhood = int(dynamics["neighbourhood"].iloc[0])
    figure, axes = _frame(title, f"δ: mean {metric_name(metric)} over the {neighbourhood} layers around each")
    rows = dynamics.sort_values("layer")
    _layer_axis(axes, len(rows), "layer")
    _draw_dynamics(axes, rows)
    axes.margins(y=0.14)
    by_layer = rows.set_index("layer")
    for first, last in runs(change_points(rows)):
        run = by_layer.loc[first:last]
        foot = float(run["ci_low"].fillna(run["delta"]).min())
        name = str(first) if first == last else f"{first}–{last}"
        _note(axes, (first + last) / 2, foot, name, CHANGE_COLOUR, above=False, bold=True)
    style: dict[str, Any] = {"ha": "right", "va": "bottom", "color": CHANGE_COLOUR, "fontsize": 8.5}
    axes.text(1, 1.02, "▼ change-point layers", transform=axes.transAxes, **style)
    return figure


@_styled
def dynamics_against_loss(
    dynamics: pd.DataFrame,
    windows: pd.DataFrame,
    width: int,
    rho: tuple[float, float, float] | None,
    title: str,
    metric: str,
) -> Figure:
    """Mean test loss after substitution against δ at the window's centre, one point a window, numbered where there is room.

    `rho` is the rank correlation with its interval (value, low, high), for the heading.
    """
    heading = "no rank correlation was computed"
    if rho is not None:
        heading = f"ρ = {number(rho[0])} {interval(*rho[1:])} (rank correlation, 95 % interval)"
    figure, axes = _frame(title, heading)
    rows = _swept(windows, width)
    delta_L = dynamics.sort_values("layer")["delta"].to_numpy(dtype=float)
    points = rows[["centre", "loss"]].assign(delta=delta_at(delta_L, rows["centre"]))
    points = points[np.isfinite(points.to_numpy(dtype=float)).all(axis=1)]
    axes.grid(True)
    axes.margins(0.08)
    axes.set_xlabel(f"δ ({metric_name(metric)}) at the centre of windows of width {width}", labelpad=2)
    axes.set_position((*_FRAME[:3], _FRAME[3] - 0.025))
    axes.text(0, 1.02, "mean test loss (nats)", transform=axes.transAxes, color=MUTED, fontsize=8.5)
    changes = set(change_points(dynamics))
    points["marked"] = [{math.floor(centre), math.ceil(centre)} <= changes for centre in points["centre"]]
    for marked, colour, name in ((False, MUTED, "others"), (True, CHANGE_COLOUR, "changes")):
        part = points[points["marked"] == marked]
        axes.plot(part["delta"], part["loss"], "o", color=colour, markersize=4.5, markeredgecolor="white", label=name)
    _number_points(axes, points.sort_values("marked", ascending=False))
    return figure


@dataclass(frozen=True)
class CellCurves:
    """What the overview draws of one model on one data set; `dynamics` may be empty."""

    title: str
    windows: pd.DataFrame
    width: int
    dynamics: pd.DataFrame


@_styled
def overview(cells: Sequence[CellCurves], metric: str) -> Figure:
    """Small multiples: for every cell its loss curve above its δ, on one layer axis, change-point layers shaded in both."""
    from matplotlib.figure import Figure

    columns = 2 if len(cells) <= TWO_COLUMNS else 3
    rows = math.ceil(len(cells) / columns)
    width, height = 2.7 * columns, 2.55 * rows + 0.35
    figure = Figure(figsize=(width, height))
    across = 0.12
    for text, colour, space in (
        ("● loss (nats)", LOSS_COLOUR, 1.15),
        (f"▬ δ ({metric_name(metric)})", DELTA_COLOUR, 1.45),
        ("■ change-point layers", "#e7a06f", 0),
    ):
        figure.text(across / width, 1 - 0.16 / height, text, color=colour, va="center", fontsize=8.5)
        across += space
    margins = {"left": 0.4 / width, "right": 1 - 0.1 / width, "top": 1 - 0.52 / height, "bottom": 0.36 / height}
    grid = figure.add_gridspec(rows, columns, **margins, hspace=0.32, wspace=0.2)
    for place, cell in enumerate(cells):
        inner = grid[place // columns, place % columns].subgridspec(2, 1, height_ratios=(1.25, 1), hspace=0.12)
        loss_axes = figure.add_subplot(inner[0])
        delta_axes = figure.add_subplot(inner[1], sharex=loss_axes)
        loss_axes.set_title(_printable(cell.title, 36), fontsize=8.5, fontweight="bold", color=INK, loc="left", pad=4)
        _layer_axis(loss_axes, _depth(cell.windows, cell.dynamics), None)
        loss_axes.tick_params(labelbottom=False)
        swept = _swept(cell.windows, cell.width)
        if len(swept):
            _draw_losses(loss_axes, swept, small=True)
            loss_axes.axhline(_loss_of(cell.windows, "tuned"), color=INK, linewidth=0.8)
        if len(cell.dynamics):
            _draw_dynamics(delta_axes, cell.dynamics.sort_values("layer"), small=True)
            for axes in (loss_axes, delta_axes):
                for layer in change_points(cell.dynamics):
                    axes.axvspan(layer - 0.5, layer + 0.5, color=CHANGE_COLOUR, alpha=0.14, linewidth=0, zorder=0)
        for axes in (loss_axes, delta_axes):
            axes.grid(True, axis="y")
            axes.tick_params(labelsize=7.5, length=0, pad=2)
            axes.locator_params(axis="y", nbins=3)
            axes.margins(y=0.12)
        if place >= len(cells) - columns:
            delta_axes.set_xlabel("layer", fontsize=8, labelpad=1)
    return figure


@_styled
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


# Parts of figures -----------------------------------------------------------------------------------------------------


def _frame(title: str, subtitle: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE)
    _header(figure, title, subtitle)
    return figure, figure.add_axes(_FRAME)


def _header(figure: Figure, title: str, subtitle: str) -> None:
    height = figure.get_figheight()
    figure.text(0.02, 1 - 0.1 / height, _printable(title), fontsize=10.5, fontweight="bold", va="top")
    figure.text(0.02, 1 - 0.32 / height, _printable(subtitle, 90), color=MUTED, va="top")


def _printable(text: str, limit: int = 52) -> str:
    """`text` on one line, without characters an SVG may not hold, and cut to `limit`."""
    line = "".join(character if character.isprintable() else " " for character in text)
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def _layer_axis(axes: Axes, n_layers: int, label: str | None) -> None:
    axes.set_xlim(-0.7, n_layers - 0.3)
    _integer_ticks(axes.xaxis)
    axes.tick_params(length=0)
    axes.grid(True, axis="y")
    if label:
        axes.set_xlabel(label, labelpad=2)


def _integer_ticks(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=9, integer=True, steps=[1, 2, 4, 5, 10]))


def _swept(windows: pd.DataFrame, width: int) -> pd.DataFrame:
    return windows[(windows["role"] == "window") & (windows["width"] == width)].sort_values("centre")


def _depth(windows: pd.DataFrame, dynamics: pd.DataFrame | None = None) -> int:
    depth = int(windows["stop"].max()) if len(windows) else 0
    return max(depth, 0 if dynamics is None else len(dynamics), 1)


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
            markeredgecolor="white",
            label="changes",
        )


def _note(
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


def _number_points(axes: Axes, points: pd.DataFrame) -> None:
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
