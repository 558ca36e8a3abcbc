"""The answer in a few plain lines, as commands print it: the page's own numbers and verdicts. Commands wrap them to 80 columns."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from raysweep.numerics.combined import mean_correlation
from raysweep.report.along import without_steps
from raysweep.report.cells import Cell, Correlation, Verdict, cells_of
from raysweep.report.changes import verification_lines
from raysweep.report.effect import tested_together
from raysweep.report.estimates import estimate_lines
from raysweep.report.evidence import gain_of, is_no_better, is_unmoved, void_sentences
from raysweep.report.stopping import stopping_lines
from raysweep.report.summaries import Window
from raysweep.report.training_summary import training_lines
from raysweep.report.words import decimals_for, interval, layers_text, number, percent
from raysweep.terminal import WIDTH, aligned

if TYPE_CHECKING:
    import pandas as pd

MOST_ROWS = 40  # cells of a table; the page has all of them
_SPELLED_OUT = 1  # cells that have sentences of their own; more are rows of a table
_GAP = "the gap between base and tuned"
_TIED = "tied"
_WIDTHS = 3  # widths besides the main one that are named

_VERDICTS: Mapping[Verdict, str] = {
    "predicts": "δ predicts the critical layers",
    "maybe": "δ points to the critical layers, but chance is not ruled out",
    "unclear": "These examples cannot show whether δ predicts the critical layers",
    "wrong": "δ points to the wrong layers",
    "idle": "No cost is significantly different from 0, so there is nothing for δ to predict",
    "withheld": "δ is not compared with the costs",
}
_SHORT: Mapping[Verdict, str] = {
    "predicts": "yes",
    "maybe": "maybe",
    "unclear": "unclear",
    "wrong": "no",
    "idle": "no cost",
    "withheld": "not compared",
}


def summary_lines(tables: Mapping[str, pd.DataFrame], about: Mapping[str, Any] | None = None) -> list[str]:
    """Return the answer: the costliest layers, their cost, how sure that is, and whether δ predicts it.

    One cell has sentences, each a line, and several are rows of a table of 80 columns. Before them come sweeps that can find nothing, because of what base and
    tuned are; after them trainings, how good estimates are, where sweeps stopped early, and losses that were recomputed. `about` is
    what the run's plan says of checkpoints and data.
    """
    tables = without_steps(tables)
    of_cells = {name: rows for name, rows in tables.items() if len(rows) and name not in ("attack", "answers")}
    known = about or {}
    shared, datasets = known.get("shared", ()), known.get("datasets", ())
    cells = cells_of(of_cells, known.get("checkpoints", ()), shared=shared, datasets=datasets)
    lines = [str(sentence.striptags()) for sentence in void_sentences(cells)]
    lines += _answers(cells)
    lines += [*training_lines(tables, cells), *estimate_lines(tables)]
    return [*lines, *stopping_lines(tables), *verification_lines(tables)]


def _answers(cells: Sequence[Cell]) -> list[str]:
    swept = [cell for cell in cells if cell.widths and not is_unmoved(cell)]
    if not swept:
        alone = [cell for cell in cells if cell.settings and not cell.widths]
        return [_change_text(cell) for cell in alone]
    lines = _sentences(swept[0]) if len(swept) <= _SPELLED_OUT else _table(swept)
    return [*lines, *(text for cell in swept if (text := _not_finite(cell)))]


# One cell -------------------------------------------------------------------------------------------------------------


def _sentences(cell: Cell) -> list[str]:
    """What the costliest window costs and how sure that is, the other widths' costliest, and whether δ predicts it."""
    others = [width for width in cell.shown_widths if width != cell.main_width][:_WIDTHS]
    texts = [_cost_text(cell), *(text for width in others if (text := _brief_text(cell, width)))]
    found = cell.first_correlation
    if found is not None:
        texts.append(_prediction_text(cell, found))
    first, *rest = texts
    return [f"{_name(cell)}: {first}", *(f"  {text}" for text in rest)]


