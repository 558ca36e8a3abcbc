"""What the page shows of removed components: how predictions change, and the texts side by side."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple

import pandas as pd
from markupsafe import Markup

from raysweep.report.cells import Cell
from raysweep.report.page_tables import MOST, Table
from raysweep.report.summaries import rows_of
from raysweep.report.words import decimals_for, excerpt, interval, number, number_or_reason, runs_text

PREFIX = "removal "
_WORDS = re.compile(r"removal (?P<what>.+) at (?P<layer>\d+)(?: (?P<mode>\w+) (?P<position>\w+)(?P<mean> mean kept)?)?")
_MODES = {"project": "each state's own part", "paper": "the stored state's part"}
_POSITIONS = {"last": "last token", "all": "all tokens"}
_KEYS = ["layer", "components", "mode", "position", "mean"]
_SAMPLES = 8  # examples whose texts are shown, a cell
_TEXTS = 30  # different texts that are shown of an example
_NAMED = 6  # removals that are named next to a text they share


class Compared(NamedTuple):
    """A text with components removed, split where it leaves the one with nothing removed."""

    removals: str
    alike: str
    apart: str


@dataclass(frozen=True)
class Sample:
    """One example's text with nothing removed, the others next to it, and how many of these are not shown."""

    prompt: str
    reference: str
    before: str
    after: Sequence[Compared]
    unseen: int


@dataclass(frozen=True)
class Removed:
    """The page's part on removals, of the base or the tuned model; `more` examples have texts that are not shown."""

    sentences: Sequence[Markup]
    table: Table
    samples: Sequence[Sample]
    more: int


def removed_view(cell: Cell) -> Removed | None:
    """What a cell has of removals; None without any."""
    if "removal" not in cell.tables:
        return None
    groups: list[pd.DataFrame] = []
    if "generation" in cell.tables:
        rows = cell.tables["generation"]
        rows = rows[rows["intervention"].str.startswith(PREFIX)]
        groups = [of_example for _, of_example in rows.groupby("example_id", sort=False)]
    samples = [_sample(rows) for rows in groups[:_SAMPLES]]
    return Removed(_sentences(cell), _table(cell), samples, len(groups) - len(samples))


def _table(cell: Cell) -> Table:
    removals = [rows for _, rows in cell.tables["removal"].groupby(_KEYS, sort=False, dropna=False)]
    critical = cell.change_points(cell.settings[0]) if cell.settings else []
    rows = [_row(figures, critical) for figures in removals[:MOST]]
    of = str(cell.tables["removal"]["of"].iloc[0])
    caption = (
        f"Components removed from the {of} model's states: change of the loss and divergence of the next token, in nats"
    )
    if len(removals) > MOST:
        caption += f". These are the first {MOST} of {len(removals)}; results/removal.parquet has all"
    columns = ["layer", "components", "subtracted", "at", "loss change", "95 % interval"]
    columns += ["KL", "KL of the first token", "share of variance", "texts unchanged"]
    return Table(caption, columns, rows, words={0, 1, 2, 3})


def _row(figures: pd.DataFrame, critical: Sequence[int]) -> list[str]:
    """A removal's row of the page's table, from its measures."""
    by_measure = {str(row.measure): row for row in rows_of(figures)}
    change = by_measure["loss_change"]
    decimals = decimals_for(change.ci_low, change.ci_high, spare=1)
    reason = "not known" if pd.isna(change.reason) else str(change.reason)
    others = (("kl", 4), ("kl_first", 4), ("variance_share", 3), ("text_same", 2))
    near = ", change point" if not pd.isna(change.layer) and change.layer in critical else ""
    return [
        "n/a" if pd.isna(change.layer) else f"{change.layer}{near}",
        str(change.components),
        _subtracted(change.mode, change.mean == "kept"),
        _POSITIONS.get(change.position, change.position),
        number_or_reason(change.value, reason, decimals, signed=True),
        interval(change.ci_low, change.ci_high, decimals),
        *(number(by_measure[what].value, digits) if what in by_measure else "n/a" for what, digits in others),
    ]


def _sentences(cell: Cell) -> list[Markup]:
    """Which removal raises the loss most, and what was measured."""
    of = str(cell.tables["removal"]["of"].iloc[0])
    changes = cell.tables["removal"][cell.tables["removal"]["measure"] == "loss_change"].dropna(subset=["value"])
    if not len(changes):
        return [Markup("No removal of components could be measured. The table has the reasons.")]
    top = changes.iloc[int(changes["value"].to_numpy().argmax())]
    decimals = decimals_for(float(top["ci_low"]), float(top["ci_high"]))
    layers = sorted({int(layer) for layer in changes["layer"]})
    text = (
        "Principal components were removed from the {} model’s states, at one layer at a time (layers {}). Removing {} at layer {} "
        "({}, {}) raises the loss of the reference responses most: it changes by <strong>{} nats</strong> {}."
    )
    told = (
        *(of, runs_text(layers), _components(str(top["components"])), int(top["layer"])),
        *(_subtracted(str(top["mode"]), top["mean"] == "kept"), _POSITIONS.get(str(top["position"]), top["position"])),
        number(float(top["value"]), decimals, signed=True),
        interval(float(top["ci_low"]), float(top["ci_high"]), decimals),
    )
    return [Markup(text).format(*told)]


def _subtracted(mode: str, keeps_mean: bool) -> str:
    return _MODES.get(mode, mode) + (", from the mean" if keeps_mean else "")


def _components(components: str) -> str:
    """`top 3` or `0,2` in a sentence."""
    first, _, count = components.partition(" ")
    if first == "top":
        return "the first component" if count == "1" else f"the first {count} components"
    return f"component {components}" if components.isdigit() else f"components {components.replace(',', ', ')}"


def _sample(rows: pd.DataFrame) -> Sample:
    found = [
        (match, str(text))
        for words, text in zip(rows["intervention"], rows["text"].astype(str).map(excerpt), strict=True)
        if (match := _WORDS.fullmatch(words))
    ]
    before = next((text for match, text in found if match["what"] == "none"), "")
    by_text: dict[str, list[str]] = {}
    for match, text in found:
        if match["what"] != "none":
            mode, position = match["mode"], match["position"]
            how = f"{mode}, {_POSITIONS.get(position, position)}{', mean kept' if match['mean'] else ''}"
            name = f"layer {match['layer']}: {match['what']} ({how})"
            by_text.setdefault(text, []).append(name)
    after = [_compared(_together(names), before, text) for text, names in by_text.items()]
    prompt, reference = (excerpt(str(rows[column].iloc[0])) for column in ("prompt", "reference"))
    return Sample(prompt, reference, before, after[:_TEXTS], max(0, len(after) - _TEXTS))


def _compared(names: str, before: str, text: str) -> Compared:
    shared = sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(before, text, strict=False)))
    return Compared(names, text[:shared], text[shared:])


def _together(names: Sequence[str]) -> str:
    more = f"; and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return "; ".join(names[:_NAMED]) + more
