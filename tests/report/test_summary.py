"""The answer in plain lines, where ρ or its interval is not there."""

from __future__ import annotations

import math
import re

from synthetic import make_tables

from raysweep.report.summary import summary_lines
from raysweep.terminal import WIDTH, fitted


def test_one_cell_is_sentences():
    tables = make_tables(datasets=("x",), n_layers=8, n_examples=8)
    first, last = summary_lines(tables)
    assert re.fullmatch(
        r"tiny on x: the costliest window is layers 3–7\. Replacing them with the base model's layers raises the loss by 0\.53 nats "
        r"\[0\.38, 0\.69\] \(from 0\.39 to 0\.93; 53 % of the gap between base and tuned\)\. The next costliest window, layers 0–4, "
        r"costs 0\.08 \[−0\.10, 0\.26\] less, not a significant difference \(8 examples\)\.",
        first,
    )
    assert re.fullmatch(r"  .*\(ρ = −?\d\.\d\d \[.*\], p = 0\.\d{3}\)\.", last)


def test_what_is_not_known_is_said_in_words():
    tables = make_tables(datasets=("x",), n_layers=8, n_examples=8)
    correlation = tables["correlation"].assign(spearman=-0.5, ci_low=math.nan, ci_high=math.nan)
    assert summary_lines({**tables, "correlation": correlation})[-1].startswith(
        "  These examples cannot show whether δ predicts the critical layers (ρ = −0.50 [n/a], p = "
    )
    correlation = correlation.assign(spearman=math.nan)
    dynamics = tables["dynamics"].assign(delta=math.nan)
    assert summary_lines({**tables, "correlation": correlation, "dynamics": dynamics})[-1] == (
        "  Whether δ predicts the critical layers is not known: δ is undefined at layers 0–7: a similarity that it averages is "
        "undefined."
    )


def test_without_the_tuned_models_loss_there_is_no_cost():
    rows = make_tables(datasets=("x",), n_layers=8, n_examples=8)["substitution"]
    (line,) = summary_lines({"substitution": rows[rows["width"] != 0]})
    assert re.fullmatch(
        r"tiny on x: the loss is highest with layers 3–7 replaced: 0\.9\d+ nats\. The cost is not known, because the tuned "
        r"model's own loss was not measured\.",
        line,
    )


def test_a_base_model_alone_has_its_change_points():
    dynamics = make_tables(datasets=("x",), n_layers=8, n_examples=8)["dynamics"]
    (line,) = summary_lines({"dynamics": dynamics})
    assert re.fullmatch(
        r"tiny on x: the base model's representations change most at layers? [\d, –]+ \(smallest δ\)\.", line
    )


def test_several_cells_are_rows_and_one_sentence():
    tables = make_tables(datasets=("x", "a-data-set-with-a-long-name"), n_layers=8, n_examples=8)
    head, names, first, second, legend, together = summary_lines(tables)
    assert head == "The costliest windows of tiny, replaced with the base model's layers:"
    assert names.split("  ")[1] == "data set"
    assert first.split()[:3] == ["x", "3–7", "+0.53"]
    assert re.match(r"  a-dat\S*…\S+  1–5 ", second)
    assert (
        legend
        == "(of gap: share of the loss difference between base and tuned; tied: the difference is not significant)"
    )
    assert " of 2 cells" in together
    assert "Their mean ρ is " in together


def test_every_line_fits_a_terminal():
    for datasets in (
        ("x",),
        ("x", "y"),
        tuple(f"data-set-{n}-with-a-very-long-name-that-goes-on-and-on" for n in range(50)),
    ):
        lines = summary_lines(make_tables(datasets=datasets, n_layers=8, n_examples=8))
        shown = [line for text in lines for line in fitted(text)]
        assert max(map(len, shown)) <= WIDTH
    assert any(line == "… and 10 more cells; the page has them all" for line in shown)
