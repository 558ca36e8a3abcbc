"""What a reader must know first: sweeps that show nothing, because of what base and tuned are.

Base and tuned may be the same model, or the tuned one may be no better than its base on the data set, mostly because records
reach it in another form than in its training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup

from raysweep.report.cells import Cell
from raysweep.report.summaries import mean_difference
from raysweep.report.words import decimals_for, interval, number

NAMED = 6  # cells that are named one by one
_FEWEST = 3  # examples whose interval counts; with two it is so wide that nearly all include 0


class Gain(NamedTuple):
    """How much lower the tuned model's loss is than the base's, paired over examples, nats."""

    tuned: float
    base: float
    mean: float
    low: float
    high: float
    examples: int


def gain_of(cell: Cell) -> Gain | None:
    """What fine-tuning gained on the data set; None unless the base's losses (or all its layers') and the tuned model's are there.

    The base's own losses count before those of the tuned model with every layer put back, whose embedding and head are tuned.
    """
    if "substitution" not in cell.tables:
        return None
    rows = cell.tables["substitution"]
    rows = rows[(rows["estimator"] == "exact") & (rows["coefficient"] == 1)]
    windows = rows[rows["kind"] == "window"]
    tuned_E = _by_example(windows[windows["width"] == 0])
    base_E = _by_example(rows[(rows["kind"] == "reverse") & (rows["width"] == 0)])
    if not len(base_E):
        base_E = _by_example(windows[windows["width"] == cell.n_layers])
    both = (base_E - tuned_E).dropna().index
    if not len(both):
        return None
    tuned_E, base_E = tuned_E[both], base_E[both]
    return Gain(float(tuned_E.mean()), float(base_E.mean()), *mean_difference(base_E, tuned_E), len(both))


def _by_example(rows: pd.DataFrame) -> pd.Series[float]:
    return rows.drop_duplicates("example_id").set_index("example_id")["loss"].astype(float)


def is_no_better(gain: Gain, resolution: float) -> bool:
    """Whether the examples do not show the tuned model to be better than its base by more than `resolution`."""
    if gain.examples >= _FEWEST and not math.isnan(gain.low):
        return not gain.low > resolution
    return gain.mean <= resolution


def is_unmoved(cell: Cell) -> bool:
    """Whether no window can cost anything: all decoder layers are identical, or every window gives the very same losses."""
    if cell.shared is not None and cell.shared.every_layer:
        return True
    paired = cell.paired
    spans: list[Any] = list(paired.columns)
    others = [span for span in spans if span != (0, 0)]
    if (0, 0) not in spans or not others:
        return False
    untouched_E = paired[(0, 0)].to_numpy(dtype=float)
    if not np.isfinite(untouched_E).any():
        return False
    return bool(all(np.array_equal(paired[span].to_numpy(), untouched_E, equal_nan=True) for span in others))


def void_sentences(cells: Sequence[Cell]) -> list[Markup]:
    """What comes before every other sentence: cells in which base and tuned are the same, or tuned is no better."""
    swept = [cell for cell in cells if cell.widths]
    unmoved = [cell for cell in swept if is_unmoved(cell)]
    poor = [
        cell
        for cell in swept
        if not is_unmoved(cell) and (gain := gain_of(cell)) and is_no_better(gain, cell.resolution)
    ]
    return [
        *_each(
            unmoved, unmoved_sentence, "base and tuned are the same in every decoder layer, so every window costs 0"
        ),
        *_each(poor, no_better_sentence, f"the tuned model is no better than its base. {_QUESTION}", len(swept)),
    ]


_QUESTION = "Were the models tuned with this prompt template and format?"


def _each(
    cells: Sequence[Cell], sentence: Callable[[Cell], Markup], together: str, of: int | None = None
) -> list[Markup]:
    """A sentence for each cell, or one for all of many."""
    if len(cells) <= NAMED:
        return [sentence(cell) for cell in cells]
    names = Markup(", ").join(Markup("<bdi>{}</bdi>").format(cell.title) for cell in cells[:NAMED])
    text = Markup("In <strong>{}</strong> cases ({} and {} more) {}")
    line = text.format(len(cells) if of is None else f"{len(cells)} of {of}", names, len(cells) - NAMED, together)
    return [line if line.endswith(("?", ".")) else line + "."]


def unmoved_sentence(cell: Cell) -> Markup:
    """That no window costs anything, and why."""
    if cell.shared is not None and (text := cell.shared.sentence):
        claim, _, rest = text.partition(": ")
        end = "" if text.endswith("?") else "."
        return Markup("<strong>{}</strong>: {}{}").format(claim[0].upper() + claim[1:], rest, end)
    return Markup(
        "<strong>No window changes any loss of <bdi>{}</bdi>.</strong> Base and tuned give the same results, whichever layers are "
        "replaced. Check whether the tuned checkpoint is the base itself."
    ).format(_name(cell))


def no_better_sentence(cell: Cell) -> Markup:
    """That the tuned model is no better than its base, with both losses, and what to check."""
    gain = gain_of(cell)
    assert gain is not None
    decimals = 2 if math.isnan(gain.low) else decimals_for(gain.low, gain.high)
    if gain.high < 0:
        verdict, of = "worse than its base", ""
    elif gain.mean <= cell.resolution:
        verdict, of = "no better than its base", ""
    else:
        verdict, of = "not measurably better than its base", f" on these {gain.examples} examples"
    text = (
        "<strong>On <bdi>{}</bdi> the tuned model is {}</strong>{}: mean loss {} against {} nats, a gain of {} {}. {}"
    )
    return Markup(text).format(
        _name(cell),
        verdict,
        of,
        number(gain.tuned, decimals),
        number(gain.base, decimals),
        number(gain.mean, decimals, signed=True),
        interval(gain.low, gain.high, decimals),
        _asked(cell),
    )


def _asked(cell: Cell) -> str:
    """Whether the model was tuned on records in this form."""
    wording, record_format = cell.record.get("wording"), cell.record.get("format")
    if not wording or not record_format:
        return "Was the model tuned with this prompt template and format?"
    return f"Was the model tuned with this prompt template ({wording}) and format ({record_format})?"


def _name(cell: Cell) -> str:
    return f"{cell.model} · {cell.dataset}"