def _cost_text(cell: Cell) -> str:
    top, width = cell.top(), cell.main_width
    if top is None:
        return "no window has a loss."
    span = "one layer" if width == 1 else f"{width} layers"
    if math.isnan(top.cost):
        return (
            f"the loss is highest with {top.name} replaced: {number(top.loss, 4)} nats. The cost is not known, because "
            "the tuned model's own loss was not measured."
        )
    decimals = decimals_for(top.cost_low, top.cost_high)
    if top.cost <= 0:
        return f"replacing a window of {span} with the base model's layers never raises the loss."
    cost = f"{number(top.cost, decimals)} nats {top.limits(decimals)}"
    if not cell.leans(top.width):
        return (
            f"no window of {span} has a cost that differs significantly from 0 ({_examples(top)}). The largest cost is "
            f"{cost}, for {top.name}."
        )
    losses = f"from {number(top.loss - top.cost, decimals)} to {number(top.loss, decimals)}"
    them, theirs = ("it", "layer") if top.width == 1 else ("them", "layers")
    gap = _of_gap(cell, top)
    return (
        f"the costliest window is {top.name}. Replacing {them} with the base model's {theirs} raises the loss by {cost} "
        f"({losses}{'; ' + gap if gap else ''}). {_rival_text(cell, top)}"
    )


def _brief_text(cell: Cell, width: int) -> str:
    """The costliest window of another width."""
    top = cell.top(width)
    if top is None or math.isnan(top.cost):
        return ""
    decimals = decimals_for(top.cost_low, top.cost_high)
    sure = "" if cell.leans(width) else ", not significantly different from 0"
    cost = f"{number(top.cost, decimals, signed=True)} nats {top.limits(decimals)}"
    return f"Windows of width {width}: {top.name} cost{'s' * (width == 1)} most, {cost}{sure}."


def _rival_text(cell: Cell, top: Window) -> str:
    """How much less the next costliest window costs, and whether that is significant."""
    rival = cell.rival(top)
    if rival is None:
        return "No other window has a cost."
    decimals = decimals_for(rival.low, rival.high)
    apart = " that shares no layer with it" if rival.separate else ""
    less = f"{number(rival.mean, decimals)} {interval(rival.low, rival.high, decimals)} less"
    verdict = "a significant difference" if rival.told_apart else f"not a significant difference ({_examples(top)})"
    return f"The next costliest window{apart}, {rival.window.name}, costs {less}, {verdict}."


def _examples(window: Window) -> str:
    return "one example" if window.examples == 1 else f"{window.examples} examples"


def _of_gap(cell: Cell, top: Window) -> str:
    """The cost as a share of what fine-tuning gained; nothing if the examples show no gain."""
    gain = gain_of(cell)
    if gain is None or is_no_better(gain, cell.resolution):
        return ""
    share = top.cost / gain.mean
    times = percent(share) if share < 2 else f"{share:.1f} ×"
    return f"{times} {'of ' if share < 2 else ''}{_GAP}"


def _prediction_text(cell: Cell, found: Correlation) -> str:
    verdict = cell.verdict(found)
    if found.withheld:
        return f"{_VERDICTS['withheld']}: {found.withheld}."
    if math.isnan(found.spearman):
        return f"Whether δ predicts the critical layers is not known: {cell.rho_reason(found)}."
    return f"{_VERDICTS[verdict]} (ρ = {number(found.spearman)} {found.limits}, {found.p})."


def _change_text(cell: Cell) -> str:
    """Where representations change most, for a model that was not swept."""
    setting = cell.settings[0]
    changes = cell.change_points(setting)
    if not changes:
        first = int(cell.dynamics(setting)["layer"].iloc[0])
        return f"{_name(cell)}: where representations change is not known: {cell.delta_reason(setting, first)}."
    return f"{_name(cell)}: the base model's representations change most at {layers_text(changes)} (smallest δ)."


def _not_finite(cell: Cell) -> str:
    """How many losses are NaN (and left out) or infinite (and count as the largest); nothing for none."""
    losses = cell.tables["substitution"]["loss"]
    missing, infinite = int(losses.isna().sum()), int(np.isinf(losses).sum())
    parts = [f"{missing} of {len(losses)} losses are NaN and left out"] if missing else []
    parts += [f"{infinite} of {len(losses)} losses are infinite"] if infinite else []
    return f"{_name(cell)}: {'; '.join(parts)}." if parts else ""


def _name(cell: Cell) -> str:
    return f"{cell.model} on {cell.dataset}"


# Several cells --------------------------------------------------------------------------------------------------------


