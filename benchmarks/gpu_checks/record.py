"""What the sections share: figures by name, the clock, and the setup of one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from raysweep.models.release import free_memory


class NotRunError(Exception):
    """A section cannot run here. The message is the reason."""


@dataclass(frozen=True)
class Figure:
    """One number, and the limit that it must not exceed. A figure without a value has the reason in `note`."""

    value: float | None
    unit: str = ""
    limit: float | None = None
    note: str = ""

    @property
    def missed(self) -> bool:
        """Whether the value exceeds its limit. NaN exceeds every limit."""
        return self.limit is not None and self.value is not None and not self.value <= self.limit

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "missed": self.missed}


@dataclass
class Setup:
    """One run of the script: the device, the sizes, a scratch folder, the time left and the figures so far."""

    device: str
    tiny: bool
    folder: Path
    seconds: float
    started: float = field(default_factory=time.monotonic)
    figures: dict[str, Figure] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)  # what several sections use, such as the large models

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def left(self) -> float:
        """Seconds until the time is used up."""
        return self.started + self.seconds - time.monotonic()

    def add(self, name: str, value: float, unit: str = "", *, limit: float | None = None, note: str = "") -> None:
        self.figures[name] = Figure(float(value), unit, limit, note)

    def missing(self, name: str, reason: str) -> None:
        """Record why a figure has no value."""
        self.figures[name] = Figure(None, note=reason)

    def value(self, name: str) -> float:
        """A figure of an earlier section. Raises NotRunError if it has no value."""
        found = self.figures.get(name)
        if found is None or found.value is None:
            raise NotRunError(f"needs the figure '{name}', which has no value")
        return found.value

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def time(self, work: Callable[[], object]) -> float:
        """Seconds of one call, with all work on the device finished."""
        self.synchronize()
        started = time.perf_counter()
        work()
        self.synchronize()
        return time.perf_counter() - started

    def in_turn(self, rounds: int, seconds: float, *sides: Callable[[], object]) -> list[list[float]]:
        """Seconds of each side in every round, the sides in turn, after one warm-up each.

        Stops after `rounds` rounds, or earlier once `seconds` have passed; one round is always made.
        """
        until = time.monotonic() + min(seconds, max(0.0, self.left))
        for side in sides:
            self.time(side)
        times = [[self.time(side)] for side in sides]
        while len(times[0]) < rounds and time.monotonic() < until:
            for each, side in zip(times, sides, strict=True):
                each.append(self.time(side))
        return times

    def median(self, work: Callable[[], object], rounds: int = 5, seconds: float = 8.0) -> float:
        """Median seconds of the calls after a warm-up."""
        return statistics.median(self.in_turn(rounds, seconds, work)[0])

    def free_memory(self) -> None:
        """Drop the large models, and give back what is in reference cycles and in torch's cache. A dry run saves the time."""
        self.kept.pop("models", None)
        if self.cuda or not self.tiny:
            free_memory()
