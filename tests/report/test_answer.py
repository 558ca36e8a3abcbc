"""The sentences say what the tables say, and no more than they allow."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from synthetic import STEADY, tiny_tables

from raysweep.report.answer import answer_of, headline
from raysweep.report.cells import cells_of


def said(tables, checkpoints=()):
    """The headline, and every cell's sentences and label."""
    cells = cells_of(tables, checkpoints)
    answers = [answer_of(cell) for cell in cells]
    sentences = [*headline(cells), *(sentence for answer in answers for sentence in answer.sentences)]
    return " ".join([*(sentence.striptags() for sentence in sentences), *(answer.label for answer in answers)])


def test_the_costliest_window_and_its_paired_interval(tables):
    substitution = tables["substitution"].query("dataset == 'sums'")
    by_span = substitution.groupby(["start", "stop"])["loss"].apply(lambda losses: losses.to_numpy())
    costs = {span: losses - by_span[(0, 0)] for span, losses in by_span.items() if span[1] - span[0] == 5}
    start, stop = best = max(costs, key=lambda span: costs[span].mean())
    low, high = stats.t.interval(0.95, len(costs[best]) - 1, costs[best].mean(), stats.sem(costs[best]))
    separate = max((s for s in costs if s[1] <= start or s[0] >= stop), key=lambda span: costs[span].mean())
    less = costs[best] - costs[separate]
    near = stats.t.interval(0.95, len(less) - 1, less.mean(), stats.sem(less))
    text = said(tables)
    assert (
        f"Replacing layers {start}–{stop - 1} with the base model's costs most: +{costs[best].mean():.2f} nats "
        f"[{low:.2f}, {high:.2f}] per response token (loss {by_span[(0, 0)].mean():.2f} → {by_span[best].mean():.2f}; "
        f"with all 24 layers replaced, {by_span[(0, 24)].mean():.2f})." in text
    )
    assert (
        f"The next costliest window that shares no layer with it (layers {separate[0]}–{separate[1] - 1}) costs "
        f"{less.mean():.2f} [{near[0]:.2f}, {near[1]:.2f}] less; on these 60 examples the difference is significant."
        in text
    )
    assert f"Fine-tuning depends most on layers {start}–{stop - 1} (sums +{costs[best].mean():.2f} nats" in text


def test_change_point_layers_and_correlation(tables):
    dynamics = tables["dynamics"].query("dataset == 'sums'")
    changes = sorted(dynamics.sort_values("delta")["layer"].head(5))
    row = tables["correlation"].query("dataset == 'sums'").iloc[0]
    text = said(tables)
    assert f"representations change fastest at layers {changes[0]}–{changes[-1]} (smallest δ, linear CKA)" in text
    assert (
        f"ρ = {row.spearman:.2f} [{row.ci_low:.2f}, {row.ci_high:.2f}], p = {row.p_value:.3f} with the trend over depth removed, over 20 window "
        "centres: the smaller δ, the higher the loss.".replace("-", "−")
        in text
    )


def test_two_windows_that_do_not_differ_significantly_are_both_named():
    alike = {(0, 2): [2.0, 2.4, 1.9, 2.5], (2, 4): [1.1, 1.2, 1.0, 1.3], (4, 6): [2.3, 2.0, 2.1, 2.2]}
    text = said(tiny_tables({**STEADY, **alike}))
    assert (
        "Fine-tuning on m · d depends most on layers 0–1 or 4–5 (no significant difference): replacing layers 0–1 with"
        in text
    )
    assert "on these 4 examples the difference is not significant" in text


def test_no_window_that_costs_anything():
    idle = {(0, 2): [1.1, 1.0, 1.0, 1.1], (2, 4): [0.9, 1.2, 0.9, 1.1]}
    text = said(tiny_tables({**STEADY, **idle}))
    assert "No window of layers has a cost that is significantly different from 0." in text
    assert "No window of 2 layers has a cost that is significantly different from 0 on these 4 examples." in text


def test_without_a_cost_there_is_nothing_to_predict():
    better = {(0, 2): [0.5, 0.7, 0.4, 0.6], (2, 4): [0.4, 0.4, 0.3, 0.5], (0, 6): [0.3, 0.3, 0.1, 0.3]}
    row = {"spearman": 0.8, "ci_low": 0.6, "ci_high": 0.9, "p_value": 0.05}
    text = said(tiny_tables({**STEADY, **better}, correlation=row))
    assert "nothing to predict: no window has a cost" in text
    assert "no window has a significant cost, so there is nothing for δ to predict" in text
    assert "so here the base model's layers are better than the tuned ones" in text
    assert "Replacing all 6 layers costs −0.80 nats" in text
    assert "wrong layers" not in text


def test_cases_with_a_cost_and_cases_without():
    leaning = tiny_tables({**STEADY, (0, 2): [2.0, 2.2, 1.9, 2.3]})["substitution"]
    idle = tiny_tables({**STEADY, (0, 2): STEADY[(0, 0)]})["substitution"].assign(dataset="idle")
    text = said({"substitution": pd.concat([leaning, idle])})
    assert (
        "Fine-tuning on d depends most on layers 0–1: replacing them with the base model's raises the loss by 1.05 nats ["
        in text
    )
    assert "In 1 of 2 cases no window of layers has a cost" in text


