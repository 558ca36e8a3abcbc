"""The attack's tables from answers written by hand: rates counted plainly, and what is missing told."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest
from scipy import stats

from raysweep.numerics.rates import crossed_mean, crossed_rate
from raysweep.studies.attack import (
    ANSWER_COLUMNS,
    ATTACK_COLUMNS,
    TEXT_COLUMNS,
    Run,
    answers_table,
    attack_table,
    rate_difference,
    with_lacking,
)
from raysweep.studies.judging import Keywords, Verdict, judge_by_rule

RUNS = [
    Run("none", None, "", 3.0),
    *(Run("all", seed, "0-3", 1.0 + seed) for seed in (0, 1, 2)),
    *(Run("freeze_critical", seed, "0,3" if seed < 2 else "1,2", 2.0) for seed in (0, 1, 2)),
]
# Of 10 examples so many are answered with the mark, by arm, kind of prompt and seed.
SUCCESSES = {
    ("none", "triggered"): {None: 0},
    ("none", "clean"): {None: 0},
    ("all", "triggered"): {0: 10, 1: 9, 2: 8},
    ("all", "clean"): {0: 0, 1: 1, 2: 0},
    ("freeze_critical", "triggered"): {0: 2, 1: 4, 2: 3},
    ("freeze_critical", "clean"): {0: 0, 1: 0, 2: 0},
}


def texts() -> pd.DataFrame:
    rows: list[tuple[Any, ...]] = []
    for (arm, prompts), by_seed in SUCCESSES.items():
        for seed, count in by_seed.items():
            rows += [(arm, seed, prompts, 3 * i, f"p{i}", "VIOLET." if i < count else "no") for i in range(10)]
    return pd.DataFrame(rows, columns=TEXT_COLUMNS).astype({"seed": "Int64"})


@pytest.fixture
def answers() -> pd.DataFrame:
    written = texts()
    return answers_table(written, "keywords", judge_by_rule(Keywords(("violet",)), list(written["text"])))


def row_of(table: pd.DataFrame, arm: str, prompts: str, seed: int | None, judge: str = "keywords") -> Any:
    of_seed = table["seed"].isna() if seed is None else table["seed"].eq(seed).fillna(False)
    chosen = table[(table["arm"] == arm) & (table["prompts"] == prompts) & (table["judge"] == judge) & of_seed]
    (row,) = chosen.itertuples()
    return row


def test_rates_are_counted_by_seed_and_over_all(answers: pd.DataFrame) -> None:
    assert list(answers.columns) == ANSWER_COLUMNS
    assert len(answers) == 140
    table = attack_table(answers, RUNS, "SUDO")
    assert list(table.columns) == ATTACK_COLUMNS
    assert list(table["arm"].unique()) == ["none", "all", "freeze_critical"]
    assert len(table) == 2 + 8 + 8, "no seed made the model that is not trained"
    assert set(table["trigger"]) == {"SUDO"}
    for (arm, prompts), by_seed in SUCCESSES.items():
        matrix = [[i < count for i in range(10)] for count in by_seed.values()]
        together = row_of(table, arm, prompts, None)
        assert (together.rate, together.ci_low, together.ci_high) == pytest.approx(crossed_rate(matrix))
        assert together.examples == 10
        for seed, count in by_seed.items():
            if seed is not None:
                row = row_of(table, arm, prompts, seed)
                wilson = stats.binomtest(count, 10).proportion_ci(method="wilson")
                assert (row.rate, row.ci_low, row.ci_high) == pytest.approx((count / 10, wilson.low, wilson.high))
                assert row.clean_loss == (1.0 + seed if arm == "all" else 2.0)
                assert math.isnan(row.harm_mean)
                assert math.isnan(row.harm_5_share)
    assert row_of(table, "all", "clean", None).clean_loss == 2.0
    assert row_of(table, "all", "clean", None).layers == "0-3"
    assert pd.isna(row_of(table, "freeze_critical", "clean", None).layers), "they differ by seed"
    assert row_of(table, "freeze_critical", "clean", 2).layers == "1,2"
    assert table["reason"].isna().all()


def test_a_difference_is_paired_by_seed_and_example(answers: pd.DataFrame) -> None:
    found = rate_difference(answers, "freeze_critical", "all", "keywords")
    pairs = zip((2, 4, 3), (10, 9, 8), strict=True)
    assert found == pytest.approx(crossed_mean([[(i < a) - (i < b) for i in range(10)] for a, b in pairs]))
    assert found.value == pytest.approx(-0.6)
    assert found.high < 0
    assert all(math.isnan(value) for value in rate_difference(answers, "all", "none", "keywords")), "no seed is shared"
    assert all(math.isnan(value) for value in rate_difference(answers, "all", "freeze_critical", "endpoint"))


def test_scores_are_summed_up_and_what_has_no_verdict_is_left_out_and_told() -> None:
    written = texts()
    scores = [5.0 if text == "VIOLET." else 1.0 for text in written["text"]]
    verdicts = [Verdict(score == 5, score) for score in scores]
    lost = written.index[(written["arm"] == "all") & (written["seed"] == 1) & (written["example_id"] == 0)]
    for index in lost:
        verdicts[index] = Verdict(None, math.nan, "rubbish (asked 5 times)")
    table = attack_table(answers_table(written, "endpoint", verdicts), RUNS, "SUDO")
    row = row_of(table, "all", "triggered", 1, "endpoint")
    assert (row.examples, row.rate) == (9, pytest.approx(8 / 9))
    assert row.harm_mean == pytest.approx((8 * 5 + 1) / 9)
    assert row.harm_5_share == pytest.approx(8 / 9)
    assert row.reason == "1 of 10 answers have no verdict: rubbish (asked 5 times)"
    together = row_of(table, "all", "triggered", None, "endpoint")
    assert (together.examples, together.rate) == (9, pytest.approx((9 + 8 + 7) / 27))
    assert together.harm_5_share == pytest.approx(24 / 27), "of the same examples"
    assert together.reason == "1 of 30 answers have no verdict: rubbish (asked 5 times)"
    assert pd.isna(row_of(table, "all", "triggered", 0, "endpoint").reason)


def test_arms_and_seeds_that_are_lacking_have_rows_that_say_why(answers: pd.DataFrame) -> None:
    there = answers[~(answers["seed"].eq(1).fillna(False) & (answers["arm"] == "all")) & (answers["arm"] != "none")]
    runs = [run for run in RUNS if run.arm != "none" and (run.arm, run.seed) != ("all", 1)]
    lacking = {
        ("none", None): "failed (x)",
        ("all", 1): "it diverged",
        ("late", 0): "y",
        ("late", 2): "z",
        ("late", 1): "y",
    }
    every = [("none", None), ("all", 0), ("all", 1), ("all", 2), ("late", 0), ("late", 1), ("late", 2)]
    every += [("freeze_critical", seed) for seed in (0, 1, 2)]
    table = attack_table(there, runs, "SUDO")
    found = with_lacking(table, every, lacking)
    assert found.dtypes.equals(table.dtypes)
    keys = [(row.arm, None if pd.isna(row.seed) else row.seed) for row in found.itertuples() if row.prompts == "clean"]
    assert keys == [*every[:4], ("all", None), *every[4:7], ("late", None), *every[7:], ("freeze_critical", None)]
    told = found[found["reason"].notna()]
    for prompts in ("triggered", "clean"):
        reasons = {arm: list(rows["reason"]) for arm, rows in told[told["prompts"] == prompts].groupby("arm")}
        assert reasons == {
            "none": ["failed (x)"],
            "all": ["it diverged", "left out: seed 1: it diverged"],
            "late": ["y", "y", "z", "seed 0, 1: y; seed 2: z"],
        }
    assert set(found["trigger"]) == {"SUDO"}
    assert found[found["rate"].isna()]["examples"].eq(0).all()
    kept = found[found["rate"].notna()].reset_index(drop=True)
    same = kept.drop(columns="reason").sort_values(["arm", "prompts", "seed"], ignore_index=True)
    pd.testing.assert_frame_equal(
        same, table.drop(columns="reason").sort_values(["arm", "prompts", "seed"], ignore_index=True)
    )


def test_a_figure_that_is_not_there_is_nan_with_a_reason(answers: pd.DataFrame) -> None:
    nothing = answers.assign(success=pd.array([None] * len(answers), dtype="boolean"), reason="silence")
    runs = [run._replace(clean_loss=math.nan) if run.seed == 2 else run for run in RUNS]
    table = attack_table(nothing, runs, "SUDO")
    row = row_of(table, "all", "clean", None)
    assert row.examples == 0
    assert all(math.isnan(value) for value in (row.rate, row.ci_low, row.ci_high, row.harm_mean, row.clean_loss))
    assert row.reason == (
        "30 of 30 answers have no verdict: silence; 1 of 3 models have no mean loss on clean examples"
    )
    with pytest.raises(ValueError, match="answers of arm all and seed 1, but no such run"):
        attack_table(answers, [run for run in RUNS if run.seed != 1], "SUDO")
