"""Whole choices as a table, and back."""

from __future__ import annotations

import numpy as np

from raysweep.studies.choices import choice_table, choices_of


def test_choices_are_counted_whole_with_that_of_all_examples_first() -> None:
    halves = np.array([[1, 2, 3, 9], [2, 1, 3, 9], [1, 9, 2, 9], [1, 9, 2, 9.0]])
    table = choice_table(np.array([1, 2, 3, 9.0]), halves, top=2)
    assert table["layers"].tolist() == ["0,1", "0,2"]
    assert table["share"].tolist() == [0.5, 0.5]
    assert table["whole"].tolist() == [True, False]
    found = choices_of(table, 4)
    assert found.whole.tolist() == [True, True, False, False]
    assert found.layer_shares.tolist() == [1, 0.5, 0.5, 0]


def test_a_choice_that_no_resample_makes_is_kept() -> None:
    table = choice_table(np.array([9, 2, 3.0]), np.array([[1, 2, 3.0]]), top=1)
    assert table.to_dict("list") == {"layers": ["1", "0"], "share": [0.0, 1.0], "whole": [True, False]}
    assert choices_of(table, 3).layer_shares.tolist() == [1, 0, 0]


def test_without_resamples_there_are_no_shares() -> None:
    table = choice_table(np.full(4, np.nan), None)
    assert table["layers"].tolist() == [""]
    assert table["share"].isna().all()
    found = choices_of(table, 4)
    assert not found.whole.any()
    assert np.isnan(found.layer_shares).all()
