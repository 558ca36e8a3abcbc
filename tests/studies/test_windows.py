"""Windows: which there are, which are refused, and how they are told."""

from __future__ import annotations

import pytest

from raysweep.errors import InputError
from raysweep.studies.windows import (
    UNTOUCHED,
    Window,
    check_windows,
    windows_of_widths,
)


def test_every_window_of_the_asked_widths_and_the_two_that_every_sweep_has() -> None:
    assert windows_of_widths(5, [4, 2]) == [(0, 0), (0, 2), (1, 3), (2, 4), (3, 5), (0, 4), (1, 5), (0, 5)]
    assert windows_of_widths(3, [3]) == [(0, 0), (0, 3)]


def test_all_widths_are_every_start_and_stop() -> None:
    every = {(start, stop) for start in range(6) for stop in range(start + 1, 7)}
    assert set(windows_of_widths(6, "all")) == {(0, 0)} | every
    assert len(windows_of_widths(32, "all")) == 528 + 1


def test_windows_are_told_once_each_by_width_and_start() -> None:
    assert check_windows([(3, 4), (0, 2), (3, 4), (0, 0), (1, 2)], 4) == [(0, 0), (1, 2), (3, 4), (0, 2)]


@pytest.mark.parametrize("window", [(2, 5), (-1, 2), (3, 2), (2, 2), (4, 4), (7, 9)])
def test_a_window_out_of_range_is_refused(window: tuple[int, int]) -> None:
    start, stop = window
    message = (
        rf"^window \[{start}, {stop}\) does not fit the 4 decoder layers of model 'm'; give 0 <= start < stop <= 4$"
    )
    with pytest.raises(InputError, match=message):
        check_windows([(0, 1), window], 4, " of model 'm'")


@pytest.mark.parametrize("width", [0, -1, 33])
def test_a_width_that_does_not_fit_is_refused(width: int) -> None:
    message = rf"^a window of width {width} does not fit the 32 decoder layers of model 'm'; give widths from 1 to 32$"
    with pytest.raises(InputError, match=message):
        windows_of_widths(32, [5, width], " of model 'm'")


@pytest.mark.parametrize(
    ("window", "width", "centre", "layers"),
    [
        (Window(8, 13), 5, 10.0, "8-12"),
        (Window(3, 4), 1, 3.0, "3"),
        (Window(2, 4), 2, 2.5, "2-3"),
        (UNTOUCHED, 0, None, ""),
    ],
)
def test_how_a_window_is_told(window: Window, width: int, centre: float | None, layers: str) -> None:
    assert (window.width, window.centre, window.layers) == (width, centre, layers)
