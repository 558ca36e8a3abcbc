"""The page's tables: the values of the result tables, in order, and a reason wherever there is none."""

from __future__ import annotations

import math

import pandas as pd
from synthetic import STEADY, make_tables, tiny_tables

from raysweep.report import page_tables
from raysweep.report.cells import cells_of


def only_cell(tables):
    (cell,) = cells_of(tables, ())
    return cell


def test_windows_between_nothing_and_everything_put_back():
    cell = only_cell(tiny_tables({(2, 4): [1.5, 1.7], (0, 6): [3.0, 3.0], (0, 2): [2.0, 2.2], (0, 0): [1.0, 1.2]}))
    rows = page_tables.windows_table(cell, 2).rows
    assert [row[0] for row in rows] == ["none (tuned model)", "0–1", "2–3", "all 6"]
    assert [row[1] for row in rows] == ["—", "0.5", "2.5", "—"]
    assert [float(row[2]) for row in rows] == [1.1, 2.1, 1.6, 3.0]
    assert rows[0][3:5] == ("—", "—")
    assert [float(row[3]) for row in rows[1:]] == [1.0, 0.5, 1.9]
    assert {row[5:] for row in rows} == {(2, 0)}


def test_losses_and_costs_that_are_not_there_say_why():
    rows = page_tables.windows_table(only_cell(tiny_tables({(0, 0): [1.0], (0, 2): [2.0], (2, 4): [math.nan]})), 2).rows
    assert rows[1][4] == "[n/a: one example]"
    assert rows[2][2:4] == ("n/a (none of 1 examples has a loss)",) * 2
    rows = page_tables.windows_table(only_cell(tiny_tables({(0, 2): [2.0, 2.2]})), 2).rows
    assert rows[0][3] == "n/a (the tuned model has no loss)"


def test_dynamics_of_every_setting_side_by_side():
    tables = tiny_tables(STEADY)
    wide = tables["dynamics"].assign(neighbourhood=5, delta=lambda rows: rows["delta"] / 2).iloc[:5]
    wide.loc[0, "delta"] = math.nan
    table = page_tables.dynamics_table(only_cell({"dynamics": pd.concat([tables["dynamics"], wide])}))
    assert table.columns[1::3] == ["δ (linear CKA, neighbourhood 3)", "δ (linear CKA, neighbourhood 5)"]
    assert table.rows[0][4] == "n/a (a similarity that it averages is undefined)"
    assert table.rows[1] == [1, "0.5000", "[n/a]", 1, "0.2500", "[n/a]", 1]
    assert table.rows[5][4:] == ["n/a (not measured)", "n/a", "n/a"]


def test_correlations_with_the_reason_of_an_undefined_one():
    row = {"spearman": -0.9, "ci_low": -1.0, "ci_high": -0.5, "p_value": math.nan, "reason": "too few"}
    tables = tiny_tables({**STEADY, (0, 2): [2.0] * 4}, correlation=row)
    tables["correlation"] = pd.concat([tables["correlation"], tables["correlation"].assign(spearman=math.nan, width=3)])
    defined, undefined = page_tables.correlation_table(only_cell(tables)).rows
    assert defined[:8] == ("linear CKA", 3, 2, 20, "−0.900", "[−1.000, −0.500]", "−0.500", "n/a")
    assert defined[-1] == "too few"
    assert undefined[4] == "n/a (δ or the loss is the same at all centres)"
    assert undefined[-1] == "—"


def test_health_by_layer_and_measure():
    health = pd.DataFrame(
        {
            "model": "m",
            "dataset": "d",
            "layer": [1, 0, 0],
            "measure": ["n_over_d", "n_over_d", "share_of_one"],
            "value": [-0.12345, math.nan, 2.0],
            "warning": [None, "no variance", None],
        }
    )
    table = page_tables.health_table(only_cell({"health": health}))
    assert table.columns == ["layer", "n / d", "share of one"]
    assert table.rows == [[0, "n/a (no variance)", "2"], [1, "−0.123", "n/a (not measured)"]]


def test_records_have_a_column_for_every_key():
    table = page_tables.records_table("Data sets", [{"path": "a", "wording": "chat"}, {"left_out": "2", "path": "b"}])
    assert (table.columns, table.rows) == (
        ["path", "template", "left out"],
        [["a", "chat", "—"], ["b", "—", "2"]],
    )


def test_the_summary_has_a_row_for_every_cell():
    leaning = tiny_tables({**STEADY, (0, 2): [2.0, 2.2, 1.9, 2.3], (2, 4): [1.3, 1.4, 1.2, 1.6]})
    silent = leaning["dynamics"].assign(dataset="<e>", delta=math.nan, rank=math.nan)
    tables = {**leaning, "dynamics": pd.concat([leaning["dynamics"], silent])}
    table = page_tables.summary_table(cells_of(tables, ()))
    assert table.columns[0] == "data set", "of one model"
    first, second = table.rows
    assert first[1] == "0–1"
    assert first[2] == "+1.05 [0.96, 1.14]"  # costs 1.0, 1.1, 1.0, 1.1: 1.05 ± 3.182 × 0.0577 / 2
    assert first[3:] == ("2–3: yes", "1", "—")
    assert second[0] == '<a href="#cell-2"><bdi>&lt;e&gt;</bdi></a>'
    assert second[1:] == ("—",) * 5


class TestRho:
    def test_by_model_and_data_set(self):
        tables = make_tables(models=("a", "b"), datasets=("x", "y"), widths=(1, 2), n_layers=8, n_examples=8)
        correlation = tables["correlation"].query("not (model == 'b' and dataset == 'y' and width == 2)")
        narrow, wide = page_tables.rho_tables(cells_of({**tables, "correlation": correlation}, ()))
        assert narrow.caption == "linear CKA, neighbourhood 3, windows of width 1"
        assert narrow.datasets == ["x", "y"]
        values = correlation[correlation["width"] == 1].set_index(["model", "dataset"])["spearman"]
        shown = {(model, d): rho.value for model, row in narrow.rows for d, rho in zip("xy", row, strict=True)}
        assert shown == {key: f"{value:.2f}".replace("-", "−") for key, value in values.items()}
        assert wide.rows[1][1][1] == ("n/a", "", "(not measured)", None, "")

    def test_none_for_a_single_cell(self):
        assert page_tables.rho_tables(cells_of(make_tables(datasets=("x",), n_layers=8, n_examples=8), ())) == []
