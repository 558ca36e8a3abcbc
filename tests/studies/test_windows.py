"""Windows and their schedule, against a simulation that carries each window's history of layers as a list."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysweep.errors import InputError
from raysweep.studies.windows import (
    UNTOUCHED,
    Window,
    check_windows,
    layer_applications,
    schedule,
    windows_of_widths,
)

History = tuple[str, ...]  # which model's layer was applied at each depth so far


def wanted(window: Window, n_layers: int) -> History:
    """What putting a window back means, said by itself."""
    return tuple("base" if window.start <= layer < window.stop else "tuned" for layer in range(n_layers))


def follow(n_layers: int, windows: list[Window]) -> tuple[dict[Window, History], int]:
    """Do what the schedule says with histories for states; returns each window's, and the applications done."""
    trunk: History = ()
    branches: dict[int, History] = {}
    tails: dict[Window, History] = {}
    done = 0
    for layer, step in enumerate(schedule(n_layers, windows)):
        assert step.layer == layer
        for start in step.forks:
            assert len(trunk) == layer, "a branch forks from a trunk that has come as far"
            branches[start] = trunk
        opened = {start: (*branches[start], "base") for start in step.open}
        closed = {window: (*tails[window], "tuned") for window in step.tails}
        trunk = (*trunk, "tuned") if step.trunk else trunk
        done += len(opened) + len(closed) + step.trunk
        assert step.applications == len(opened) + len(closed) + step.trunk
        branches, tails = opened, closed | {window: opened[window.start] for window in step.closes}
    assert layer == n_layers - 1
    return {window: tails[window] if window.width else trunk for window in windows}, done


def fewest(n_layers: int, windows: list[Window]) -> int:
    """Distinct histories, of every length above 0, that are prefixes of a wanted one: each costs one application."""
    return len({history[:n] for w in windows for history in [wanted(w, n_layers)] for n in range(1, n_layers + 1)})


@st.composite
def window_sets(draw: st.DrawFn) -> tuple[int, list[Window]]:
    n_layers = draw(st.integers(1, 9))
    every = [Window(a, b) for a in range(n_layers) for b in range(a + 1, n_layers + 1)]
    return n_layers, draw(st.lists(st.sampled_from([UNTOUCHED, *every]), unique=True, max_size=12))


@settings(max_examples=150, deadline=None)
@given(window_sets())
def test_each_window_goes_through_its_own_layers_and_none_twice(case: tuple[int, list[Window]]) -> None:
    n_layers, windows = case
    reached, done = follow(n_layers, windows)
    assert reached == {window: wanted(window, n_layers) for window in windows}
    assert layer_applications(n_layers, windows) == done
    assert done == fewest(n_layers, windows), "no state is computed twice, and none that nobody needs"


@pytest.mark.parametrize(
    ("widths", "applications", "windows"),
    [([5], 577, 28 + 2), (range(1, 33), 6016, 528 + 1)],
)
def test_the_cost_of_sweeping_32_layers(widths: list[int], applications: int, windows: int) -> None:
    chosen = windows_of_widths(32, list(widths))
    assert len(chosen) == windows
    assert layer_applications(32, chosen) == applications


def test_every_window_of_the_asked_widths_and_the_two_that_every_sweep_has() -> None:
    assert windows_of_widths(5, [4, 2]) == [(0, 0), (0, 2), (1, 3), (2, 4), (3, 5), (0, 4), (1, 5), (0, 5)]
    assert windows_of_widths(3, [3]) == [(0, 0), (0, 3)]


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
