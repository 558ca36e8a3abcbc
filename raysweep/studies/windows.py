"""Windows of decoder layers, and the order in which one pass over the layers computes them all.

Pure arithmetic on layer indices; substitution.py runs the schedule, the engine plans and costs with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from raysweep.errors import InputError


class Window(NamedTuple):
    """Consecutive decoder layers [start, stop) that are put back to the base model's; (0, 0) puts back none."""

    start: int
    stop: int

    @property
    def width(self) -> int:
        """Number of layers."""
        return self.stop - self.start

    @property
    def centre(self) -> float | None:
        """start + (width − 1)/2, in layers; None for the empty window."""
        return self.start + (self.width - 1) / 2 if self.width else None

    @property
    def layers(self) -> str:
        """The layers as text, both ends included: `8-12`, `3`, or nothing."""
        if self.width == 0:
            return ""
        return str(self.start) if self.width == 1 else f"{self.start}-{self.stop - 1}"


UNTOUCHED = Window(0, 0)


def check_windows(windows: Iterable[tuple[int, int]], n_layers: int, where: str = "") -> list[Window]:
    """The distinct windows by width and start; raises InputError for one that does not fit a model of `n_layers`."""
    distinct = sorted({Window(*window) for window in windows}, key=lambda w: (w.width, w.start))
    for window in distinct:
        inside = 0 <= window.start <= window.stop <= n_layers
        if not inside or (window.width == 0 and window != UNTOUCHED):
            raise InputError(
                f"window [{window.start}, {window.stop}) does not fit the {n_layers} decoder layers{where}; "
                f"give 0 <= start < stop <= {n_layers}"
            )
    return distinct


def windows_of_widths(n_layers: int, widths: Sequence[int], where: str = "") -> list[Window]:
    """Every window of each width, and the two that every sweep has: none put back, and all.

    Raises InputError for a width below 1 or above the number of layers.
    """
    for width in widths:
        if not 1 <= width <= n_layers:
            raise InputError(
                f"a window of width {width} does not fit the {n_layers} decoder layers{where}; "
                f"give widths from 1 to {n_layers}"
            )
    windows = [(start, start + width) for width in widths for start in range(n_layers - width + 1)]
    return check_windows([UNTOUCHED, *windows, (0, n_layers)], n_layers, where)


@dataclass(frozen=True)
class LayerStep:
    """What one layer computes: with the base layer the open branches, with the tuned one the closed windows and the trunk.

    `forks` start their branch here from the trunk, the tuned model's own states; `closes` are the windows whose branch
    ends behind this layer. Branches are named by their start: windows that start together share one.
    """

    layer: int
    forks: tuple[int, ...]
    open: tuple[int, ...]
    tails: tuple[Window, ...]
    trunk: bool
    closes: tuple[Window, ...]

    @property
    def applications(self) -> int:
        """Layer applications of this step: one for each state that goes through."""
        return len(self.open) + len(self.tails) + self.trunk


def schedule(n_layers: int, windows: Iterable[Window]) -> Iterator[LayerStep]:
    """The steps of one pass over all layers; the trunk runs as far as something still needs it."""
    windows = list(windows)
    real = [window for window in windows if window.width]
    ends = {start: max(w.stop for w in real if w.start == start) for start in sorted({w.start for w in real})}
    last_fork = n_layers if UNTOUCHED in windows else max(ends, default=0)
    for layer in range(n_layers):
        yield LayerStep(
            layer,
            forks=tuple(start for start in ends if start == layer),
            open=tuple(start for start, end in ends.items() if start <= layer < end),
            tails=tuple(window for window in real if window.stop <= layer),
            trunk=layer < last_fork,
            closes=tuple(window for window in real if window.stop == layer + 1),
        )


def layer_applications(n_layers: int, windows: Iterable[Window]) -> int:
    """Layer applications that one pass needs for all windows, per batch of examples."""
    return sum(step.applications for step in schedule(n_layers, windows))
