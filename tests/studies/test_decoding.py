"""Which changes write text together."""

from __future__ import annotations

import numpy as np

from raysweep.data.examples import Example
from raysweep.studies.decoding import changes_at_once, together, written_together
from raysweep.studies.interventions import Intervention
from raysweep.studies.windows import Window


def test_as_many_changes_as_fit_twice_and_one_at_least() -> None:
    assert [changes_at_once(10, budget) for budget in (200, 199, 20, 1)] == [10, 9, 1, 1]
    assert changes_at_once(0, 16) == 8


def test_changes_share_what_the_examples_leave_of_a_batch() -> None:
    prompts = [Example(0, np.arange(5), 4, "", ""), Example(1, np.arange(9), 6, "", "")]
    windows = [Window(0, 1), Window(1, 2), Window(2, 3)]
    groups = {budget: written_together(4, windows, prompts, 4, budget) for budget in (20, 79, 80, 120)}
    assert groups == {20: [[0], [1], [2]], 79: [[0], [1], [2]], 80: [[0, 1], [2]], 120: [[0, 1, 2]]}
    assert written_together(4, windows, [], 4, 16) == [[0, 1, 2]]


def test_one_embedding_norm_and_head_and_no_weights_of_their_own() -> None:
    changes = [
        Window(0, 0),
        Intervention("reverse", (1,)),
        Window(1, 3),
        Intervention("window", (1, 2), 0.5),
        Intervention("attention", (0,)),
        Intervention("set", (0, 3), 0.0),
        Intervention("reverse", ()),
    ]
    assert together(4, changes, 3) == [[0, 2, 4], [5], [1, 6], [3]]
    assert together(4, changes, 9) == [[0, 2, 4, 5], [1, 6], [3]]
    assert together(4, [], 3) == []
