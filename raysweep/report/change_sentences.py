"""Changes that are no complete windows, and recomputed losses, in sentences made from the numbers.

As answer.py's, sentences are `Markup`, made by `Markup.format`, which escapes what is put into them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from markupsafe import Markup

from raysweep.report.summaries import Changed, changes_of, mean_difference
from raysweep.report.words import decimals_for, interval, number

if TYPE_CHECKING:
    import pandas as pd

    from raysweep.report.cells import Cell

SETS = 5  # the costliest sets that have a sentence
_MODULES = {"attention": "attention", "mlp": "MLP"}


def change_sentences(cell: Cell) -> list[Markup]:
    """Sets, parts of windows, steps and the other direction (of the main width), then the verification."""
    lines: list[Markup] = []
    if len(cell.changes):
        lines += [*_sets(cell), *_modules(cell), *_steps(cell), *_reverse(cell)]
    return [*lines, *_verification(cell)]


def _cost(change: Changed) -> Markup:
    decimals = decimals_for(change.cost_low, change.cost_high)
    shown = number(change.cost, decimals, signed=True), interval(change.cost_low, change.cost_high, decimals)
    return Markup("<strong>{} nats</strong> {}").format(*shown)


def _apart(cell: Cell, a_E: pd.Series[float], b_E: pd.Series[float]) -> Markup:
    """The paired difference a − b in words."""
    mean, low, high = mean_difference(a_E, b_E)
    decimals = decimals_for(low, high)
    told = low > cell.resolution or high < -cell.resolution
    text = "{} nats {} {}; the difference <strong>{}</strong>"
    shown = number(abs(mean), decimals), "more" if mean >= 0 else "less"
    limits = interval(low, high, decimals) if mean >= 0 else interval(-high, -low, decimals)
    return Markup(text).format(shown[0], shown[1], limits, "is significant" if told else "is not significant")


def _rows(cell: Cell, kind: str, width: int | None = None) -> pd.DataFrame:
    """The rows of one kind that go fully to the base and have a cost, the costliest first."""
    rows = cell.changes
    chosen = (rows["kind"] == kind) & (rows["coefficient"] == 1) & rows["cost"].notna()
    if width is not None:
        chosen &= rows["width"] == width
    return rows[chosen].sort_values("cost", ascending=False)


def _sets(cell: Cell) -> list[Markup]:
    rows = _rows(cell, "set")
    lines = []
    for chosen in changes_of(rows.head(SETS)):
        line = Markup("Replacing the set {} with the base model's layers costs {}").format(
            cell.set_name(chosen.layers), _cost(chosen)
        )
        window = cell.top(chosen.width)
        if window is None:
            line += Markup(". No window of {} was swept to compare it with.").format(_layers(chosen.width))
        else:
            difference = _apart(cell, cell.changed[("set", chosen.layers, 1.0)], cell.losses_of(window))
            text = ". Compared with the costliest window of {} ({}), that is {}."
            line += Markup(text).format(_layers(chosen.width), window.span, difference)
        lines.append(line)
    if len(rows) > SETS:
        lines.append(Markup("The tables below have {} less costly sets.").format(len(rows) - SETS))
    return lines


def _layers(width: int) -> str:
    return "one layer" if width == 1 else f"{width} layers"


def _verb(width: int, verb: str) -> str:
    return f"{verb}s" if width == 1 else verb


def _modules(cell: Cell) -> list[Markup]:
    top = cell.top()
    if top is None:
        return []
    key = top.layers
    parts = {kind: (kind, key, 1.0) for kind in _MODULES if (kind, key, 1.0) in cell.changed.columns}
    rows = {kind: next(changes_of(cell.changes[_is(cell.changes, *column)])) for kind, column in parts.items()}
    said = [
        Markup("{} {} alone costs {}").format("its" if top.width == 1 else "their", _MODULES[kind], _cost(row))
        for kind, row in rows.items()
        if not math.isnan(row.cost)
    ]
    if not said:
        return []
    line = Markup("Replacing {} completely costs {} nats; {}").format(
        top.name, number(top.cost, signed=True), Markup(" and ").join(said)
    )
    if len(said) == 2:
        difference = _apart(cell, cell.changed[parts["mlp"]], cell.changed[parts["attention"]])
        line += Markup(". The MLP costs {}").format(difference)
    return [line + "."]


def _is(rows: pd.DataFrame, kind: str, layers: str, coefficient: float) -> pd.Series[bool]:
    return (rows["kind"] == kind) & (rows["layers"] == layers) & (rows["coefficient"] == coefficient)


def _steps(cell: Cell) -> list[Markup]:
    top = cell.top()
    if top is None or math.isnan(top.cost):
        return []
    key, rows = top.layers, cell.changes
    between = rows[(rows["kind"] == "window") & (rows["layers"] == key) & rows["coefficient"].between(0, 1, "neither")]
    if not len(between):
        return []
    step = float(between["coefficient"].iloc[(between["coefficient"] - 0.5).abs().to_numpy().argmin()])
    (chosen,) = changes_of(between[between["coefficient"] == step])
    cost_E = cell.losses_of(top) - cell.untouched
    mean, low, high = mean_difference(cell.changed[("window", key, step)] - cell.untouched, step * cost_E)
    decimals = decimals_for(low, high)
    how = (
        "less than"
        if high < -cell.resolution
        else "more than"
        if low > cell.resolution
        else "not significantly different from a cost"
    )
    text = "Moving {1} only part of the way to the base model (coefficient {0:g}) costs {3}. That is {4} in proportion to the coefficient (difference {5} {6})."
    shown = number(mean, decimals, signed=True), interval(low, high, decimals)
    return [Markup(text).format(step, top.name, _verb(top.width, "cost"), _cost(chosen), how, *shown)]


def _reverse(cell: Cell) -> list[Markup]:
    if cell.main_width is None or not len(cell.gains):
        return []
    rows = cell.gains[(cell.gains["width"] == cell.main_width) & cell.gains["cost"].notna()]
    if not len(rows):
        return []
    best = next(changes_of(rows.loc[[rows["cost"].idxmin()]]))
    base = best.loss - best.cost
    if not best.cost_high < -cell.resolution:
        text = (
            "Putting the tuned model's layers into the base model lowers the loss significantly for <strong>no window of {}</strong>; "
            "{} {} closest: {}."
        )
        verb = "comes" if best.width == 1 else "come"
        return [Markup(text).format(_layers(cell.main_width), best.name, verb, _cost(best))]
    text = "In the base model, the tuned model's {} {} most: {} (loss {} → {}; the tuned model's own is {})."
    decimals = decimals_for(best.cost_low, best.cost_high)
    losses = (number(value, decimals) for value in (base, best.loss, float(cell.untouched.mean())))
    return [Markup(text).format(best.name, _verb(best.width, "help"), _cost(best), *losses)]


def _verification(cell: Cell) -> list[Markup]:
    if "verification" not in cell.tables:
        return []
    rows = cell.tables["verification"]
    n = len(rows[["kind", "layers", "coefficient"]].drop_duplicates())
    examples = rows["example_id"].nunique()
    largest = float(rows["difference"].abs().max())
    apart = f"differ by at most {largest:.1e} nats" if largest else "are identical to the last bit"
    return [
        Markup("{} recomputed by actually swapping the modules, on {}: the losses <strong>{}</strong>.").format(
            "One window or other change was" if n == 1 else f"{n} windows or other changes were",
            "one example" if examples == 1 else f"{examples} examples",
            apart,
        )
    ]
