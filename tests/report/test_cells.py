"""Facts of one model on one data set, from tables small enough to see them."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from synthetic import STEADY, tiny_tables

from raysweep.report.cells import Setting, cells_of

LEANING = {(0, 2): [2.0, 2.2, 1.9, 2.3], (2, 4): [1.3, 1.4, 1.2, 1.6]}


def cell_of(losses, **more):
    (cell,) = cells_of({**tiny_tables(losses), **more}, ())
    return cell


class TestCells:
    def test_every_model_and_data_set_of_any_table_in_order_of_appearance(self):
        rows = tiny_tables(STEADY)["substitution"]
        health = pd.DataFrame({"model": ["m", "n"], "dataset": "e"})
        cells = cells_of({"substitution": rows, "health": health}, ())
        assert [(cell.title, cell.anchor) for cell in cells] == [
            ("m · d", "cell-1"),
            ("m · e", "cell-2"),
            ("n · e", "cell-3"),
        ]
        assert [sorted(cell.tables) for cell in cells] == [["substitution"], ["health"], ["health"]]
        assert [cell.title for cell in cells_of({"health": health.iloc[:1]}, ())] == ["m · e"]

    def test_data_sets_of_one_model_are_named_alone(self):
        assert [
            cell.title for cell in cells_of({"health": pd.DataFrame({"model": "m", "dataset": ["a", "b"]})}, ())
        ] == [
            "a",
            "b",
        ]

    def test_the_coarsest_precision_of_its_own_checkpoints_limits_what_is_told_apart(self):
        checkpoints = [{"model": "m", "dtype": "float32"}, {"model": "m", "dtype": "bfloat16"}]
        tables = tiny_tables(STEADY)
        assert cells_of(tables, checkpoints)[0].resolution == 1e-3
        assert cells_of(tables, checkpoints[:1])[0].resolution == 1e-5
        assert cells_of(tables, [{"model": "n", "dtype": "float16"}])[0].resolution == 1e-5

    def test_a_cell_without_a_table_has_nothing_of_it(self):
        (cell,) = cells_of({"health": pd.DataFrame({"model": ["m"], "dataset": ["d"]})}, ())
        assert (cell.n_layers, cell.widths, cell.metrics, cell.settings, cell.correlations) == (0, [], [], [], [])
        assert cell.top() is None
        assert cell.first_correlation is None


class TestWindows:
    def test_widths_are_those_swept_in_the_order_of_the_table(self):
        cell = cell_of({(0, 3): [2.0], (0, 6): [3.0], (0, 0): [1.0], (0, 1): [1.5], (1, 2): [1.7]})
        assert cell.widths == [3, 1]
        assert cell.top().name == "layers 0–2"
        assert cell.top(1).name == "layer 1"

    def test_the_rival_is_the_next_costliest_that_shares_no_layer(self):
        cell = cell_of({**STEADY, **LEANING, (1, 3): [1.9, 2.1, 1.8, 2.2]})
        rival = cell.rival(cell.top())
        assert (rival.window.span, rival.separate, rival.told_apart) == ("2–3", True, True)
        assert rival.mean == pytest.approx((0.7 + 0.8 + 0.7 + 0.7) / 4)
        assert rival.low < rival.mean < rival.high

    def test_an_overlapping_rival_where_there_is_no_other(self):
        cell = cell_of({**STEADY, (0, 2): [2.0, 2.4, 1.9, 2.5], (1, 3): [2.3, 2.0, 2.1, 2.2]})
        rival = cell.rival(cell.top())
        assert (rival.window.span, rival.separate, rival.told_apart) == ("1–2", False, False)
        assert [window.span for window in rival.alike] == ["1–2"]

    def test_no_rival_of_the_only_window(self):
        cell = cell_of({**STEADY, (0, 2): [2.0, 2.2, 1.9, 2.3]})
        assert cell.rival(cell.top()) is None

    def test_a_cost_below_the_resolution_is_no_leaning(self):
        assert cell_of({**STEADY, **LEANING}).leans(2)
        steady = STEADY[(0, 0)]
        assert not cell_of({**STEADY, (0, 2): [loss + 5e-6 for loss in steady]}).leans(2)
        assert not cell_of({**STEADY, (0, 2): [loss - 1 for loss in steady]}).leans(2)


@pytest.mark.parametrize(
    ("low", "high", "p", "verdict"),
    [
        (-0.9, -0.6, 0.05, "predicts"),
        (-0.9, -0.6, 0.051, "maybe"),
        (-0.9, -0.6, math.nan, "maybe"),
        (-0.9, 0.0, 0.01, "unclear"),
        (math.nan, math.nan, 0.01, "unclear"),
        (0.2, 0.7, 0.01, "wrong"),
    ],
)
def test_verdicts(low, high, p, verdict):
    row = {"spearman": 0.1, "ci_low": low, "ci_high": high, "p_value": p}
    (cell,) = cells_of(tiny_tables({**STEADY, **LEANING}, correlation=row), ())
    assert cell.verdict(cell.first_correlation) == verdict
    (idle,) = cells_of(tiny_tables({**STEADY, (0, 2): STEADY[(0, 0)]}, correlation=row), ())
    assert idle.verdict(idle.first_correlation) == "idle"


class TestReasons:
    def test_a_figure_that_has_no_reason_has_none_however_the_table_says_so(self):
        for missing in (None, pd.NA, math.nan):
            row = {"spearman": 0.1, "ci_low": 0.0, "ci_high": 0.2, "p_value": 0.3, "reason": missing}
            (cell,) = cells_of(tiny_tables({**STEADY, **LEANING}, correlation=row), ())
            assert cell.first_correlation.reason is None

    def test_an_undefined_delta_has_the_reason_of_a_similarity_near_it(self):
        rows = [(i, j, "far" if j == 5 else "flat" if (i, j) == (2, 3) else None) for i in range(6) for j in range(6)]
        similarity = pd.DataFrame(rows, columns=["layer_i", "layer_j", "reason"])
        similarity = similarity.assign(model="m", dataset="d", metric="cka_linear", value=math.nan)
        cell, setting = cell_of(STEADY, similarity=similarity), Setting("cka_linear", 3)
        assert cell.delta_reason(setting, 2) == "flat"
        assert cell.delta_reason(setting, 0) == "a similarity that it averages is undefined"

    def test_an_undefined_rho_has_the_reason_of_what_it_is_made_of(self):
        row = {"spearman": math.nan, "ci_low": math.nan, "ci_high": math.nan, "p_value": math.nan}

        def reason(tables):
            (cell,) = cells_of(tables, ())
            return cell.rho_reason(cell.first_correlation)

        tables = tiny_tables({**STEADY, **LEANING}, correlation=row)
        assert reason(tables) == "δ or the loss is the same at all centres"
        tables["dynamics"].loc[[1, 2], "delta"] = math.nan
        assert reason(tables) == "δ is undefined at layers 1–2: a similarity that it averages is undefined"
        lost = tiny_tables({**STEADY, (0, 2): [math.nan] * 4, (2, 4): [1.0] * 4}, correlation=row)
        assert reason(lost) == "some window has no loss"
