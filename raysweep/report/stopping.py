"""What the page and the commands say about sweeps that may stop early: after how many examples, why, and the declared set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from raysweep.report.cells import Cell
from raysweep.report.summaries import rows_of
from raysweep.report.words import runs_text

if TYPE_CHECKING:
    import pandas as pd


def stopping_sentences(cell: Cell) -> list[Markup]:
    """Where the cell's sweep stopped and what that settles; none for a sweep of all examples."""
    return [_sentence(row) for row in rows_of(cell.tables["stopping"])] if "stopping" in cell.tables else []


def stopping_lines(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """A plain line for every model and data set whose sweep might stop early."""
    if "stopping" not in tables:
        return []
    return [f"{row.model} on {row.dataset}: {_sentence(row).striptags()}" for row in rows_of(tables["stopping"])]


def _sentence(row: Any) -> Markup:
    which, asked, *_ = str(row.rule).split()
    early = row.examples < row.of
    if which == "half_width":
        if early:
            text = "The sweep stopped after <strong>{} of {} examples</strong>, drawn at random: {}; the target is {}."
            return Markup(text).format(row.examples, row.of, row.reason, asked)
        text = "The sweep used all {} examples: {}; the target of {} is {}."
        return Markup(text).format(row.of, row.reason, asked, "met" if row.settled else "not met")
    windows = Markup("<strong>{}</strong>").format(_windows(str(row.set)))
    what = f"the {asked} costliest windows of{str(row.rule).partition(' of')[2]}"
    if early:
        text = (
            "The sweep stopped after <strong>{} of {} examples</strong>, drawn at random. With {:g} % confidence, {} "
            "over all {} examples are {}."
        )
        return Markup(text).format(row.examples, row.of, 100 * row.confidence, what, row.of, windows)
    if row.settled:
        return Markup("The sweep used all {} examples before the set was settled: {} are {}.").format(
            row.of, what, windows
        )
    return Markup("The sweep used all {} examples, and {} are among {}: {}.").format(row.of, what, windows, row.reason)


def _windows(text: str) -> str:
    """The set's layers as the page writes them: "0–4; 18–22"."""
    ends = (layers.partition("-") for layers in text.split("; "))
    return "; ".join(runs_text(range(int(first), int(last or first) + 1)) for first, _, last in ends)
