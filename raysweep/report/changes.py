"""What the page shows of changes that are no complete windows, and of losses that were recomputed to verify a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from raysweep.report.cells import Cell
from raysweep.report.estimates import compared
from raysweep.report.page_tables import MOST, Table
from raysweep.report.summaries import changes_of, layers_in, rows_of
from raysweep.report.words import interval, number, number_or_reason, runs_text

if TYPE_CHECKING:
    import pandas as pd

_KINDS = {
    "window": "layers",
    "set": "set of layers",
    "attention": "attention",
    "mlp": "MLP",
    "reverse": "tuned layers in the base",
}


def changes_table(cell: Cell) -> Table | None:
    """Loss and cost of sets, parts of layers, steps between the models and the other direction; None without any."""
    if not len(cell.changes):
        return None
    caption = "Losses in nats of sets, parts of layers, steps between the models and the other direction"
    changes = cell.changes
    if len(changes) > MOST:
        caption += f". These are the {MOST} costliest of {len(changes)}; results/substitution.parquet has all"
        changes = changes.sort_values("cost", ascending=False, kind="stable").head(MOST).sort_index()
    rows = [
        (
            _KINDS.get(change.kind, change.kind),
            cell.set_name(change.layers) if change.kind == "set" else change.span,
            f"{change.coefficient:g}",
            number_or_reason(change.loss, "no example has a loss", 4),
            number(change.cost, 4, signed=True),
            interval(change.cost_low, change.cost_high, 4),
            change.examples,
        )
        for change in changes_of(changes)
    ]
    columns = ("what", "layers", "coefficient", "mean loss", "cost", "95 % interval", "examples")
    return Table(caption, columns, rows, words={0, 1})


def verification_table(cell: Cell) -> Table | None:
    """Differences between the sweep's losses and those of modules that were actually swapped; None if none were recomputed."""
    if "verification" not in cell.tables:
        return None
    rows = []
    for (kind, layers, coefficient), part in cell.tables["verification"].groupby(
        ["kind", "layers", "coefficient"], sort=False
    ):
        worst = part.iloc[int(part["difference"].abs().to_numpy().argmax())]
        row = (
            _KINDS.get(str(kind), str(kind)),
            cell.set_name(str(layers)) if kind == "set" else runs_text(layers_in(str(layers))) or "none",
            f"{float(str(coefficient)):g}",
            len(part),
            number(float(worst["loss"]), 6),
            number(float(worst["recomputed"]), 6),
            f"{abs(float(worst['difference'])):.1e}",
        )
        rows.append((abs(float(worst["difference"])), row))
    caption = "Losses recomputed by actually swapping the modules, one example at a time"
    if len(rows) > MOST:
        caption += f". These are the {MOST} largest differences of {len(rows)}; results/verification.parquet has all"
        rows = sorted(rows, key=lambda item: -item[0])[:MOST]
    columns = ("what", "layers", "coefficient", "examples", "loss", "recomputed", "largest difference")
    return Table(caption, columns, [row for _, row in rows], words={0, 1})


def estimates_table(cell: Cell) -> Table | None:
    """Estimated and exact mean losses; None if nothing has both."""
    if "substitution" not in cell.tables:
        return None
    found = compared(cell.tables["substitution"])
    if not len(found):
        return None
    caption = "Estimated losses (gradient) next to exact ones, means in nats over the examples that have both"
    if len(found) > MOST:
        caption += f". These are {MOST} of {len(found)}; results/substitution.parquet has all"
    rows = [
        (
            _KINDS.get(row.kind, row.kind),
            cell.set_name(row.layers) if row.kind == "set" else runs_text(layers_in(row.layers)) or "none",
            f"{row.coefficient:g}",
            number(row.exact, 4),
            number(row.estimate, 4),
            number(row.estimate - row.exact, 4, signed=True),
        )
        for row in rows_of(found.head(MOST))
    ]
    columns = ("what", "layers", "coefficient", "exact", "estimate", "estimate − exact")
    return Table(caption, columns, rows, words={0, 1})


def verification_lines(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """A line for every model and data set whose losses were recomputed."""
    if not len(tables.get("verification", ())):
        return []
    lines = []
    for (model, dataset), rows in tables["verification"].groupby(["model", "dataset"], sort=False):
        n = len(rows[["kind", "layers", "coefficient"]].drop_duplicates())
        lines.append(
            f"{model} on {dataset}: {n} windows or other changes recomputed by actually swapping the modules, on "
            f"{rows['example_id'].nunique()} examples; losses differ by at most {rows['difference'].abs().max():.1e}"
        )
    return lines
