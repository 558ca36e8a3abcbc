"""What is said of sweeps that may stop early: every end that one can have."""

from __future__ import annotations

import pandas as pd
import pytest
from synthetic import STEADY, tiny_tables

from raysweep.report.answer import answer_of
from raysweep.report.cells import cells_of
from raysweep.report.stopping import stopping_lines

ROW = {"model": "m", "dataset": "d", "confidence": 0.95, "examples": 96, "of": 256, "share": 0.375, "settled": True}
TOP = {"rule": "top 2 of width 5", "set": "0-4; 18-22", "reason": "why"}
NARROW = {"rule": "half_width 0.02", "set": None, "reason": "the widest interval, of 0-5, has half-width 0.019 nats"}


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (
            TOP,
            "The sweep stopped after 96 of 256 examples, drawn at random. With 95 % confidence, the 2 costliest windows of "
            "width 5 over all 256 examples are 0–4; 18–22.",
        ),
        (
            {**TOP, "examples": 256},
            "The sweep used all 256 examples before the set was settled: the 2 costliest windows of width 5 are 0–4; 18–22.",
        ),
        (
            {**TOP, "examples": 256, "settled": False, "set": "0-4; 18-22; 3", "confidence": 0.9},
            "The sweep used all 256 examples, and the 2 costliest windows of width 5 are among 0–4; 18–22; 3: why.",
        ),
        (
            NARROW,
            "The sweep stopped after 96 of 256 examples, drawn at random: the widest interval, of 0-5, has half-width 0.019 "
            "nats; the target is 0.02.",
        ),
        (
            {**NARROW, "examples": 256},
            "The sweep used all 256 examples: the widest interval, of 0-5, has half-width 0.019 nats; the target of 0.02 is met.",
        ),
        (
            {**NARROW, "examples": 256, "settled": False},
            "The sweep used all 256 examples: the widest interval, of 0-5, has half-width 0.019 nats; the target of 0.02 is not met.",
        ),
    ],
)
def test_every_end_is_told(row, told):
    tables = {**tiny_tables({**STEADY, (0, 2): [2.0, 2.1, 2.2, 2.0]}), "stopping": pd.DataFrame([{**ROW, **row}])}
    (cell,) = cells_of(tables, ())
    assert told in [sentence.striptags() for sentence in answer_of(cell).sentences]
    assert stopping_lines(tables) == [f"m on d: {told}"]


def test_nothing_is_told_of_a_sweep_of_all_examples():
    tables = tiny_tables(STEADY)
    assert stopping_lines(tables) == []


def test_names_and_reasons_are_escaped():
    row = {**ROW, **NARROW, "reason": "<b>of 0-5</b>"}
    tables = {**tiny_tables(STEADY), "stopping": pd.DataFrame([row])}
    (cell,) = cells_of(tables, ())
    assert any("&lt;b&gt;of 0-5&lt;/b&gt;" in sentence for sentence in answer_of(cell).sentences)
