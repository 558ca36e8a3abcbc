"""The answer in sentences made from the numbers: what fine-tuning depends on, and whether the base model predicts it.

Sentences are `Markup`, made by `Markup.format`, which escapes what is put into them: names and reasons come from outside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from raysweep.report.cells import Cell, Correlation, Rival, Setting, Verdict
from raysweep.report.estimates import estimate_sentences
from raysweep.report.evidence import is_unmoved, void_sentences
from raysweep.report.stopping import stopping_sentences
from raysweep.report.summaries import Window, windows_of
from raysweep.report.words import decimals_for, interval, layers_text, likeness_name, listed, number

CARDS = 6  # beyond so many cells the answer is a table's, and the sentences move to each cell's own section

# As the headline says it of all cells, after "in 3 of 4 cases", and as a label.
_VERDICTS: Mapping[Verdict, tuple[str, str]] = {
    "predicts": ("the base model alone predicts the critical layers", "predicted by the base model"),
    "maybe": (
        "the base model alone points to the critical layers, but this may be chance",
        "predicted by the base model, perhaps by chance",
    ),
    "unclear": ("it is undecided whether the base model alone predicts the critical layers", "prediction undecided"),
    "wrong": ("the base model alone points to the wrong layers", "the base model points to the wrong layers"),
    "idle": ("there is nothing to predict", "nothing to predict: no window has a cost"),
    "withheld": (
        "only some layers were trained, so δ is not compared with the losses",
        "not compared: only some layers were trained",
    ),
}


@dataclass(frozen=True)
class Answer:
    """What the numbers of one cell say, for its main width and first setting; `verdict` is None without a correlation."""

    sentences: Sequence[Markup]
    verdict: Verdict | None

    @property
    def label(self) -> str:
        """The verdict in a few words."""
        return _VERDICTS[self.verdict][1] if self.verdict else ""


def answer_of(cell: Cell) -> Answer:
    """The sentences of one cell: what each width's costliest window costs, which layers have the smallest δ, and ρ."""
    first = [cell.main_width] if cell.main_width else []
    others = [width for width in cell.shown_widths if width not in first]
    sentences = void_sentences([cell])
    if not (cell.widths and is_unmoved(cell)):
        sentences += estimate_sentences(cell)
        sentences += [s for width in (*first, *others) for s in _cost_sentences(cell, width, brief=width in others)]
        sentences += stopping_sentences(cell)
    if cell.settings:
        sentences.append(_change_sentence(cell, cell.settings[0]))
    found = cell.first_correlation
    if found is not None:
        sentences.append(_rho_sentence(cell, found))
    return Answer(sentences, cell.verdict(found) if found else None)


def headline(cells: Sequence[Cell]) -> list[Markup]:
    """The page's first sentences: what makes a sweep void, which layers fine-tuning depends on, whether the base predicts them.

    Each sentence is short, stands alone and names its numbers.
    """
    void = void_sentences(cells)
    swept = [cell for cell in cells if cell.widths]
    moved = [cell for cell in swept if not is_unmoved(cell)]
    if moved:
        return [*void, *_dependence(moved), *_prediction(moved)]
    if swept:
        return void
    changes = [(cell, cell.change_points(cell.settings[0])) for cell in cells if cell.settings]
    places = [(cell, layers_text(layers)) for cell, layers in changes if layers]
    return [Markup("The base model's representations change fastest at {}.").format(_places(places))] if places else []


# One cell -------------------------------------------------------------------------------------------------------------


def _cost_sentences(cell: Cell, width: int, brief: bool) -> list[Markup]:
    """Which window costs most and whether it differs significantly from the others; `brief`: the first sentence only."""
    top = cell.top(width)
    span = "one layer" if width == 1 else f"{width} layers"
    if top is None:
        return [Markup("The loss with {} replaced is n/a (no example has a loss).").format(span)]
    if math.isnan(top.cost):
        text = (
            "The loss is highest, {} nats, with <strong>{}</strong> replaced; the cost is n/a "
            "(the tuned model's own loss was not measured)."
        )
        return [Markup(text).format(number(top.loss), top.name)]
    decimals = decimals_for(top.cost_low, top.cost_high)
    cost = Markup("<strong>{} nats</strong> {}").format(number(top.cost, decimals, signed=True), top.limits(decimals))
    if not cell.leans(width):
        text = (
            "<strong>No window of {}</strong> has a cost that is significantly different from 0 on these {} examples. The costliest "
            "is {}: {}."
        )
        line = Markup(text).format(span, top.examples, top.name, cost)
        return [line] if brief else [line, *_whole_sentence(cell)]
    if brief:
        return [Markup("Among windows of {}, {} costs most: {}.").format(span, top.name, cost)]
    whole = cell.windows.loc[cell.windows["role"] == "all", "loss"].dropna()
    first = Markup(
        "Replacing <strong>{}</strong> with the base model's costs most: {} per response token (loss {} → {}{})."
    ).format(
        top.name,
        cost,
        number(top.loss - top.cost, decimals),
        number(top.loss, decimals),
        f"; with all {cell.n_layers} layers replaced, {number(whole.iloc[0], decimals)}" if len(whole) else "",
    )
    rival = cell.rival(top)
    return [first] if rival is None else [first, _told_apart(top, rival)]


