"""The answer in sentences made from the numbers: what fine-tuning leans on, and whether the base model would have told.

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
from raysweep.report.words import decimals_for, interval, layers_text, likeness_name, number

CARDS = 6  # beyond so many cells the answer is a table's, and the sentences move to each cell's own section

# As the headline says it after "in 3 of 4 cases", and as a label.
_VERDICTS: Mapping[Verdict, tuple[str, str]] = {
    "told": ("the base model alone would have told", "the base model would have told"),
    "maybe": (
        "the base model alone points the same way, but chance is not ruled out",
        "points the same way, may be chance",
    ),
    "unclear": ("these examples cannot tell whether the base model alone would have told", "cannot tell"),
    "misled": ("the base model alone would have misled", "the base model would have misled"),
    "idle": ("there is nothing for the base model to tell", "nothing to tell: no window has a cost"),
    "withheld": (
        "only some layers were trained, so δ is not scored against the losses",
        "not scored: only some layers were trained",
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
    """The sentences of one cell: what each width's costliest window costs, where δ is smallest, and ρ."""
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
    """The page's first sentences: what makes a sweep void, where fine-tuning leans, and whether the base model would have told."""
    void = void_sentences(cells)
    swept = [cell for cell in cells if cell.widths]
    moved = [cell for cell in swept if not is_unmoved(cell)]
    if moved:
        return [*void, *_where_it_leans(moved), *_whether_it_told(moved)]
    if swept:
        return void
    changes = [(cell, cell.change_points(cell.settings[0])) for cell in cells if cell.settings]
    places = [(cell, layers_text(layers)) for cell, layers in changes if layers]
    return [Markup("The base model's representations change most at {}.").format(_places(places))] if places else []


# One cell -------------------------------------------------------------------------------------------------------------


def _cost_sentences(cell: Cell, width: int, brief: bool) -> list[Markup]:
    """Which window costs most and whether the examples tell it apart from the others; `brief`: the first alone."""
    top = cell.top(width)
    span = "one layer" if width == 1 else f"{width} layers"
    if top is None:
        return [Markup("The loss with {} put back is n/a (no example has a loss).").format(span)]
    if math.isnan(top.cost):
        text = "Putting <strong>{}</strong> back to the base model gives the highest loss, {} nats; what that costs is n/a ({})."
        return [Markup(text).format(top.name, number(top.loss), "no loss of the tuned model to compare with")]
    decimals = decimals_for(top.cost_low, top.cost_high)
    cost = Markup("<strong>{} nats</strong> {}").format(number(top.cost, decimals, signed=True), top.limits(decimals))
    if not cell.leans(width):
        text = (
            "<strong>No window of {}</strong> has a cost that these {} examples tell from 0; the costliest is {}: {}."
        )
        line = Markup(text).format(span, top.examples, top.name, cost)
        return [line] if brief else [line, *_whole_sentence(cell)]
    if brief:
        return [Markup("Of windows of {}, {} costs most: {}.").format(span, top.name, cost)]
    whole = cell.windows.loc[cell.windows["role"] == "all", "loss"].dropna()
    first = Markup(
        "Putting <strong>{}</strong> back to the base model costs most: {} per response token (loss {} → {}{})."
    ).format(
        top.name,
        cost,
        number(top.loss - top.cost, decimals),
        number(top.loss, decimals),
        f"; with all {cell.n_layers} layers put back {number(whole.iloc[0], decimals)}" if len(whole) else "",
    )
    rival = cell.rival(top)
    return [first] if rival is None else [first, _told_apart(top, rival)]


def _whole_sentence(cell: Cell) -> list[Markup]:
    """What all layers cost together, for a cell in which no window alone does."""
    for whole in windows_of(cell.windows[cell.windows["role"] == "all"]):
        decimals = decimals_for(whole.cost_low, whole.cost_high)
        text = "All {} layers together: {} nats {}{}."
        better = ", so the base model's layers do better here than the tuned ones" if whole.cost_high < 0 else ""
        cost = number(whole.cost, decimals, signed=True)
        return [Markup(text).format(cell.n_layers, cost, whole.limits(decimals), better)]
    return []


def _told_apart(top: Window, rival: Rival) -> Markup:
    decimals = decimals_for(rival.low, rival.high)
    text = "The next costliest window{} ({}) costs {} {} less: the two <strong>{} be told apart</strong> on these {} examples."
    sentence = Markup(text).format(
        " that shares no layer with it" if rival.separate else "",
        rival.window.name,
        number(rival.mean, decimals),
        interval(rival.low, rival.high, decimals),
        "can" if rival.told_apart else "cannot",
        top.examples,
    )
    if rival.told_apart and rival.alike:
        names = ", ".join(window.span for window in rival.alike[:5])
        more = f" and {len(rival.alike) - 5} more" if len(rival.alike) > 5 else ""
        sentence += Markup(" Not told apart from it: {}{}.").format(names, more)
    return sentence


