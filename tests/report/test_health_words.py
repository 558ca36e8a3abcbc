"""Warnings are sentences, one for a kind, whatever the number of layers and data sets."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from markupsafe import Markup

from raysweep.report.cells import cells_of
from raysweep.report.health_words import health_sentences
from raysweep.studies.health import TRUST

FEW = "effective_examples is 3 of 64, below 10 %: a few examples"


def health(dataset, *rows):
    named = [dict(zip(("layer", "measure", "value", "warning"), row, strict=True)) for row in rows]
    return pd.DataFrame(named).assign(model="m", dataset=dataset)


def said(*tables):
    return [str(line.striptags()) for line in health_sentences(cells_of({"health": pd.concat(tables)}, ()))]


def test_one_sentence_for_all_layers_and_data_sets():
    layers = [(layer, "top_component_weight", 0.91 + layer / 1000, "above 0.9") for layer in (20, 21, 22, 23)]
    (line,) = said(health("facts", *layers), health("quiz", (0, "top_component_weight", 0.98, "above 0.9")))
    assert line.startswith(
        "One direction dominates the states (facts, layers 20–23; quiz, layer 0). Two layers that share only"
    )
    assert "as high as 0.98" in line


@pytest.mark.parametrize("measure", [*TRUST, "effective_examples", "cka_next_trimmed"])
def test_every_warning_says_what_it_means_and_what_to_do(measure):
    rows = [
        (3, measure, 0.9997, "named by its column"),
        (3, "cka_next", 0.2, None),
        (3, "massive_dimension", 7.0, None),
    ]
    (line,) = said(health("d", *rows))
    assert measure not in line
    assert line.count(". ") >= 2
    assert line.endswith(".")
    assert "(m · d, layer 3)" in line


def test_the_mean_that_hides_differences():
    (line,) = said(
        health("d", (4, "mean_to_rms", 0.9997, "mean_to_rms is 0.9997, above 0.999: the states hardly differ"))
    )
    assert line == (
        "States hardly differ between examples (m · d, layer 4). The mean over examples makes up as much as 99.97 % of the size of "
        "a state (limit: 99.9 %). Similarity there compares small differences. Check these layers with more varied examples."
    )


def test_the_worst_layer_is_described():
    (line,) = said(health("d", (1, "effective_examples", 5.0, FEW), (2, "effective_examples", 3.0, FEW)))
    assert "Their effective number is as low as 3:" in line
    trimmed = [(layer, "cka_next_trimmed", value, "other") for layer, value in ((1, 0.8), (2, 0.4))]
    (line,) = said(health("d", *trimmed, (1, "cka_next", 0.95, None), (2, "cka_next", 0.9, None)))
    assert "At layer 2, CKA with the next layer is 0.900, and 0.400 without" in line


def test_undefined_measures_share_a_sentence_and_unknown_warnings_keep_their_words():
    same = "all examples have the same state"
    rows = [
        (0, "cka_floor", math.nan, same),
        (0, "top_component_share", math.nan, same),
        (1, "not_finite", 2.0, "2 of 9 <b>"),
    ]
    undefined, other = said(health("d", *rows))
    assert undefined == f"Some measures of health are undefined (m · d, layer 0): {same}."
    assert other == "The similarity may not be reliable (m · d, layer 1): 2 of 9 <b>."
    lines = health_sentences(cells_of({"health": health("d", *rows)}, ()))
    assert Markup("2 of 9 &lt;b&gt;") in lines[1]


def test_no_warning_no_sentence():
    assert said(health("d", (0, "cka_floor", 0.1, None))) == []
    assert health_sentences([]) == []