def _whole_sentence(cell: Cell) -> list[Markup]:
    """What all layers cost together, for a cell in which no single window has a cost."""
    for whole in windows_of(cell.windows[cell.windows["role"] == "all"]):
        decimals = decimals_for(whole.cost_low, whole.cost_high)
        text = "Replacing all {} layers costs {} nats {}{}."
        better = ", so here the base model's layers are better than the tuned ones" if whole.cost_high < 0 else ""
        cost = number(whole.cost, decimals, signed=True)
        return [Markup(text).format(cell.n_layers, cost, whole.limits(decimals), better)]
    return []


def _told_apart(top: Window, rival: Rival) -> Markup:
    decimals = decimals_for(rival.low, rival.high)
    text = "The next costliest window{} ({}) costs {} {} less; on these {} examples the difference <strong>{}</strong>."
    sentence = Markup(text).format(
        " that shares no layer with it" if rival.separate else "",
        rival.window.name,
        number(rival.mean, decimals),
        interval(rival.low, rival.high, decimals),
        top.examples,
        "is significant" if rival.told_apart else "is not significant",
    )
    if rival.told_apart and rival.alike:
        names = ", ".join(window.span for window in rival.alike[:5])
        more = f" and {len(rival.alike) - 5} more" if len(rival.alike) > 5 else ""
        sentence += Markup(" Windows that do not differ significantly from the costliest: {}{}.").format(names, more)
    return sentence


def _change_sentence(cell: Cell, setting: Setting) -> Markup:
    changes = cell.change_points(setting)
    if not changes:
        reason = cell.delta_reason(setting, int(cell.dynamics(setting)["layer"].iloc[0]))
        return Markup("Where the base model's representations change fastest is not known ({}).").format(reason)
    text = "The base model's representations change fastest at <strong>{}</strong> (smallest δ, {}){}."
    inside = ""
    found = cell.first_correlation
    if (top := cell.top()) and cell.leans(top.width) and not (found and found.withheld):
        within = sum(top.start <= layer < top.stop for layer in changes)
        inside = (
            f"; {within or 'none'} of these {len(changes)} {'lies' if within == 1 else 'lie'} in the costliest window"
        )
    return Markup(text).format(layers_text(changes), likeness_name(setting.metric), inside)


def _rho_sentence(cell: Cell, found: Correlation) -> Markup:
    """ρ with its interval and p, and what they mean."""
    if found.withheld:
        return Markup("δ is not compared with the losses: {}.").format(found.withheld)
    if math.isnan(found.spearman):
        return Markup("The rank correlation of δ and the loss is n/a ({}).").format(cell.rho_reason(found))
    way = "higher" if found.spearman < 0 else "lower"
    text = "<strong>ρ = {}</strong> {}, {}, over {} window centres: the smaller δ, the {} the loss. {}"
    rho, reading = number(found.spearman), _reading(cell.verdict(found), found)
    p = found.p if math.isnan(found.p_value) else f"{found.p} with the trend over depth removed"
    return Markup(text).format(rho, found.limits, p, found.n_layers, way, reading)


def _reading(verdict: Verdict, found: Correlation) -> str:
    if verdict == "idle":
        return "But no window has a significant cost, so there is nothing for δ to predict."
    if math.isnan(found.ci_low):
        return "Without an interval, this remains uncertain."
    if verdict == "unclear":
        return "The interval includes 0, so these examples do not show whether δ and the loss are related."
    if verdict == "wrong":
        return "The interval is above 0: choosing layers by small δ would have missed the costly ones."
    if verdict == "predicts":
        return "The interval is below 0, and unrelated smooth curves rarely agree this well."
    if math.isnan(found.p_value):
        return f"The interval is below 0, but there is no p, so this may be chance ({found.reason or 'no reason was recorded'})."
    return "The interval is below 0, but unrelated smooth curves often agree this well, so it may be chance."


