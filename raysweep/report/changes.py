"""What the page shows of changes that are no whole windows, and of losses that were taken again to verify a sweep."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from raysweep.report.cells import Cell
from raysweep.report.page_tables import Table
from raysweep.report.summaries import mean_difference
from raysweep.report.words import interval, number, number_or_reason, runs_text

if TYPE_CHECKING:
    import pandas as pd

_MOST = 60
_KINDS = {
    "window": "layers",
    "set": "set of layers",
    "attention": "attention",
    "mlp": "MLP",
    "reverse": "tuned layers in the base",
}


def changes_table(cell: Cell) -> Table | None:
    """Loss and cost of sets, parts of layers, steps between the models and the other direction; None without any."""
    if "substitution" not in cell.tables:
        return None
    rows = cell.tables["substitution"]
    exact = rows["estimator"] == "exact"
    others = rows[exact & ((rows["kind"] != "window") | (rows["coefficient"] != 1))]
    if not len(others):
        return None
    untouched_E = cell.paired[(0, 0)] if (0, 0) in cell.paired.columns else None
    shown = []
    for (kind, layers, coefficient), part in others.groupby(["kind", "layers", "coefficient"], sort=False):
        loss_E = part.set_index("example_id")["loss"]
        cost = (math.nan,) * 3 if untouched_E is None else mean_difference(loss_E, untouched_E)
        measured = int(loss_E.notna().sum())
        row = (
            _KINDS.get(str(kind), str(kind)),
            _layers(str(layers)),
            f"{float(str(coefficient)):g}",
            number_or_reason(float(loss_E.mean()), "no example has a loss", 4),
            number(cost[0], 4, signed=True),
            interval(cost[1], cost[2], 4),
            measured,
        )
        shown.append((-math.inf if math.isnan(cost[0]) else cost[0], row))
    caption = "Losses in nats of sets, parts of layers, steps between the models and the other direction"
    if len(shown) > _MOST:
        caption += f"; the {_MOST} costliest of {len(shown)}, all of which are in results/substitution.parquet"
        keep = sorted(shown, key=lambda item: -item[0])[_MOST - 1][0]
        shown = [item for item in shown if item[0] >= keep][:_MOST]
    columns = ("what", "layers", "coefficient", "mean loss", "cost", "95 % interval", "examples")
    return Table(caption, columns, [row for _, row in shown], words={0, 1})


def _layers(text: str) -> str:
    """The table's words for layers as the page writes them."""
    if not text:
        return "none"
    first, _, last = text.partition("-")
    return runs_text(range(int(first), int(last) + 1) if last else map(int, text.split(",")))


def verification_table(cell: Cell) -> Table | None:
    """Differences between the sweep's losses and those of really substituted modules; None where none were taken."""
    if "verification" not in cell.tables:
        return None
    rows = []
    for (kind, layers, coefficient), part in cell.tables["verification"].groupby(
        ["kind", "layers", "coefficient"], sort=False
    ):
        worst = part.iloc[int(part["difference"].abs().to_numpy().argmax())]
        rows.append(
            (
                _KINDS.get(str(kind), str(kind)),
                _layers(str(layers)),
                f"{float(str(coefficient)):g}",
                len(part),
                number(float(worst["loss"]), 6),
                number(float(worst["recomputed"]), 6),
                f"{abs(float(worst['difference'])):.1e}",
            )
        )
    columns = ("what", "layers", "coefficient", "examples", "loss", "recomputed", "largest difference")
    return Table(
        "Losses taken again by true substitution of modules, one example at a time", columns, rows, words={0, 1}
    )


def verification_lines(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """A line for every model and data set whose losses were taken again."""
    if not len(tables.get("verification", ())):
        return []
    lines = []
    for (model, dataset), rows in tables["verification"].groupby(["model", "dataset"], sort=False):
        n = len(rows[["kind", "layers", "coefficient"]].drop_duplicates())
        lines.append(
            f"{model} on {dataset}: {n} windows or other changes taken again by true substitution on {rows['example_id'].nunique()} "
            f"examples, losses apart by at most {rows['difference'].abs().max():.1e}"
        )
    return lines
