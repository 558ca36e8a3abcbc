"""Sweeps that say nothing: base and tuned that are the same, tuned models no better than their base, and what is said first."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from page_reader import written
from scipy import stats
from synthetic import STEADY, make_tables, tiny_tables

from raysweep.engine.shared import Shared
from raysweep.report.answer import answer_of, headline
from raysweep.report.cells import Cell, cells_of
from raysweep.report.evidence import gain_of, is_no_better, is_unmoved, void_sentences
from raysweep.report.summary import summary_lines
from raysweep.studies.correlation import why_withheld

RECORDS = [{"model": "m", "dataset": "d", "wording": "chat", "format": "gsm8k"}]
WINDOWS = {(1, 3): [1.2, 1.4, 1.0, 1.5], (2, 4): [1.1, 1.1, 0.9, 1.3]}
SAME = {"model": "m", "dataset": "d", "base": "./a", "tuned": "./b", "layers": 6}
UNDEFINED = {"spearman": math.nan, "ci_low": math.nan, "ci_high": math.nan, "p_value": math.nan}


def cell_of(losses: dict[tuple[int, int], list[float]], **more: Any) -> Cell:
    (cell,) = cells_of(tiny_tables(losses), (), datasets=RECORDS, **more)
    return cell


def against(tuned: list[float], base: list[float]) -> Cell:
    """A cell whose tuned model has these losses, and its base those."""
    return cell_of(
        {(0, 0): tuned, (0, 6): base, (1, 3): [loss + 0.1 for loss in tuned], (2, 4): [loss + 0.2 for loss in tuned]}
    )


def test_a_gain_is_the_paired_mean_with_students_interval() -> None:
    rng = np.random.default_rng(0)
    tuned, base = rng.normal(2, 0.3, 9), rng.normal(2.4, 0.3, 9)
    gain = gain_of(cell_of({(0, 0): tuned, (0, 6): base, (1, 3): tuned + 0.1}))
    assert gain is not None
    low, high = stats.ttest_1samp(base - tuned, 0).confidence_interval(0.95)
    assert gain[:5] == pytest.approx((tuned.mean(), base.mean(), (base - tuned).mean(), low, high))
    assert gain.examples == 9


def test_the_base_itself_counts_before_its_layers_and_only_what_was_measured_exactly() -> None:
    tables = tiny_tables({**STEADY, **WINDOWS})
    rows = tables["substitution"]
    own = rows[rows["width"] == 6].assign(
        kind="reverse", width=0, start=0, stop=0, layers="", loss=[0.9, 0.9, 0.9, math.nan]
    )
    estimated = rows.assign(estimator="gradient", loss=rows["loss"] - 5)
    (cell,) = cells_of({**tables, "substitution": pd.concat([estimated, rows, own])}, ())
    gain = gain_of(cell)
    assert gain is not None
    assert (gain.examples, gain.base) == (3, pytest.approx(0.9))
    assert gain.tuned == pytest.approx(np.mean([1.0, 1.1, 0.9]))
    assert gain_of(cell_of({(0, 0): [1.0], (1, 3): [2.0]})) is None, "nothing of the base was measured"
    assert gain_of(cell_of({(0, 6): [1.0], (1, 3): [2.0]})) is None, "nor of the tuned model"


@pytest.mark.parametrize(
    ("tuned", "base", "words"),
    [
        (
            [2.0, 2.1, 1.9, 2.2],
            [1.0, 1.2, 0.8, 1.1],
            "worse than its base: mean loss 2.05 against 1.02 nats, a gain of −1.02 ",
        ),
        ([2.0, 2.1, 1.9, 2.2], [1.9, 2.3, 1.7, 2.2], "no better than its base: mean loss 2.0"),
        (
            [2.0, 2.1, 1.9, 2.2],
            [2.1, 2.0, 2.3, 2.1],
            "not measurably better than its base on these 4 examples: mean loss 2.05 ",
        ),
        ([2.0, 2.0], [1.5, 1.9], "no better than its base: mean loss 2.0"),
        ([2.0], [1.5], "no better than its base: mean loss 2.00 against 1.50 nats, a gain of −0.50 [n/a]. "),
        ([2.0, 2.1, 1.9, 2.2], [3.0, 3.2, 2.9, 3.1], None),
        ([2.0, 2.0], [2.1, 3.0], None),
        ([2.0], [2.1], None),
    ],
    ids=["worse", "lower mean", "too near", "two", "one", "better", "two that cannot tell", "one that cannot tell"],
)
def test_a_tuned_model_that_is_no_better_is_said_first_with_a_question(
    tuned: list[float], base: list[float], words: str | None
) -> None:
    cell = against(tuned, base)
    gain = gain_of(cell)
    assert gain is not None
    assert is_no_better(gain, cell.resolution) == (words is not None)
    said = [sentence.striptags() for sentence in void_sentences([cell])]
    lines = summary_lines(cell.tables, {"datasets": RECORDS})
    if words is None:
        assert said == []
        assert lines[0].startswith("m on d: ")
        assert "layers 2–3" in lines[0]
        return
    assert len(said) == 1
    assert said[0].startswith(f"On m · d the tuned model is {words}")
    assert said[0].endswith(". Was the model tuned with this prompt template (chat) and format (gsm8k)?")
    assert lines[0] == headline([cell])[0].striptags() == answer_of(cell).sentences[0].striptags() == said[0]


def test_a_difference_within_what_batching_makes_is_no_gain() -> None:
    losses = {(0, 0): [2.0, 2.0, 2.0, 2.0], (0, 6): [2.0004, 2.0005, 2.0004, 2.0005], (1, 3): [2.1] * 4}
    coarse = [{"model": "m", "dtype": "bfloat16"}]
    for checkpoints, n in (((), 0), (coarse, 1)):
        (cell,) = cells_of(tiny_tables(losses), checkpoints)
        assert len(void_sentences([cell])) == n


@pytest.mark.parametrize("rest", [True, False])
def test_identical_layers_are_said_first_and_nothing_else_claims_a_cost(rest: bool, tmp_path: Path) -> None:
    shared = Shared(**SAME, identical=tuple(range(6)), rest=rest)
    tables = tiny_tables(
        {(0, 0): [1.0, 1.1, 0.9, 1.2], (0, 6): [1.0, 1.1, 0.9, 1.2], (1, 3): [1.0, 1.1, 0.9, 1.2]},
        {**UNDEFINED, "reason": why_withheld(range(6), 6)},
    )
    about = {"shared": [asdict(shared)], "datasets": RECORDS}
    (first,) = summary_lines(tables, about)
    words = (
        "The tuned checkpoint of m on d is identical to its base: "
        if rest
        else "All 6 decoder layers of m, tuned on d, are identical"
    )
    assert first.startswith(words)
    assert "every window costs 0" in first
    (only,) = summary_lines({"substitution": tables["substitution"]}, about)
    assert only == first
    (cell,) = cells_of(tables, (), shared=about["shared"])
    assert [line.striptags() for line in headline([cell])] == [first]
    sentences = [sentence.striptags() for sentence in answer_of(cell).sentences]
    assert sentences[0] == first
    assert not any("cost" in sentence for sentence in sentences[1:-1])
    assert sentences[-1] == f"δ is not compared with the losses: {why_withheld(range(6), 6)}."
    page = written(tables, tmp_path, shared=about["shared"])
    assert page.text.index(first) < page.text.index("nothing to predict: no window has a cost".capitalize())
    assert "depends most on layers" not in page.text


def test_losses_that_no_window_changes_are_said_first_where_nothing_is_known() -> None:
    """Files of pickled tensors are not compared tensor by tensor, and what a run trains itself is not there to compare."""
    own = [1.0, math.nan, 0.9, math.inf]
    still = cell_of({(0, 0): own, (0, 6): own, (1, 3): own, (2, 4): own})
    assert is_unmoved(still)
    (sentence,) = void_sentences([still])
    assert sentence.striptags().startswith(
        "No window changes any loss of m · d. Base and tuned give the same results, "
    )
    assert summary_lines(still.tables) == [sentence.striptags()]
    for others in ([1.0, math.nan, 0.9, 1.0], [1.0, 1.0, 0.9, math.inf], [1.0 + 1e-12, math.nan, 0.9, math.inf]):
        assert not is_unmoved(cell_of({(0, 0): own, (0, 6): others, (1, 3): own}))
    assert not is_unmoved(cell_of({(0, 6): own, (1, 3): own})), "without the untouched model nothing can be said"
    lost = [math.nan] * 4
    assert not is_unmoved(cell_of({(0, 0): lost, (0, 6): lost, (1, 3): lost}))


def test_one_cell_does_not_keep_the_others_from_the_headline() -> None:
    tables = make_tables(datasets=("sums", "facts"), n_layers=12, n_examples=20)
    same = asdict(Shared("tiny", "facts", "a", "b", 12, tuple(range(12)), True))
    cells = cells_of(tables, (), shared=[same])
    first, *others = [line.striptags() for line in headline(cells)]
    assert first.startswith("The tuned checkpoint of tiny on facts is identical to its base")
    assert others[0].startswith("Fine-tuning on sums depends most on layers ")
    assert "facts" not in "".join(others)


def test_many_cells_share_a_sentence() -> None:
    names = tuple(f"set-{number}" for number in range(9))
    tables = make_tables(datasets=names, n_layers=8, n_examples=4)
    rows = tables["substitution"]
    rows.loc[(rows["width"] == 0) & (rows["dataset"] != "set-0"), "loss"] += 5
    (sentence,) = void_sentences(cells_of(tables, ()))
    assert sentence.striptags() == (
        "In 8 of 9 cases (set-1, set-2, set-3, set-4, set-5, set-6 and 2 more) the tuned model is no better than its base. Were the "
        "models tuned with this prompt template and format?"
    )
    shared = [asdict(Shared("tiny", name, "a", "b", 8, tuple(range(8)), True)) for name in names]
    (sentence,) = void_sentences(cells_of(tables, (), shared=shared))
    assert sentence.striptags().startswith("In 9 cases (set-0, set-1, ")
    assert sentence.striptags().endswith(
        " base and tuned are the same in every decoder layer, so every window costs 0."
    )


def test_a_score_that_is_withheld_is_no_verdict_on_delta(tmp_path: Path) -> None:
    reason = why_withheld({0, 1, 4, 5}, 6)
    assert reason == ("only layers 2–3 of 6 were trained, so a window's cost follows from that choice, not from δ")
    losses = {**STEADY, (2, 4): [2.8, 3.0, 2.6, 3.1], (0, 2): [1.0, 1.1, 0.9, 1.2], (4, 6): [1.0, 1.1, 0.9, 1.2]}
    tables = tiny_tables(losses, {**UNDEFINED, "reason": reason})
    (cell,) = cells_of(tables, ())
    found = cell.first_correlation
    assert found is not None
    assert cell.verdict(found) == "withheld"
    lines = [line.striptags() for line in headline([cell])]
    assert lines == [
        "Fine-tuning on m · d depends most on layers 2–3: replacing them with the base model's raises the loss by 1.83 nats [1.67, 1.98].",
        "Only some layers were trained, so δ is not compared with the losses.",
    ]
    sentences = [sentence.striptags() for sentence in answer_of(cell).sentences]
    assert sentences[-1] == f"δ is not compared with the losses: {reason}."
    assert not any("lie in the costliest window" in sentence for sentence in sentences), "that would score it, too"
    assert summary_lines(tables)[-1] == f"  δ is not compared with the costs: {reason}."
    page = written(tables, tmp_path)
    assert "Not compared: only some layers were trained" in page.text
    assert f"n/a ({reason})" in page.text


def test_where_nothing_raises_the_loss_no_window_is_the_costliest() -> None:
    losses = {(0, 0): [2.0, 2.1], (0, 6): [2.5, 2.7], (1, 3): [1.5, 1.6], (2, 4): [1.9, 2.1]}
    assert summary_lines({"substitution": tiny_tables(losses)["substitution"]}) == [
        "m on d: replacing a window of 2 layers with the base model's layers never raises the loss."
    ]
