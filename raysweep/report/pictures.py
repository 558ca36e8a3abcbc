"""Figures as the page shows them: drawn from a cell's facts, written beside the page, embedded, described and captioned."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep.report import figures, plotting
from raysweep.report.cells import Cell, Setting
from raysweep.report.dark import adaptive
from raysweep.report.words import consecutive, layers_text, measures_distance, metric_name, number
from raysweep.store.owned_files import keep_only, remove_owned

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """A figure, embedded: `source` is a data URL, `alt` says what is seen, `caption` what it means."""

    source: str
    alt: str
    caption: str
    wide: bool = False  # too wide for a phone, which scrolls it


class Drawings:
    """The figures of one page in a folder, each as PNG and SVG under a name of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._taken: set[str] = set()  # in lower case: some file systems do not tell it from upper case
        self._names: list[str] = []

    def add(self, figure: Figure, name: Iterable[object], alt: str, caption: str) -> Picture:
        """Write `figure` under a name made of the parts of `name`, and embed it."""
        stem = "-".join(re.sub(r"[^A-Za-z0-9._]+", "-", str(part)).strip("-.")[:48] or "x" for part in name)
        names = itertools.chain([stem], (f"{stem}-{copy}" for copy in itertools.count(2)))
        free = next(candidate for candidate in names if candidate.lower() not in self._taken)
        self._taken.add(free.lower())
        png, svg = plotting.save(figure, self._folder / free)
        self._names += [png.name, svg.name]
        data = base64.b64encode(adaptive(svg.read_text(encoding="utf-8")).encode()).decode("ascii")
        return Picture(f"data:image/svg+xml;base64,{data}", alt, caption)

    def remove_others(self) -> None:
        """Remove the figures of an earlier page that this one does not use; other people's files stay."""
        if self._names:
            keep_only(self._folder, self._names)
        else:
            remove_owned(self._folder)


def pictures_of(cell: Cell, drawings: Drawings) -> list[Picture]:
    """The figures of one cell's windows and similarity: the widths that are shown, every setting and metric."""
    return [
        *(_loss_picture(cell, width, drawings) for width in cell.shown_widths),
        *(_dynamics_picture(cell, setting, drawings) for setting in cell.settings),
        *(
            _agreement_picture(cell, setting, width, drawings)
            for setting in cell.settings
            for width in cell.shown_widths
        ),
        *(_similarity_picture(cell, metric, drawings) for metric in cell.metrics),
    ]


def overview(cells: Sequence[Cell], drawings: Drawings) -> Picture | None:
    """Loss and δ of all cells side by side, for the first width and setting of each; None for a single cell."""
    drawn = [cell for cell in cells if cell.widths and cell.settings]
    if len(drawn) < 2:
        return None
    curves = [figures.CellCurves(c.title, c.windows, c.widths[0], c.dynamics(c.settings[0])) for c in drawn]
    picture = drawings.add(
        figures.overview(curves, drawn[0].settings[0].metric),
        ("overview",),
        f"Small line charts for {len(drawn)} models and data sets: loss after substitution above δ, by layer.",
        f"Blue: the test loss with {consecutive(drawn[0].widths[0])} around each centre replaced with the base model's. Horizontal line: "
        "the tuned model. Green: δ of the base model, low where its representations change fast. Shaded: the "
        "change-point layers, chosen by δ alone. If δ predicts the critical layers, the shaded layers lie where the loss is high.",
    )
    return dataclasses.replace(picture, wide=len(drawn) > figures.TWO_COLUMNS)


def heading(cell: Cell) -> str:
    """The cell as a figure names it; a figure may be used outside the page."""
    return f"{cell.model} · {cell.dataset}"


def _loss_picture(cell: Cell, width: int, drawings: Drawings) -> Picture:
    top = cell.top(width)
    highest = "" if top is None else f"; highest for {top.name}, {number(top.loss)} nats"
    swept = cell.windows[cell.windows["width"] == width]
    left_out = int(cell.windows["left_out"].max())
    return drawings.add(
        figures.loss_curve(cell.windows, width, heading(cell)),
        ("loss", cell.model, cell.dataset, f"w{width}"),
        f"Line chart of mean test loss by the centre of the window of width {width} replaced with the base model's layers{highest}.",
        f"Mean test loss over {swept['examples'].max()} examples with {consecutive(width)} replaced with the base "
        "model's. Bars are 95 % intervals of the difference to the tuned model on the same examples, drawn around the "
        "mean. If a bar does not touch the tuned model's line, the cost is significantly different from 0."
        + (f" Up to {left_out} examples per window have no loss and are skipped." if left_out else ""),
    )


def _dynamics_picture(cell: Cell, setting: Setting, drawings: Drawings) -> Picture:
    dynamics = cell.dynamics(setting)
    undefined = dynamics.loc[dynamics["delta"].isna(), "layer"].astype(int).to_list()
    changes = cell.change_points(setting)
    caption = f"δ of the base model by layer ({setting}). It is low where representations change fast."
    if dynamics["ci_low"].notna().any():
        caption += " The band is the 95 % interval from resampling examples."
    if undefined:
        caption += f" At {layers_text(undefined)} δ is n/a ({cell.delta_reason(setting, undefined[0])})."
    return drawings.add(
        figures.dynamics_curve(dynamics, heading(cell), setting.metric),
        ("dynamics", cell.model, cell.dataset, setting.metric, f"n{setting.neighbourhood}"),
        f"Line chart of δ by layer ({setting}); smallest at {layers_text(changes) if changes else 'no layer: all n/a'}.",
        caption,
    )


def _agreement_picture(cell: Cell, setting: Setting, width: int, drawings: Drawings) -> Picture:
    found = cell.correlation(setting, width)
    rho = None if found is None else (found.spearman, found.ci_low, found.ci_high)
    said = "" if found is None else f"; ρ = {number(found.spearman)} {found.limits}"
    return drawings.add(
        figures.dynamics_against_loss(cell.dynamics(setting), cell.windows, width, rho, heading(cell), setting.metric),
        ("agreement", cell.model, cell.dataset, setting.metric, f"n{setting.neighbourhood}", f"w{width}"),
        f"Scatter plot of mean test loss against δ, one numbered point per window of width {width}{said}.",
        f"Each point is a window of width {width}, numbered by its centre if there is room. Change-point layers are "
        f"orange ({setting}). If δ predicts the critical layers, the points fall from upper left to lower right.",
    )


def _similarity_picture(cell: Cell, metric: str, drawings: Drawings) -> Picture:
    rows, name = cell.similarity(metric), metric_name(metric)
    alike = 0 if measures_distance(metric) else 1
    setting = next((setting for setting in cell.settings if setting.metric == metric), None)
    changes = cell.change_points(setting) if setting else []
    caption = (
        f"{name[0].upper()}{name[1:]} of every pair of layers of the base model; {alike} means that they are alike. Figures have "
        "different colour scales."
    )
    if rows["value"].isna().any():
        reasons = rows.loc[rows["value"].isna(), "reason"].dropna().value_counts()
        told = "; ".join(f"{reason}: {count} pairs" for reason, count in reasons.head(3).items())
        caption += f" Hatched: n/a ({told or 'no reason was recorded'})."
    low, high = number(rows["value"].min()), number(rows["value"].max())
    return drawings.add(
        figures.similarity_map(rows, changes, heading(cell), metric),
        ("similarity", cell.model, cell.dataset, metric),
        f"Heat map of {name} between the representations of every pair of {cell.n_layers} layers, from {low} to {high}.",
        caption,
    )
