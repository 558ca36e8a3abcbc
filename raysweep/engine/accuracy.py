"""How far a run's estimate was off: what was estimated at its start beside what its calls then took, from plan and log."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from raysweep.engine import events

_COUNTED = ("capture", "substitute", "estimate", "finetune", "adapt", "backdoor")


@dataclass(frozen=True)
class Accuracy:
    """(estimated, real) by measure: `seconds` of all calls one after the other, `bytes_read`, `layer_applications`, `memory` in
    bytes (the largest worker's). NaN where it is not known. `calls` are (planned, done); `retried` were tried again, or are
    trainings that an earlier start had begun."""

    pairs: Mapping[str, tuple[float, float]]
    calls: tuple[int, int]
    retried: int

    @property
    def is_whole(self) -> bool:
        """Whether every call that was estimated was done, each at once, so that the figures are of the same thing."""
        return self.calls[0] == self.calls[1] and not self.retried

    def ratio(self, measure: str) -> float:
        """Estimated ÷ real; NaN where either is not known or nothing was real."""
        estimated, real = self.pairs[measure]
        return estimated / real if real else math.nan


def compare(estimate: Mapping[str, Any] | None, log: Iterable[Mapping[str, Any]]) -> Accuracy | None:
    """The estimate beside the events of the latest start; None where nothing was estimated or no call of its kinds was done."""
    if estimate is None:
        return None
    done: list[Mapping[str, Any]] = []
    retried = 0
    for event in log:
        kind = str(event.get("call", "")).partition(" ")[0]
        if event["event"] == events.RUN_STARTED:
            done, retried = [], 0
        elif kind in _COUNTED and event["event"] == events.CALL_DONE:
            done.append(event["measured"])
            retried += bool(event["measured"].get("resumed_from"))
        elif kind in _COUNTED and event["event"] in (events.CALL_RETRIED, events.CALL_FAILED):
            retried += 1
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
    return Accuracy(pairs, (estimate["calls"], len(done)), retried)