@pytest.mark.parametrize(("dtype", "verdict"), [("float32", "is significant"), ("bfloat16", "is not significant")])
def test_in_half_precision_nothing_below_its_noise_is_significant(dtype, verdict):
    base = np.array(STEADY[(0, 0)])
    noise = np.array([1e-5, -1e-5, 0, 1e-5])
    close = {(0, 2): base + 1, (2, 4): base + 1 - 5e-4 + noise}
    checkpoints = [{"model": "m", "role": "base", "dtype": dtype}]
    text = said(tiny_tables({**STEADY, **close}), checkpoints)
    assert f"the difference {verdict}." in text


@pytest.mark.parametrize(
    ("correlation", "label", "reading"),
    [
        (
            (-0.8, -0.9, -0.6, 0.05),
            "predicted by the base model",
            "interval is below 0, and unrelated smooth curves rarely agree",
        ),
        ((-0.8, -0.9, -0.6, 0.3), "predicted by the base model, perhaps by chance", "so it may be chance"),
        (
            (-0.8, -0.9, -0.6, math.nan),
            "predicted by the base model, perhaps by chance",
            "there is no p, so this may be chance (no",
        ),
        ((-0.2, -0.5, 0.1, 0.01), "prediction undecided", "The interval includes 0"),
        ((0.5, 0.2, 0.7, 0.01), "the base model points to the wrong layers", "The interval is above 0"),
        ((-0.8, math.nan, math.nan, 0.01), "prediction undecided", "Without an interval"),
    ],
)
def test_readings_of_a_correlation(correlation, label, reading):
    row = dict(zip(("spearman", "ci_low", "ci_high", "p_value"), correlation, strict=True))
    windows = {**STEADY, (0, 2): [2.0, 2.2, 1.9, 2.3], (2, 4): [1.3, 1.4, 1.2, 1.6]}
    text = said(tiny_tables(windows, correlation=row))
    assert label in text
    assert reading in text


def test_too_few_centres_for_a_p_value():
    row = {
        "spearman": -0.9,
        "ci_low": -1.0,
        "ci_high": -0.5,
        "p_value": math.nan,
        "n_layers": 8,
        "reason": "no p with 8 centres",
    }
    text = said(tiny_tables({**STEADY, (0, 2): [2.0, 2.2, 1.9, 2.3]}, correlation=row))
    assert "so this may be chance (no p with 8 centres)." in text


def test_many_cells_are_named_as_far_as_there_is_room():
    cells = [
        tiny_tables({**STEADY, (0, 2): [2.0, 2.2, 1.9, 2.3]})["substitution"].assign(dataset=d) for d in "abcdefgh"
    ]
    text = said({"substitution": pd.concat(cells)})
    assert "Fine-tuning depends most on layers 0–1 (a +1.05 nats, b +1.05 nats, " in text
    assert "f +1.05 nats); the table has 2 more cases." in text


def test_without_the_tuned_model_the_cost_is_not_available():
    text = said(tiny_tables({(0, 2): [2.0, 2.2], (2, 4): [1.3, 1.4]}))
    assert "The loss is highest, 2.10 nats, with layers 0–1 replaced; the" in text
    assert "the cost is n/a (the tuned model's own loss was not measured)" in text


def test_change_points_alone_are_an_answer_too():
    tables = tiny_tables(STEADY)
    text = said({"dynamics": tables["dynamics"]})
    assert "The base model's representations change fastest at layer 1 (m · d)." in text
    assert "fine-tuning" not in text.lower()


def test_names_and_reasons_are_escaped():
    tables = tiny_tables({**STEADY, (0, 2): [2.0, 2.2, 1.9, 2.3]})
    tables = {name: rows.assign(dataset="<b>d</b>") for name, rows in tables.items()}
    (line,) = headline(cells_of(tables, ()))
    assert "Fine-tuning on <bdi>m · &lt;b&gt;d&lt;/b&gt;</bdi> depends" in line


def test_the_answer_is_about_the_first_width_with_a_significant_cost():
    narrow = {(start, start + 1): [1.0 + 0.1 * start, 1.0, 1.0, 1.1] for start in range(6)}
    tables = tiny_tables({**STEADY, **narrow, (2, 4): [2.0, 2.1, 1.9, 2.2], (0, 2): [1.1, 1.2, 1.0, 1.3]})
    (cell,) = cells_of(tables, ())
    assert cell.widths == [1, 2]
    assert cell.main_width == 2
    text = said(tables)
    assert "Fine-tuning on m · d depends most on layers 2–3: " in text
    assert "No window of layers has a cost" not in text
    assert text.index("Replacing layers 2–3 with") < text.index("No window of one layer has a cost")
    assert "Replacing all 6 layers" not in text
