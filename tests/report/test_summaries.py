"""What is summed up from the tables, against scipy and plain recomputation."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from scipy import stats
from synthetic import frame_of

from raysweep.report import summaries

WIDTH, LAYERS = 5, 24


@pytest.fixture(scope="module")
def cell(tables):
    """The rows of the first data set, table by table."""
    return {name: table[table["dataset"] == "sums"] for name, table in tables.items()}


@pytest.fixture(scope="module")
def windows(cell):
    return summaries.window_losses(summaries.paired_losses(cell["substitution"]), LAYERS)


def losses_of(substitution, start, stop):
    rows = substitution[(substitution["start"] == start) & (substitution["stop"] == stop)]
    return rows.sort_values("example_id")["loss"].to_numpy()


class TestWindowLosses:
    def test_every_window_against_scipys_paired_interval(self, cell, windows):
        tuned_E = losses_of(cell["substitution"], 0, 0)
        assert len(windows) == 1 + (LAYERS - WIDTH + 1) + 1
        for row in windows.itertuples():
            change_E = losses_of(cell["substitution"], row.start, row.stop) - tuned_E
            assert row.loss == pytest.approx(losses_of(cell["substitution"], row.start, row.stop).mean())
            assert row.cost == pytest.approx(change_E.mean())
            if row.role != "tuned":
                low, high = stats.t.interval(0.95, len(change_E) - 1, change_E.mean(), stats.sem(change_E))
                assert (row.cost_low, row.cost_high) == pytest.approx((low, high))
        roles = windows.set_index(["start", "stop"])["role"]
        assert roles[(0, 0)] == "tuned"
        assert roles[(0, LAYERS)] == "all"
        assert (roles == "window").sum() == LAYERS - WIDTH + 1

    def test_a_missing_loss_leaves_its_example_out_of_both_sides(self):
        frame = frame_of({(0, 0): [1.0, 2.0, math.nan, 4.0], (0, 2): [1.5, math.nan, 9.0, 5.5]})
        row = summaries.window_losses(summaries.paired_losses(frame), 6).set_index("role").loc["window"]
        assert row.cost == pytest.approx((0.5 + 1.5) / 2)
        assert row.loss == pytest.approx((1.5 + 9.0 + 5.5) / 3)
        assert (row.examples, row.left_out) == (3, 1)

    def test_without_the_tuned_model_costs_are_nan_and_the_highest_loss_is_the_costliest(self):
        frame = frame_of({(0, 2): [1.0, 2.0], (1, 3): [2.0, 3.0]})
        windows = summaries.window_losses(summaries.paired_losses(frame), 6)
        assert windows["cost"].isna().all()
        assert summaries.costliest(windows, 2).name == "layers 1–2"

    def test_an_infinite_loss_has_no_interval(self):
        frame = frame_of({(0, 0): [1.0, 1.0, 1.0], (0, 2): [2.0, math.inf, 2.0]})
        row = summaries.window_losses(summaries.paired_losses(frame), 6).set_index("role").loc["window"]
        assert row.cost == math.inf
        assert math.isnan(row.cost_low)

    def test_sets_and_scaled_substitutions_are_not_windows(self):
        frame = frame_of({(0, 0): [1.0, 1.0], (0, 2): [2.0, 2.0]})
        others = [
            frame.assign(kind="set", start=math.nan, stop=math.nan),
            frame.assign(coefficient=0.5, loss=7.0),
        ]
        mixed = pd.concat([*others, frame], ignore_index=True)
        pd.testing.assert_frame_equal(summaries.paired_losses(mixed), summaries.paired_losses(frame))


class TestChangePoints:
    def test_change_points_are_the_fifth_of_smallest_delta(self, cell):
        smallest = cell["dynamics"].sort_values("delta")["layer"].head(5)
        assert summaries.change_points(cell["dynamics"]) == sorted(smallest)

    def test_layers_without_a_rank_are_no_change_points(self):
        rank = pd.array([None, 2, 1, None], dtype="Int64")
        assert summaries.change_points(pd.DataFrame({"layer": range(4), "rank": rank})) == [2]
