"""The page's tables of changes that are no whole windows, and of verified losses."""

from __future__ import annotations

import math
import re

import pandas as pd
from synthetic import make_tables

from raysweep.report.cells import cells_of
from raysweep.report.changes import changes_table, verification_lines, verification_table
from raysweep.report.summary import summary_lines

OTHERS = [
    {"kind": "set", "layers": "3,5,6", "start": None, "stop": None, "centre": math.nan, "width": 3},
    {"kind": "window", "layers": "3-7", "start": 3, "stop": 8, "centre": 5.0, "width": 5, "coefficient": 0.25},
    {"kind": "mlp", "layers": "3-7", "start": 3, "stop": 8, "centre": 5.0, "width": 5},
    {"kind": "reverse", "layers": "", "start": 0, "stop": 0, "centre": math.nan, "width": 0},
]


def with_others(tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Rows of every other kind, their losses far above every window's."""
    rows = tables["substitution"]
    untouched = rows[rows["width"] == 0]
    more = [untouched.assign(**other, loss=untouched["loss"] + 10 + n) for n, other in enumerate(OTHERS)]
    together = pd.concat([*more, rows], ignore_index=True).astype({"start": "Int64", "stop": "Int64"})
    return {**tables, "substitution": together}


def without_gap(tables: dict[str, pd.DataFrame]) -> list[str]:
    """The summary, without the share of the gap: the base model's own loss is one of the other rows."""
    lines = [re.sub(r", [^,]* the gap between base and tuned", "", line) for line in summary_lines(tables)]
    assert lines != summary_lines(tables)
    return lines


def test_the_answer_is_about_whole_windows_whatever_else_was_changed() -> None:
    tables = make_tables(datasets=["sums"])
    (plain,), (mixed,) = cells_of(tables, ()), cells_of(with_others(tables), ())
    pd.testing.assert_frame_equal(plain.windows, mixed.windows)
    assert (plain.n_layers, plain.widths, plain.top()) == (mixed.n_layers, mixed.widths, mixed.top())
    assert without_gap(tables) == without_gap(with_others(tables))
    del tables["correlation"]
    assert without_gap(tables) == without_gap(with_others(tables))
    assert changes_table(plain) is None


def test_every_other_change_has_a_row() -> None:
    (cell,) = cells_of(with_others(make_tables(datasets=["sums"])), ())
    table = changes_table(cell)
    assert table is not None
    assert [row[:3] for row in table.rows] == [
        ("set of layers", "3, 5–6", "1"),
        ("layers", "3–7", "0.25"),
        ("MLP", "3–7", "1"),
        ("tuned layers in the base", "none", "1"),
    ]
    assert [row[4:] for row in table.rows] == [
        (f"+{10 + n}.0000", f"[{10 + n}.0000, {10 + n}.0000]", 60) for n in range(4)
    ]


def test_only_the_costliest_of_many_are_shown() -> None:
    tables = make_tables(datasets=["sums"], n_layers=24)
    rows = tables["substitution"]
    tables["substitution"] = pd.concat(
        [rows, rows.assign(kind="mlp"), rows.assign(kind="attention"), rows.assign(coefficient=0.5)]
    )
    (cell,) = cells_of(tables, ())
    table = changes_table(cell)
    assert table is not None
    assert len(table.rows) == 60
    assert table.caption.endswith("These are the 60 costliest of 66; results/substitution.parquet has all")
    assert not any(row[1] == "none" for row in table.rows), "which cost nothing"


def test_verified_losses_are_told_and_shown() -> None:
    told = {"model": "tiny", "dataset": "sums", "kind": "window", "coefficient": 1.0}
    losses = {"example_id": [0, 1], "loss": [1.0, 2.0], "recomputed": [1.0, 2.0 - 3e-7], "difference": [0.0, -3e-7]}
    rows = pd.concat([pd.DataFrame({**told, **losses, "layers": layers}) for layers in ("", "3-7")], ignore_index=True)
    tables = {**make_tables(datasets=["sums"]), "verification": rows}
    assert verification_lines(tables) == [
        "tiny on sums: 2 windows or other changes recomputed by actually swapping the modules, on 2 examples; losses differ by at most 3.0e-07"
    ]
    (cell,) = cells_of(tables, ())
    table = verification_table(cell)
    assert table is not None
    assert table.rows[1] == ("layers", "3–7", "1", 2, "2.000000", "2.000000", "3.0e-07")
    assert verification_lines(tables)[0] in summary_lines(tables)
