"""Windows of decoder layers, and the versions of a layer that a model under study may have in its place.

Pure arithmetic on layer indices. What is not a whole window put back is interventions.py's; the order in which one pass
over the layers computes them all is schedule.py's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from raysweep.errors import InputError

Part = Literal["layer", "attention", "mlp"]


class Version(NamedTuple):
    """Which weights a layer has: in `part` of it (tuned + share · (base − tuned)), in the rest the tuned model's."""

    part: Part
    share: float


TUNED = Version("layer", 0.0)
BASE = Version("layer", 1.0)


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

    @property
    def kind(self) -> str:
        """The kind of change, as the table has it."""
        return "window"

    @property
    def coefficient(self) -> float:
        """How far the window goes towards the base: all the way."""
        return 1.0

    @property
    def in_base(self) -> bool:
        """Whether embedding, norm and head are the base model's; no, the tuned one's."""
        return False

    @property
    def text(self) -> str:
        """The window as plans and events name it."""
        return self.layers or "none"

    @property
    def words(self) -> str:
        """The window as the table of generated text has it."""
        return f"window {self.layers}" if self.width else "none"

    def version(self, layer: int) -> Version:
        """The version of a layer: the base's inside the window."""
        return BASE if self.start <= layer < self.stop else TUNED


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


def windows_of_widths(n_layers: int, widths: Sequence[int] | Literal["all"], where: str = "") -> list[Window]:
    """Every window of each width (`all`: of every one), and the two that every sweep has: none put back, and all.

    Raises InputError for a width below 1 or above the number of layers.
    """
    given: object = widths
    if widths == "all":
        widths = range(1, n_layers + 1)
    elif isinstance(given, str):
        raise InputError(f"widths is {given!r}; give a list of widths, or all")
    for width in widths:
        if not 1 <= width <= n_layers:
            raise InputError(
                f"a window of width {width} does not fit the {n_layers} decoder layers{where}; "
                f"give widths from 1 to {n_layers}"
            )
    windows = [(start, start + width) for width in widths for start in range(n_layers - width + 1)]
    return check_windows([UNTOUCHED, *windows, (0, n_layers)], n_layers, where)
