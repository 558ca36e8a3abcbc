"""Arguments in the forms in which users of Python, numpy and pandas have them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from raysweep.errors import InputError
from raysweep.studies.arguments import (
    layers_given,
    names_given,
    numbers_given,
    optional_number,
    sets_given,
    whole_number,
    widths_given,
    windows_given,
)

N_LAYERS = 12


@pytest.mark.parametrize(
    ("given", "windows"),
    [
        ([(4, 9), [0, 2]], [(4, 9), (0, 2)]),
        (((0, 0), (3, 4)), [(0, 0), (3, 4)]),
        ([range(4, 9), slice(4, 9)], [(4, 9), (4, 9)]),
        (range(4, 9), [(4, 9)]),
        (slice(4, 9, 1), [(4, 9)]),
        (
            [slice(None), slice(None, 3), slice(9, None), slice(-4, -1), slice(-4, None)],
            [(0, 12), (0, 3), (9, 12), (8, 11), (8, 12)],
        ),
        (np.array([[4, 9], [0, 2]], dtype=np.int32), [(4, 9), (0, 2)]),
        (torch.tensor([[4, 9]]), [(4, 9)]),
        ([np.array([4, 9]), (np.int64(1), np.uint8(2))], [(4, 9), (1, 2)]),
        ([slice(np.int64(1), np.int64(3))], [(1, 3)]),
        ((window for window in [(1, 2)]), [(1, 2)]),
        (pd.DataFrame({"start": [4, 0], "stop": [9, 2], "loss": [0.1, 0.2]}), [(4, 9), (0, 2)]),
        (pd.DataFrame({"start": [4.0, 4.0], "stop": [9.0, 9.0]}), [(4, 9)]),
        (pd.DataFrame({"start": pd.array([4], "Int64"), "stop": pd.array([9], "Int64")}), [(4, 9)]),
        ([slice(3, 99)], [(3, 99)]),  # refused by the check against the model, not cut to it
    ],
)
def test_windows(given: Any, windows: list[tuple[int, int]]) -> None:
    found = windows_given(given, N_LAYERS)
    assert found == windows
    assert all(type(end) is int for window in found for end in window)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "windows is empty"),
        (np.empty((0, 2), dtype=int), "windows is empty"),
        (pd.DataFrame({"start": [], "stop": []}), "windows is a table without rows"),
        (pd.DataFrame({"start": [1], "end": [2]}), r"without the column stop \(it has start, end\)"),
        (pd.DataFrame({"start": [1, None], "stop": [2, None]}), "with start nan and stop nan; give a whole number"),
        (
            pd.DataFrame({"start": pd.array([None], "Int64"), "stop": pd.array([2], "Int64")}),
            "with start <NA> and stop 2",
        ),
        (pd.DataFrame({"start": [0.5], "stop": [2.0]}), "with start 0.5 and stop 2.0"),
        ([(4, 9), 5], r"windows\[1\] is 5; a window is \(start, stop\), range"),
        ((4, 9), r"windows\[0\] is 4; a window is"),
        ([(1, 2, 3)], r"windows\[0\] is \(1, 2, 3\), of type tuple"),
        ([(True, False)], r"windows\[0\] is \(True, False\)"),
        ([(1.0, 2.0)], r"windows\[0\] is \(1.0, 2.0\)"),
        ([("1", "2")], r"windows\[0\] is"),
        (["4-8"], r"windows\[0\] is '4-8'; a window is"),
        ("4-8", "windows is '4-8'; give a list of windows"),
        ([range(0, 9, 2)], r"windows\[0\] is range\(0, 9, 2\), with a step of 2; a window has consecutive layers"),
        (slice(9, 0, -1), "with a step of -1"),
        ([slice(1.0, 2)], r"windows\[0\] has an end that is 1.0, of type float"),
        (5, "windows is 5; give a list of windows"),
        (None, "windows is None; give a list of windows"),
        ({"a": (1, 2)}, "windows is {'a': .*, of type dict"),
    ],
)
def test_windows_that_are_none(given: Any, told: str) -> None:
    with pytest.raises(InputError, match=f"^.*{told}"):
        windows_given(given, N_LAYERS)


@pytest.mark.parametrize(
    ("given", "widths"),
    [
        (5, [5]),
        (np.int64(5), [5]),
        ([1, np.int16(2)], [1, 2]),
        (range(1, 4), [1, 2, 3]),
        (np.arange(1, 3), [1, 2]),
        (np.array(4), [4]),
        (torch.tensor([2, 3]), [2, 3]),
        (pd.Series([2, 3]), [2, 3]),
        ({3}, [3]),
        ("all", "all"),
        (None, []),
    ],
)
def test_widths(given: Any, widths: Any) -> None:
    assert widths_given(given) == widths


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "widths is empty; give at least one, or remove widths"),
        ((), "widths is empty"),
        (True, "widths is True, of type bool"),
        ([True], "widths is True, of type bool"),
        (2.0, "widths is 2.0, of type float; give a whole number, 1 or more"),
        (0, "widths is 0; give a whole number, 1 or more"),
        ([np.float32(2)], "widths is 2.0"),
        ("five", "widths is 'five'; give a number, a list of numbers, or 'all'"),
        (["5"], "widths is '5'; give a whole number"),
        ({"a": 1}, "widths is {'a': 1}, of type dict"),
    ],
)
def test_widths_that_are_none(given: Any, told: str) -> None:
    with pytest.raises(InputError, match=f"^{told}"):
        widths_given(given)


def test_sets_of_layers() -> None:
    given: Any = {
        "one": 3,
        "range": range(2),
        "slice": slice(-2, None),
        "odd": slice(1, 6, 2),
        "array": np.array([0, 11]),
        7: [1],
    }
    expected = {"one": [3], "range": [0, 1], "slice": [10, 11], "odd": [1, 3, 5], "array": [0, 11], "7": [1]}
    assert sets_given(given, N_LAYERS) == expected
    assert sets_given(None, N_LAYERS) == {}
    for wrong, told in (
        ([[1, 2]], "sets is"),
        ({"a": [True]}, "set 'a' has the layer True"),
        ({"a": "0-3"}, "set 'a' is '0-3'"),
    ):
        with pytest.raises(InputError, match=f"^{told}"):
            sets_given(wrong, N_LAYERS)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"set 'a' has the layer 1.5, of type float; give layer numbers"):
        layers_given("set 'a'", [1.5], N_LAYERS)  # type: ignore[list-item]


def test_names_and_numbers_may_come_alone() -> None:
    assert names_given("modules", "mlp") == ["mlp"]
    assert names_given("modules", ("mlp", "attention")) == ["mlp", "attention"]
    assert numbers_given("coefficients", 0.5) == [0.5]
    assert numbers_given("coefficients", np.linspace(0, 1, 3)) == [0, 0.5, 1]
    with pytest.raises(InputError, match="modules has 3; give a list of names"):
        names_given("modules", [3])  # type: ignore[list-item]
    for wrong in ("0.5", ["0.5"], [True], None, {"a": 1}):
        with pytest.raises(InputError, match=r"^coefficients (is|has) .*; give a list of numbers$"):
            numbers_given("coefficients", wrong)  # type: ignore[arg-type]


def test_whole_numbers() -> None:
    assert whole_number("points", np.int64(2)) == 2
    assert optional_number("top", None) is None
    for wrong, told in (
        (0, "0;"),
        (1.5, "1.5, of type float;"),
        (True, "True, of type bool;"),
        ("2", "'2';"),
        (None, "None;"),
    ):
        with pytest.raises(InputError, match=f"^points is {told} give a whole number, 1 or more$"):
            whole_number("points", wrong)
