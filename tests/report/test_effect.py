"""Whether the models measured show the effect, in words that follow from the numbers."""

from __future__ import annotations

import math
import re

import pandas as pd
import pytest
from synthetic import make_provenance, make_tables

from raysweep.report.cells import Setting, cells_of
from raysweep.report.effect import effect_sentence, published_sentence
from raysweep.report.page import write_report
from raysweep.report.page_tables import rho_tables

SETTING = Setting("cka_linear", 3)
NAMES = [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")]


def cells(*rhos, half=0.1, n_layers=24):
    """Four cells with these ρ and intervals of that half width, whose curves agree where they have layers enough."""
    tables = make_tables(models=("a", "b"), datasets=("x", "y"), widths=(2,), n_layers=n_layers, n_examples=8)
    tables["correlation"] = pd.concat(
        [
            tables["correlation"]
            .query("model == @model and dataset == @dataset")
            .assign(spearman=rho, ci_low=rho - half, ci_high=rho + half)
            for (model, dataset), rho in zip(NAMES, rhos, strict=True)
        ],
        ignore_index=True,
    )
    return tables, cells_of(tables, ())


@pytest.mark.parametrize(
    ("rhos", "said"),
    [
        (
            (-0.9, -0.85, -0.88, -0.8),
            "In these models, δ predicts the critical layers: ρ is strongly negative. In numbers, ρ is negative in 4 of 4 cells; ",
        ),
        (
            (-0.3, -0.4, -0.35, -0.33),
            "In these models, δ predicts the critical layers weakly: ρ is negative on average, but not strongly.",
        ),
        ((0.6, 0.5, 0.55, 0.62), "In these models, δ points to the wrong layers: ρ is positive."),
        (
            (-0.6, -0.5, 0.5, 0.6),
            "It is undecided whether δ predicts the critical layers of these models: the interval of the mean ρ includes 0.",
        ),
    ],
)
def test_what_is_said_follows_from_the_numbers(rhos, said):
    told = effect_sentence(cells(*rhos)[1], SETTING, 2)
    assert told.startswith(said)
    below, above = sum(rho < -0.1 for rho in rhos), sum(rho > 0.1 for rho in rhos)
    assert f"its interval is below 0 in {below} and above 0 in {above}" in told


def test_strongly_negative_values_without_narrow_intervals_are_not_enough():
    told = effect_sentence(cells(-0.9, -0.85, -0.88, -0.8, half=0.95)[1], SETTING, 2)
    assert told.startswith("In these models, δ predicts the critical layers weakly")
    assert "below 0 in 0" in told


def test_what_chance_may_do_shows_no_effect():
    few = cells(-0.9, -0.85, -0.88, -0.8, n_layers=8)[1]
    told = effect_sentence(few, SETTING, 2)
    assert re.match(
        r"In these models, δ points to the critical layers: ρ is strongly negative, but this may be chance \(p = 0\.\d{3} with the "
        r"trend over depth removed\)\. In numbers, ",
        told,
    )


def test_one_model_is_one():
    tables, _ = cells(-0.9, -0.85, -0.88, -0.8)
    one = {name: rows[rows["model"] == "a"] for name, rows in tables.items()}
    assert effect_sentence(cells_of(one, ()), SETTING, 2).startswith(
        "It is undecided whether δ predicts the critical layers of this model"
    )


def test_nothing_is_said_of_nothing():
    found = cells(*[math.nan] * 4)[1]
    assert effect_sentence(found, SETTING, 2) == ""
    assert published_sentence(found, SETTING, 2, {"a": {"x": -0.5}}) == ""


def test_the_published_ones_stand_beside_ours(tmp_path):
    tables, found = cells(-0.9, -0.85, 0.3, -0.8)
    published = {"a": {"x": -0.88, "y": -0.5}, "b": {"x": -0.7}}
    assert published_sentence(found, SETTING, 2, published) == (
        "Published ρ exist for 3 of these cells, from −0.88 to −0.50. The sign is the same in 2; 1 of 3 lie in the interval measured "
        "here, which is over examples only."
    )
    (table,) = rho_tables(found, published)
    assert [[rho.published for rho in row] for _, row in table.rows] == [["−0.880", "−0.500"], ["−0.700", ""]]
    alone = {"correlation": tables["correlation"].assign(p_value=math.nan)}  # nothing to draw
    page = write_report(alone, make_provenance(published_rho=published), tmp_path).read_text(encoding="utf-8")
    assert page.count("<small>published ") == 3
    assert published_sentence(found, SETTING, 2, published) in page
