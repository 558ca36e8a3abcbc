"""What the page shows of components that were removed: what it does to predictions, and the texts side by side."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple

import pandas as pd
from markupsafe import Markup

from raysweep.report.cells import Cell
from raysweep.report.page_tables import MOST, Table
from raysweep.report.words import decimals_for, interval, number, number_or_reason, runs_text

PREFIX = "removal "
_WORDS = re.compile(r"removal (?P<what>.+) at (?P<layer>\d+)(?: (?P<mode>\w+) (?P<position>\w+))?")
_MODES = {"project": "each state's own part", "paper": "the stored state's part"}
_POSITIONS = {"last": "last token", "all": "all tokens"}
_KEYS = ["layer", "components", "mode", "position"]
_SAMPLES = 8  # examples whose texts are shown, a cell
_TEXTS = 30  # different texts that are shown of an example
_NAMED = 6  # removals that are named beside a text they share


class Compared(NamedTuple):
    """A text with components removed, split where it leaves the one with nothing removed."""

    removals: str
    alike: str
    apart: str


@dataclass(frozen=True)
class Sample:
    """One example's text with nothing removed, the others beside it, and how many of these are not shown."""

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


def _figures(cell: Cell) -> pd.DataFrame:
    """A row a removal, with `value`, `ci_low`, `ci_high` and `reason` of every measure as columns (what, measure)."""
    rows = cell.tables["removal"].copy()
    rows["layer"] = rows["layer"].astype("Int64")
    wide = rows.set_index([*_KEYS, "measure"])[["value", "ci_low", "ci_high", "reason"]].unstack("measure")
    return wide.reindex(pd.MultiIndex.from_frame(rows[_KEYS].drop_duplicates()))


def _table(cell: Cell) -> Table:
    figures = _figures(cell)
    critical = cell.change_points(cell.settings[0]) if cell.settings else []
    rows = []
    for keys, row in list(figures.iterrows())[:MOST]:
        layer, components, mode, position = keys  # type: ignore[misc]
        change, low, high = (float(row.get((what, "loss_change"), math.nan)) for what in ("value", "ci_low", "ci_high"))
        reason = row.get(("reason", "loss_change"))
        decimals = decimals_for(low, high, spare=1)

        def shown(measure: str, digits: int, row: pd.Series = row) -> str:  # type: ignore[type-arg]
            return number(float(row.get(("value", measure), math.nan)), digits)

        rows.append(
            (
                "n/a" if pd.isna(layer) else f"{layer}{', change point' if layer in critical else ''}",
                components,
                _MODES.get(mode, mode),
                _POSITIONS.get(position, position),
                number_or_reason(change, "not known" if pd.isna(reason) else str(reason), decimals, signed=True),
                interval(low, high, decimals),
                shown("kl", 4),
                shown("kl_first", 4),
                shown("variance_share", 3),
                shown("text_same", 2),
            )
        )
    of = str(cell.tables["removal"]["of"].iloc[0])
    caption = f"Components removed from the {of} model's states: changes of the loss and divergence of the next token, in nats"
    if len(figures) > MOST:
        caption += f"; the first {MOST} of {len(figures)}, all of which are in results/removal.parquet"
    columns = ("layer", "components", "subtracted", "at", "loss change", "95 % interval")
    columns += ("KL", "KL of the first token", "share of variance", "texts unchanged")
    return Table(caption, columns, rows, words={0, 1, 2, 3})


def _sentences(cell: Cell) -> list[Markup]:
    """Which removal raises the loss most, and what was measured."""
    of = str(cell.tables["removal"]["of"].iloc[0])
    changes = cell.tables["removal"][cell.tables["removal"]["measure"] == "loss_change"].dropna(subset=["value"])
    if not len(changes):
        return [Markup("No removal of components could be measured; the table has the reasons.")]
    top = changes.iloc[int(changes["value"].to_numpy().argmax())]
    decimals = decimals_for(float(top["ci_low"]), float(top["ci_high"]))
    layers = sorted({int(layer) for layer in changes["layer"]})
    text = (
        "Principal components were taken out of the {} model’s states at one layer at a time (layers {}). The removal that "
        "raises the loss of the reference responses most, {} at layer {} ({}, {}), changes it by <strong>{} nats</strong> {}."
    )
    told = (
        *(of, runs_text(layers), _components(str(top["components"])), int(top["layer"])),
        *(_MODES.get(str(top["mode"]), top["mode"]), _POSITIONS.get(str(top["position"]), top["position"])),
        number(float(top["value"]), decimals, signed=True),
        interval(float(top["ci_low"]), float(top["ci_high"]), decimals),
    )
    return [Markup(text).format(*told)]


def _components(components: str) -> str:
    """`top 3` or `0,2` in a sentence."""
    first, _, count = components.partition(" ")
    if first == "top":
        return "the first component" if count == "1" else f"the first {count} components"
    return f"component {components}" if components.isdigit() else f"components {components.replace(',', ', ')}"


def _sample(rows: pd.DataFrame) -> Sample:
    found = [
        (match, str(text))
        for words, text in zip(rows["intervention"], rows["text"], strict=True)
        if (match := _WORDS.fullmatch(words))
    ]
    before = next((text for match, text in found if match["what"] == "none"), "")
    by_text: dict[str, list[str]] = {}
    for match, text in found:
        if match["what"] != "none":
            mode, position = match["mode"], match["position"]
            name = f"layer {match['layer']}: {match['what']} ({mode}, {_POSITIONS.get(position, position)})"
            by_text.setdefault(text, []).append(name)
    after = [_compared(_together(names), before, text) for text, names in by_text.items()]
    prompt, reference = str(rows["prompt"].iloc[0]), str(rows["reference"].iloc[0])
    return Sample(prompt, reference, before, after[:_TEXTS], max(0, len(after) - _TEXTS))


def _compared(names: str, before: str, text: str) -> Compared:
    shared = sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(before, text, strict=False)))
    return Compared(names, text[:shared], text[shared:])


def _together(names: Sequence[str]) -> str:
    more = f"; and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return "; ".join(names[:_NAMED]) + more