# All cells ------------------------------------------------------------------------------------------------------------


def _dependence(swept: Sequence[Cell]) -> list[Markup]:
    """Which layers cost most, data sets with the same layers together, and for how many none has a cost."""
    found = [(cell, top, where) for cell in swept if (where := _costliest(cell)) and (top := cell.top()) is not None]
    if not found:
        return [Markup("No window of layers has a cost that is significantly different from 0.")]
    if len(found) == 1:
        ((cell, top, where),) = found
        unsure = "" if where == top.name else " (no significant difference)"
        text = (
            "Fine-tuning on <bdi>{}</bdi> depends most on <strong>{}</strong>{}: replacing {} with the base model's raises the loss by {} "
            "nats {}."
        )
        what = top.name if unsure else "it" if top.width == 1 else "them"
        lines = [Markup(text).format(cell.title, where, unsure, what, *_cost(top))]
    else:
        lines = [Markup("Fine-tuning depends most on {}.").format(_together(found))]
    if len(found) < len(swept):
        text = (
            "In <strong>{} of {}</strong> cases no window of layers has a cost that is significantly different from 0."
        )
        lines.append(Markup(text).format(len(swept) - len(found), len(swept)))
    return lines


def _cost(top: Window) -> tuple[str, str]:
    decimals = decimals_for(top.cost_low, top.cost_high)
    return number(top.cost, decimals), top.limits(decimals)


def _together(found: Sequence[tuple[Cell, Window, str]]) -> Markup:
    """Layers with the cells and costs that they were found with, of the first cells; the table has the rest."""
    by_layers: dict[str, list[Markup]] = {}
    for cell, top, where in found[:CARDS]:
        case = Markup("<bdi>{}</bdi> +{} nats").format(cell.title, _cost(top)[0])
        by_layers.setdefault(where, []).append(case)
    each = [
        Markup("<strong>{}</strong> ({})").format(where, Markup(", ").join(cases)) for where, cases in by_layers.items()
    ]
    if len(found) > CARDS:
        return Markup("{}; the table has {} more cases").format(Markup(", ").join(each), len(found) - CARDS)
    return listed(each)


def _costliest(cell: Cell) -> str | None:
    """The costliest window, with its rival if the two do not differ significantly; None if no cost is significant."""
    top = cell.top()
    if top is None or not cell.leans(top.width):
        return None
    rival = cell.rival(top)
    if rival is None or rival.told_apart or not rival.separate:
        return top.name
    return f"{top.name} or {rival.window.span}"


def _prediction(swept: Sequence[Cell]) -> list[Markup]:
    """What δ predicts; a sentence for each verdict that some cell has."""
    found = [(cell.verdict(row), row) for cell in swept if (row := cell.first_correlation)]
    lines = []
    for verdict, (text, _) in _VERDICTS.items():
        rows = [row for of, row in found if of == verdict]
        if not rows or verdict == "idle":
            continue
        if len(found) == 1:
            lines.append(Markup("{}{}.").format(text[0].upper() + text[1:], _rho_range(rows)))
            continue
        cases = Markup("<strong>{} of {}</strong>").format(len(rows), len(found))
        if len(rows) == len(found):
            cases = Markup("all <strong>{}</strong>").format(len(found))
        lines.append(Markup("In {} cases {}{}.").format(cases, text, _rho_range(rows)))
    return lines


def _rho_range(rows: Sequence[Correlation]) -> str:
    """ρ of one cell with its interval and p, of several from the lowest to the highest; nothing if none is defined."""
    known = sorted(row.spearman for row in rows if not math.isnan(row.spearman) and not row.withheld)
    if not known:
        return ""
    if len(rows) == 1:
        return f" (ρ = {number(known[0])} {rows[0].limits}, {rows[0].p})"
    return f" (ρ from {number(known[0])} to {number(known[-1])})"


def _places(found: Sequence[tuple[Cell, str]]) -> Markup:
    """Layers with the cell they were found in, for the first cells; the table names the rest."""
    each = [Markup("<strong>{}</strong> (<bdi>{}</bdi>)").format(layers, cell.title) for cell, layers in found[:CARDS]]
    if len(found) > CARDS:
        return Markup("{}; the table has {} more cases").format(Markup(", ").join(each), len(found) - CARDS)
    return listed(each)