def _change_sentence(cell: Cell, setting: Setting) -> Markup:
    changes = cell.change_points(setting)
    if not changes:
        reason = cell.delta_reason(setting, int(cell.dynamics(setting)["layer"].iloc[0]))
        return Markup("Where the base model's representations change is n/a ({}).").format(reason)
    text = "The base model's representations change most at <strong>{}</strong> (smallest δ, {}){}."
    inside = ""
    found = cell.first_correlation
    if (top := cell.top()) and cell.leans(top.width) and not (found and found.withheld):
        within = sum(top.start <= layer < top.stop for layer in changes)
        inside = f"; {within or 'none'} of these {len(changes)} lie in the costliest window"
    return Markup(text).format(layers_text(changes), likeness_name(setting.metric), inside)


def _rho_sentence(cell: Cell, found: Correlation) -> Markup:
    """ρ with its interval and p, and what they allow to be said."""
    if found.withheld:
        return Markup("δ is not scored against the losses: {}.").format(found.withheld)
    if math.isnan(found.spearman):
        return Markup("Whether δ and the loss go together is n/a ({}).").format(cell.rho_reason(found))
    way = "higher" if found.spearman < 0 else "lower"
    text = "<strong>ρ = {}</strong> {}, {}, over {} window centres: the smaller δ, the {} the loss. {}"
    rho, reading = number(found.spearman), _reading(cell.verdict(found), found)
    p = found.p if math.isnan(found.p_value) else f"{found.p} with depth taken out"
    return Markup(text).format(rho, found.limits, p, found.n_layers, way, reading)


def _reading(verdict: Verdict, found: Correlation) -> str:
    if verdict == "idle":
        return "But no window's cost is told from 0, so there is no leaning for δ to tell."
    if math.isnan(found.ci_low):
        return "There is no interval, so how sure this is cannot be said."
    if verdict == "unclear":
        return "The interval includes 0: these examples cannot tell whether δ and the loss go together."
    if verdict == "misled":
        return "The whole interval is above 0: choosing layers by small δ would have missed the costly ones."
    if verdict == "told":
        return (
            "The whole interval is below 0, and curves that have nothing to do with one another seldom agree as well."
        )
    if math.isnan(found.p_value):
        return f"The interval is below 0, but chance is not ruled out ({found.reason or 'no p'})."
    return "The interval is below 0, but smooth curves that have nothing to do with one another agree as well too often to rule chance out."


# All cells ------------------------------------------------------------------------------------------------------------


def _where_it_leans(swept: Sequence[Cell]) -> list[Markup]:
    leaning = [(cell, where) for cell in swept if (where := _leans_on(cell))]
    if not leaning:
        return [Markup("No window of layers has a cost that these examples tell from 0.")]
    lines = [Markup("Fine-tuning leans most on {}.").format(_places(leaning))]
    if len(leaning) < len(swept):
        text = "In <strong>{} of {}</strong> cases no window of layers has a cost that the examples tell from 0."
        lines.append(Markup(text).format(len(swept) - len(leaning), len(swept)))
    return lines


def _leans_on(cell: Cell) -> str | None:
    """The costliest window, and its rival where they are not told apart; None where no cost is told from 0."""
    top = cell.top()
    if top is None or not cell.leans(top.width):
        return None
    rival = cell.rival(top)
    if rival is None or rival.told_apart or not rival.separate:
        return top.name
    return f"{top.name} or {rival.window.span}"


def _whether_it_told(swept: Sequence[Cell]) -> list[Markup]:
    found = [cell.verdict(correlation) for cell in swept if (correlation := cell.first_correlation)]
    verdicts = [verdict for verdict in found if verdict != "idle"]
    many = Markup("in <strong>{} of {}</strong> cases {}")
    said = [
        many.format(verdicts.count(verdict), len(verdicts), text) if len(verdicts) > 1 else Markup(text)
        for verdict, (text, _) in _VERDICTS.items()
        if verdict in verdicts
    ]
    line = Markup("; ").join(said)
    return [line[:1].upper() + line[1:] + "."] if said else []


def _places(found: Sequence[tuple[Cell, str]]) -> Markup:
    """Layers with the cell they were found in, for the first cells; the table names the rest."""
    each = [Markup("<strong>{}</strong> (<bdi>{}</bdi>)").format(layers, cell.title) for cell, layers in found[:CARDS]]
    more = Markup(" and, in {} more cases, those in the table below").format(len(found) - CARDS)
    return Markup(", ").join(each) + (more if len(found) > CARDS else "")
