"""How far a run's estimate was off: what was estimated at its start next to what its calls took, from plan and log."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from raysweep.engine import events

_COUNTED = ("capture", "substitute", "estimate", "finetune", "adapt", "backdoor")


@dataclass(frozen=True)
class Accuracy:
    """(estimated, real) by measure: `seconds` of all calls one after the other, `bytes_read`, `layer_applications`, `memory` in
    bytes (the largest worker's). NaN if it is not known.

    `calls` are (planned, done): a call that was cut into pieces is one call, done with its last piece, and calls that a sweep no
    longer needed after it had stopped are not planned. `retried` were tried again, or are trainings that an earlier start had begun.
    `workers` is how many workers shared the calls.
    """

    pairs: Mapping[str, tuple[float, float]]
    calls: tuple[int, int]
    retried: int
    dropped: int = 0
    workers: int = 1

    @property
    def is_whole(self) -> bool:
        """Whether every call that was estimated was done, each at the first attempt, so that both figures are of the same work."""
        return self.calls[0] == self.calls[1] and not self.retried and not self.dropped

    def ratio(self, measure: str) -> float:
        """Estimated ÷ real; NaN if either is not known or nothing was real."""
        estimated, real = self.pairs[measure]
        return estimated / real if real else math.nan


@dataclass
class _Start:
    """What the log has of one start of a run."""

    measured: list[Mapping[str, Any]] = field(default_factory=list)
    calls: int = 0  # done; a cut call once
    whole_of: dict[str, str] = field(default_factory=dict)  # by the name of a piece, the call it was cut from
    pieces: dict[str, set[str]] = field(default_factory=dict)  # by cut call, pieces that are not done
    retried: int = 0
    dropped: int = 0
    workers: int = 1

    def take(self, event: Mapping[str, Any]) -> None:
        name, kind = event["event"], str(event.get("call", "")).partition(" ")[0]
        if name == events.WORKERS_READY:
            self.workers = max(self.workers, int(event["workers"]))
        elif name == events.CALLS_DROPPED:
            self.dropped += sum(n for dropped, n in event["calls"].items() if dropped in _COUNTED)
        elif kind not in _COUNTED:
            return
        elif name == events.CALL_CUT:
            self.pieces[event["call"]] = set(event["calls"])
            self.whole_of |= dict.fromkeys(event["calls"], event["call"])
        elif name == events.CALL_DONE:
            self.measured.append(event["measured"])
            self.retried += bool(event["measured"].get("resumed_from"))
            self.calls += self._completes(event["call"])
        elif name in (events.CALL_RETRIED, events.CALL_FAILED):
            self.retried += 1

    def _completes(self, call: str) -> bool:
        """Whether a call that is done completes a planned one: all but a piece whose siblings are not done."""
        whole = self.whole_of.get(call)
        if whole is None:
            return True
        left = self.pieces[whole]
        left.discard(call)
        return not left


def compare(estimate: Mapping[str, Any] | None, log: Iterable[Mapping[str, Any]]) -> Accuracy | None:
    """Compare the estimate with the events of the latest start; None if nothing was estimated or no call of its kinds was done."""
    if estimate is None:
        return None
    start = _Start()
    for event in log:
        if event["event"] == events.RUN_STARTED:
            start = _Start()
        start.take(event)
    done = start.measured
    if not done:
        return None
    real = {
        "seconds": sum(measured["seconds"] for measured in done),
        "bytes_read": sum(measured.get("bytes_read", math.nan) for measured in done),
        "layer_applications": sum(measured.get("layer_applications", math.nan) for measured in done),
        "memory": max(measured.get("peak_bytes", 0) for measured in done) or math.nan,
    }
    known = {**estimate, "seconds": estimate["call_seconds"]}
    pairs = {name: (math.nan if known[name] is None else float(known[name]), float(real[name])) for name in real}
    calls = (estimate["calls"] - start.dropped, start.calls)
    return Accuracy(pairs, calls, start.retried, start.dropped, start.workers)