def _table(cells: Sequence[Cell]) -> list[str]:
    """A row for each cell under a heading, and what all of them say together."""
    one_model = len({cell.model for cell in cells}) == 1
    header = ["data set" if one_model else "cell", "layers", "cost, nats", "of gap", "next window"]
    predicted = any(cell.first_correlation for cell in cells)
    rows = [[*header, *(["δ predicts"] if predicted else [])]]
    for cell in cells[:MOST_ROWS]:
        rows.append([cell.dataset if one_model else _name(cell), *_row(cell), *(_short(cell) if predicted else [])])
    of = f" of {cells[0].model}" if one_model else ""
    lines = [f"The costliest windows{of}, replaced with the base model's layers:"]
    lines += [f"  {line}".rstrip() for line in aligned(rows, width=WIDTH - 2)]
    if len(cells) > MOST_ROWS:
        lines.append(f"… and {len(cells) - MOST_ROWS} more cells; the page has them all")
    return [*lines, *_legend(rows[1:]), *_together(cells)]


def _legend(rows: Sequence[Sequence[str]]) -> list[str]:
    """What the short entries of the table mean, of those that it has."""
    notes = ["of gap: share of the loss difference between base and tuned"] if any(row[3] for row in rows) else []
    notes += ["less: costs significantly less"] if any("(less)" in row[4] for row in rows) else []
    notes += [f"{_TIED}: the difference is not significant"] if any(f"({_TIED})" in row[4] for row in rows) else []
    return [f"({'; '.join(notes)})"] if notes else []


def _row(cell: Cell) -> list[str]:
    top = cell.top()
    if top is None:
        return ["no loss", "n/a", "", ""]
    if math.isnan(top.cost):
        return [top.span, f"n/a (loss {number(top.loss, 3)})", "", ""]
    decimals = decimals_for(top.cost_low, top.cost_high)
    cost = f"{number(top.cost, decimals, signed=True)} {top.limits(decimals)}"
    if not cell.leans(top.width):
        return ["none", f"{cost}, may be 0", "", ""]
    rival, gap = cell.rival(top), _of_gap(cell, top).removesuffix(_GAP).removesuffix("of ").strip()
    following = "" if rival is None else f"{rival.window.span} ({'less' if rival.told_apart else _TIED})"
    return [top.span, cost, gap, following]


def _short(cell: Cell) -> list[str]:
    found = cell.first_correlation
    if found is None:
        return [""]
    if not found.withheld and math.isnan(found.spearman):
        return ["not known"]
    return [_SHORT[cell.verdict(found)]]


def _together(cells: Sequence[Cell]) -> list[str]:
    """In how many cells δ predicts the critical layers, and the mean ρ over cells, for each setting and width."""
    found = [(cell, row) for cell in cells if (row := cell.first_correlation)]
    counted = Counter(cell.verdict(row) for cell, row in found if not math.isnan(row.spearman))
    n = sum(counted.values())
    if not n:
        return []
    said: list[tuple[Verdict, str]] = [
        ("predicts", "predicts the critical layers in {}"),
        ("maybe", "points to the critical layers in {}, but chance is not ruled out"),
        ("wrong", "points to the wrong layers in {}"),
        ("unclear", "is inconclusive in {}"),
        ("idle", "has nothing to predict in {}"),
    ]
    texts = [(counted[verdict], text) for verdict, text in said if counted[verdict]]
    parts = [text.format(f"{k} of {n} cells" if not place else k) for place, (k, text) in enumerate(texts)]
    return [f"δ {'; it '.join(parts)}. {_mean_text(found)}".rstrip()]


def _mean_text(found: Sequence[tuple[Cell, Correlation]]) -> str:
    """The mean ρ of the cells that share the first one's setting and width."""
    (_, first), *_ = found
    rows = [(c, row) for c, row in found if (row.setting, row.width) == (first.setting, first.width)]
    rows = [(cell, row) for cell, row in rows if not math.isnan(row.spearman)]
    if len(rows) < 2:
        return ""
    mean = mean_correlation([row.spearman for _, row in rows], [cell.model for cell, _ in rows])
    tested = tested_together([cell for cell, _ in rows], first.setting, first.width)
    p = "" if math.isnan(tested.p) else f", p = {number(tested.p, 3)} with depth removed"
    return f"Their mean ρ is {number(mean.mean)} {interval(mean.low, mean.high)}{p}."
