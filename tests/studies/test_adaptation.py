"""Arms compared over steps: against plain sums by hand, with every way in which they cannot be."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from raysweep.studies.adaptation import COLUMNS, adaptation_table, loss_curves

ARMS = ("critical", "non_critical", "all")


def curve(arm, seed, losses, steps=None, split="test"):
    steps = steps or [10 * place for place in range(len(losses))]
    return pd.DataFrame({"arm": arm, "seed": seed, "step": steps, "split": split, "loss": losses})


def training(*curves):
    return pd.concat(curves, ignore_index=True).sample(frac=1, random_state=0)  # in no order


def both(critical, others, arms=("critical", "non_critical")):
    rows = [curve(arms[0], seed, losses) for seed, losses in enumerate(critical)]
    return adaptation_table(training(*rows, *(curve(arms[1], s, losses) for s, losses in enumerate(others))), arms)


def test_seeds_are_paired_and_negative_is_below():
    table = both([[3, 1, 1], [5, 3, 2]], [[3, 2, 1], [5, 4, 4]])
    assert list(table.columns) == list(COLUMNS)
    assert table[["arm", "versus", "measure", "seeds", "steps"]].to_numpy().tolist() == [
        ["critical", "non_critical", "area", 2, 20],
        ["critical", "non_critical", "final", 2, 20],
    ]
    areas = np.array([-(0 + 1) / 2 - (1 + 0) / 2, -(0 + 1) / 2 - (1 + 2) / 2]) / 2
    finals = np.array([0.0, -2.0])
    assert table["value"].tolist() == pytest.approx([areas.mean(), finals.mean()])
    t = 12.706204736174694  # one degree of freedom
    halves = [t * each.std(ddof=1) / math.sqrt(2) for each in (areas, finals)]
    assert (table["ci_high"] - table["value"]).tolist() == pytest.approx(halves)
    assert table["reason"].isna().all()


def test_every_pair_of_the_arms_asked_for_and_only_test_losses():
    rows = [curve(arm, seed, [4 - place, 2 + seed]) for place, arm in enumerate(ARMS) for seed in (0, 1, 2)]
    rows += [curve(arm, 0, [99.0, 99.0], split="train") for arm in ARMS]
    table = adaptation_table(training(*rows), ARMS)
    pairs = [("critical", "non_critical"), ("critical", "all"), ("non_critical", "all")]
    assert list(zip(table["arm"], table["versus"], strict=True)) == [pair for pair in pairs for _ in "af"]
    assert table.loc[table["measure"] == "area", "value"].tolist() == [0.5, 1.0, 0.5]
    assert adaptation_table(training(*rows), ("all", "critical"))["versus"].unique().tolist() == ["all"]
    assert not len(adaptation_table(training(*rows), ("all",)))
    assert loss_curves(training(*rows), "all").to_numpy().tolist() == [[2, 2], [2, 3], [2, 4]]


def reasons(table):
    return [None if pd.isna(reason) else str(reason) for reason in table["reason"]]


def test_one_seed_has_values_and_no_interval():
    table = both([[3.0, 1.0]], [[3.0, 2.0]])
    assert table["value"].tolist() == [-0.5, -1.0]
    assert table[["ci_low", "ci_high"]].isna().all(axis=None)
    assert reasons(table) == ["one seed: no interval"] * 2


def test_a_seed_of_one_arm_alone_is_left_out_and_named():
    table = both([[3.0, 1.0], [3.0, 1.5], [9.0, 9.0]], [[3.0, 2.0], [3.0, 2.0]])
    assert table["seeds"].tolist() == [2, 2]
    assert table["value"].tolist() == [-0.375, -0.75]
    assert reasons(table) == ["left out, because only one of critical and non_critical has test losses: seed 2"] * 2


def test_a_loss_that_is_nan_ends_the_comparison():
    table = both([[3.0, math.nan], [3.0, 1.0]], [[3.0, 2.0], [3.0, 2.0]])
    assert table["value"].isna().all()
    assert reasons(table) == ["1 of 2 seeds have a loss that is NaN or infinite"] * 2


def test_other_steps_are_not_interpolated():
    table = adaptation_table(
        training(curve("critical", 0, [3, 2, 1]), curve("all", 0, [3, 1], steps=[0, 20])), ("critical", "all")
    )
    assert table["value"].isna().all()
    assert (
        reasons(table)[0]
        == "critical with seed 0 and all with seed 0 were not measured at the same steps: only one of them at 10"
    )
    long = curve("critical", 0, list(range(9)))
    table = adaptation_table(training(long, curve("all", 0, [3, 1])), ("critical", "all"))
    assert "at 20, 30, 40, 50 and 3 more" in reasons(table)[0]


def test_an_arm_without_losses_and_one_measurement():
    table = adaptation_table(curve("critical", 0, [3.0, 1.0]), ARMS)
    assert len(table) == 6
    assert table["value"].isna().all()
    assert table["seeds"].tolist() == [0] * 6
    assert reasons(table)[0] == "no seed has test losses of both critical and non_critical"
    assert len(adaptation_table(curve("critical", 0, [1.0]).iloc[:0], ARMS)) == 6
    once = both([[2.0]], [[3.0]])
    assert reasons(once) == ["the test loss was measured only once", "one seed: no interval"]
    assert once["value"].tolist()[1] == -1.0


def test_why_curves_are_missing_is_told_where_they_are_missed():
    rows = [curve("critical", seed, [3.0, 1.0]) for seed in (0, 1)] + [curve("all", 0, [3.0, 2.0])]
    lacking = {("all", 1): "it diverged", ("non_critical", 0): "not trained", ("non_critical", 1): "not trained"}
    table = adaptation_table(training(*rows), ARMS, lacking=lacking)
    assert table["value"].notna().tolist() == [False, False, True, True, False, False]
    assert reasons(table)[::2] == [
        "no seed has test losses of both critical and non_critical; non_critical with seed 0, 1: not trained",
        "one seed: no interval; left out, because only one of critical and all has test losses: seed 1; all with seed "
        "1: it diverged",
        "no seed has test losses of both non_critical and all; all with seed 1: it diverged; non_critical with seed 0, 1: not trained",
    ]


def test_two_losses_at_a_step_are_refused():
    rows = training(curve("critical", 0, [3.0, 1.0], steps=[10, 10]), curve("all", 0, [3.0, 1.0]))
    with pytest.raises(ValueError, match="arm critical with seed 0 has two test losses at step 10"):
        adaptation_table(rows, ("critical", "all"))
