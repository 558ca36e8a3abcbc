"""How long a call may take before its worker counts as hung. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from raysweep.engine.tally import duration

FACTOR = 20.0  # times the expected seconds: estimates are off by less, even for a slow disk or a shared device
UNKNOWN = 24.0  # times the floor, for a call whose seconds are not estimated: tables, texts, requests to a judge


@dataclass(frozen=True)
class Deadline:
    """Seconds that a call may run, None for as long as it takes, and the seconds that are expected, None if unknown."""

    seconds: float | None = None
    expected: float | None = None

    @property
    def words(self) -> str:
        """For messages: `10 s were expected, and execution.call_deadline allows 30 min`."""
        expected = "" if self.expected is None else f"{duration(self.expected)} were expected, and "
        allowed = "any time" if self.seconds is None else duration(self.seconds)
        return f"{expected}execution.call_deadline allows {allowed}"


def deadline(expected: float | None, floor: float | None) -> Deadline:
    """Return the deadline of a call that is expected to take so many seconds; never below `floor`, None for no deadline."""
    if floor is None:
        return Deadline(None, expected)
    return Deadline(UNKNOWN * floor if expected is None else max(floor, FACTOR * expected), expected)
