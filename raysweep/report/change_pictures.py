"""The pictures of changes that are no complete windows, and of every window at once, with their captions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from raysweep.report import change_figures
from raysweep.report.cells import WIDTHS
from raysweep.report.pictures import Drawings, Picture, heading
from raysweep.report.summaries import change_losses, changes_of, swept, windows_of
from raysweep.report.words import consecutive, number

if TYPE_CHECKING:
    from raysweep.report.cells import Cell

SETS = 12  # the costliest sets that are drawn; the table has more

_PAIRED = "the 95 % interval of the difference to the tuned model on the same examples"
_PARTS = {"attention": "attention alone", "mlp": "MLP alone"}


def change_pictures(cell: Cell, drawings: Drawings) -> list[Picture]:
    """Sets, parts of windows, steps between the models, and the other direction; and the triangles of very many widths."""
    if not cell.widths and not len(cell.changes):
        return []
    many = len(cell.widths) > WIDTHS
    return [
        *([_triangle(cell, "window", drawings)] if many else []),
        *_set_pictures(cell, drawings),
        *(_module_picture(cell, width, drawings) for width in _widths(cell, "attention", "mlp")),
        *([_triangle(cell, kind, drawings) for kind in _PARTS if many and (cell.changes["kind"] == kind).any()]),
        *(_step_picture(cell, width, drawings) for width in _widths(cell, "window")),
        *(_reverse_picture(cell, width, drawings) for width in _widths(cell, "reverse")),
    ]


def _widths(cell: Cell, *kinds: str) -> list[int]:
    """The widths shown that some change of these kinds has."""
    measured = set(cell.changes.loc[cell.changes["kind"].isin(kinds), "width"])
    return [width for width in cell.shown_widths if width in measured]


def _triangle(cell: Cell, kind: str, drawings: Drawings) -> Picture:
    if kind == "window":
        rows, what = cell.windows[cell.windows["role"] != "tuned"], "replaced with the base model's layers"
        heads = "every window"
    else:
        rows, what = (
            _spans(cell.changes[cell.changes["kind"] == kind]),
            f"{_PARTS[kind]} replaced with the base model's",
        )
        heads = f"every window, {_PARTS[kind]}"
    costs = rows["cost"].dropna()
    scale = (
        f", from {number(costs.min(), signed=True)} to {number(costs.max(), signed=True)} nats" if len(costs) else ""
    )
    return drawings.add(
        change_figures.window_triangle(rows, cell.n_layers, heading(cell), f"cost (nats) of {heads}"),
        ("triangle", cell.model, cell.dataset, kind),
        f"Triangular heat map of the cost of {len(rows)} windows by their first and last layer{scale}.",
        f"Each field is a window, {what}: its first layer on the horizontal axis, its last on the vertical one. Single layers lie on "
        "the diagonal, all layers in the upper left corner. The colour is the cost, the mean rise of the loss over the tuned model's. "
        "A dot marks windows whose 95 % interval, paired on the same examples, includes 0 or does not exist.",
    )


def _spans(changes: pd.DataFrame) -> pd.DataFrame:
    """Changes of consecutive layers with start and stop."""
    found = [change.chosen for change in changes_of(changes)]
    return changes.assign(start=[layers[0] for layers in found], stop=[layers[-1] + 1 for layers in found])


def _set_pictures(cell: Cell, drawings: Drawings) -> list[Picture]:
    rows = cell.changes[cell.changes["kind"] == "set"]
    whole = rows[rows["coefficient"] == 1].sort_values("cost", ascending=False)
    if not len(whole):
        return []
    shown = [(cell.set_name(chosen.layers), chosen, cell.top(chosen.width)) for chosen in changes_of(whole.head(SETS))]
    more = f" The figure shows the {SETS} costliest of {len(whole)}." if len(whole) > SETS else ""
    pictures = [
        drawings.add(
            change_figures.set_bars(shown, heading(cell)),
            ("sets", cell.model, cell.dataset),
            f"Bar chart of the cost of {len(shown)} sets of layers"
            f"{f'; highest for {shown[0][0]}, {number(shown[0][1].cost, signed=True)} nats' if shown else ''}.",
            "Blue: how much the loss rises when a set of layers is replaced with the base model's. Grey: the "
            f"costliest window with the same number of layers, if that width was swept. Lines are {_PAIRED}.{more}",
        )
    ]
    if (rows["coefficient"] != 1).any():
        names = [cell.set_name(str(layers)) for layers in rows["layers"].unique()]
        pictures.append(
            _steps(cell, rows, names, "cost (nats) of sets of layers between tuned and base", "set", "sets", drawings)
        )
    return pictures


def _module_picture(cell: Cell, width: int, drawings: Drawings) -> Picture:
    rows = cell.changes[cell.changes["kind"].isin(_PARTS) & (cell.changes["width"] == width)]
    highest = [
        f"{_PARTS[kind]} highest at {top.name}, {number(top.cost, signed=True)} nats"
        for kind in _PARTS
        if (part := rows[(rows["kind"] == kind) & rows["cost"].notna()]).size
        for top in changes_of(part.loc[[part["cost"].idxmax()]])
    ]
    return drawings.add(
        change_figures.module_curves(swept(cell.windows, width), rows, width, cell.n_layers, heading(cell)),
        ("modules", cell.model, cell.dataset, f"w{width}"),
        f"Line chart of cost by the centre of the window of width {width}, complete and by parts; {'; '.join(highest) or 'no cost'}.",
        f"How much the loss rises with {consecutive(width)} replaced with the base model's, completely or only their attention or "
        f"MLP (a norm belongs to the module that follows it). Bars are {_PAIRED}. The costs of the parts need not add "
        "up to the cost of the complete layers.",
    )


def _step_picture(cell: Cell, width: int, drawings: Drawings) -> Picture:
    between = cell.changes[(cell.changes["kind"] == "window") & (cell.changes["width"] == width)]
    windows = list(windows_of(swept(cell.windows, width)))
    whole = cell.paired[[(window.start, window.stop) for window in windows]]
    columns = pd.MultiIndex.from_tuples([("window", window.layers, 1.0) for window in windows])
    rows = pd.concat(
        [change_losses(whole.set_axis(columns, axis="columns"), cell.untouched), between], ignore_index=True
    )
    told = [change.name for change in changes_of(rows.drop_duplicates("layers"))]
    what = "windows of one layer" if width == 1 else f"windows of {width} layers"
    return _steps(cell, rows, told, f"cost (nats) of {what} between tuned and base", "window", f"w{width}", drawings)


def _steps(
    cell: Cell, rows: pd.DataFrame, names: list[str], subtitle: str, what: str, stem: str, drawings: Drawings
) -> Picture:
    coefficients = ", ".join(f"{value:g}" for value in sorted(rows["coefficient"].unique()))
    return drawings.add(
        change_figures.coefficient_lines(rows, names, heading(cell), subtitle),
        ("steps", cell.model, cell.dataset, stem),
        f"Line chart of cost over the coefficient ({coefficients}), one line per {what}, {rows['layers'].nunique()} in all.",
        f"How much the loss rises when a {what}'s weights are (1 − c) · tuned + c · base. Blue: the {what} "
        f"that costs most at c = 1, with {_PAIRED} as bars; dashed: a cost in proportion to c. Grey: the others. Measured at "
        f"c = {coefficients}; at c = 0 nothing changes.",
    )


def _reverse_picture(cell: Cell, width: int, drawings: Drawings) -> Picture:
    rows = cell.gains[cell.gains["width"] == width]
    base = cell.gains.loc[cell.gains["layers"] == "", "loss"]
    own = (float(cell.untouched.mean()), float(base.iloc[0]) if len(base) else float("nan"))
    missing = (
        " There are no bars, because the base model's own losses were not measured (n/a)."
        if rows["cost"].isna().all()
        else ""
    )
    lowest = ""
    if rows["loss"].notna().any():
        best = next(changes_of(rows.loc[[rows["loss"].idxmin()]]))
        lowest = f"; lowest for {best.name}, {number(best.loss)} nats"
    return drawings.add(
        change_figures.reverse_curve(cell.gains, width, own, cell.n_layers, heading(cell)),
        ("reverse", cell.model, cell.dataset, f"w{width}"),
        f"Line chart of the base model's mean test loss with a window of {width} of the tuned model's layers in it, by the window's centre{lowest}.",
        f"The other direction: mean test loss of the base model (with its own embedding, norm and head) with {consecutive(width)} of "
        "the tuned model in it. Bars are 95 % intervals of the difference to the base model on the same examples, drawn "
        "around the mean. If a bar does not touch the grey line, these layers alone change the base model's loss."
        + missing,
    )
