"""The page's part on removed components: rows, sentences, and texts beside the one with nothing removed, escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from raysweep.report.cells import Cell, cells_of
from raysweep.report.page import Provenance, write_report
from raysweep.report.removals import removed_view

EVIL = "<script>alert(1)</script>"
MEASURES = ("loss_before", "loss", "loss_change", "kl", "kl_first", "inner_product", "variance_share", "text_same")


def figures(layer: int | None, components: str, change: float, **more: Any) -> list[dict[str, Any]]:
    told = {"model": "m", "dataset": "d", "of": "base", "layer": layer, "components": components, "mode": "project"}
    told |= {"mean": "removed", "position": "last", "reason": None} | more
    values = dict.fromkeys(MEASURES, 0.5) | {"loss_change": change}
    return [
        {**told, "measure": name, "value": value, "ci_low": value - 0.1, "ci_high": value + 0.1}
        for name, value in values.items()
    ]


def text(words: str, written: str) -> dict[str, Any]:
    told = {"model": "m", "dataset": "d", "example_id": 0, "prompt": EVIL, "reference": "ref"}
    return {**told, "intervention": words, "text": written}


@pytest.fixture
def tables() -> dict[str, pd.DataFrame]:
    rows = [*figures(2, "top 1", 0.25), *figures(5, "0,2", 1.5, mode="paper", mean="kept", position="all")]
    rows += figures(None, "top 3", float("nan"), reason="fewer than 2 layers have a δ")
    texts = [
        text("removal none at 2", "2 + 3 = 5"),
        text("removal top 1 at 2 project last", "2 + 3 = 6"),
        text("removal none at 5", "2 + 3 = 5"),
        text("removal 0,2 at 5 paper all mean kept", "2 + 3 = 5"),
        text("window 1-2", EVIL),
    ]
    removal = pd.DataFrame(rows).astype({"layer": "Int64", "reason": "string"})
    return {"removal": removal, "generation": pd.DataFrame(texts)}


def cell_of(tables: dict[str, pd.DataFrame]) -> Cell:
    return cells_of(tables, [])[0]


def test_every_removal_has_a_row_and_the_dearest_a_sentence(tables: dict[str, pd.DataFrame]) -> None:
    view = removed_view(cell_of(tables))
    assert view is not None
    assert [list(row)[:6] for row in view.table.rows] == [
        ["2", "top 1", "each state's own part", "last token", "+0.25", "[0.15, 0.35]"]
        if row[0] == "2"
        else ["5", "0,2", "the stored state's part, from the mean", "all tokens", "+1.50", "[1.40, 1.60]"]
        if row[0] == "5"
        else ["n/a", "top 3", "each state's own part", "last token", "n/a (fewer than 2 layers have a δ)", "[n/a]"]
        for row in view.table.rows
    ]
    assert len(view.table.rows) == 3
    sentence = view.sentences[0].unescape()
    assert "one layer at a time (layers 2, 5)" in sentence
    assert (
        "Removing components 0, 2 at layer 5 (the stored state's part, from the mean, all tokens) raises the loss"
        in sentence
    )
    assert "<strong>+1.50 nats</strong> [1.40, 1.60]." in sentence


def test_texts_stand_beside_the_one_with_nothing_removed_and_differ_where_it_is_marked(
    tables: dict[str, pd.DataFrame],
) -> None:
    view = removed_view(cell_of(tables))
    assert view is not None
    (sample,) = view.samples
    assert sample.before == "2 + 3 = 5"
    assert [tuple(compared) for compared in sample.after] == [
        ("layer 2: top 1 (project, last token)", "2 + 3 = ", "6"),
        ("layer 5: 0,2 (paper, all tokens, mean kept)", "2 + 3 = 5", ""),
    ]


def test_no_removal_no_part(tables: dict[str, pd.DataFrame]) -> None:
    assert removed_view(cell_of({"generation": tables["generation"]})) is None
    alone = removed_view(cell_of({"removal": tables["removal"]}))
    assert alone is not None
    assert not alone.samples
    nowhere = removed_view(cell_of({"removal": tables["removal"].iloc[-8:]}))
    assert nowhere is not None
    assert nowhere.sentences == ["No removal of components could be measured. The table has the reasons."]


def test_the_page_is_written_and_what_models_say_is_escaped(tables: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    origin = Provenance("run", "2026-01-01T00:00:00+00:00", None, None, {}, [], [], [], [], [], "")
    page = write_report(tables, origin, tmp_path).read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<mark>6</mark>" in page
    assert page.count("&lt;script&gt;") == 3, "the prompt twice, the window's text once"
    assert "window 1-2" in page
