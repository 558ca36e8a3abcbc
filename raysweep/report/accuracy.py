"""How far the estimate was off, in words: one line for a terminal, records for the page."""

from __future__ import annotations

import math

from raysweep.engine.accuracy import Accuracy

_NAMES = {
    "seconds": "seconds of sweeping and capture, all calls",
    "bytes_read": "bytes of checkpoints read",
    "layer_applications": "layer applications",
    "memory": "peak memory of a worker, bytes",
}


def accuracy_line(found: Accuracy) -> str:
    """Estimated ÷ real of every measure, and what keeps them from being of the same thing."""
    shown = {
        "seconds": f"time {_times(found, 'seconds')}",
        "bytes_read": f"bytes read {_times(found, 'bytes_read')}",
        "layer_applications": f"layer applications {_times(found, 'layer_applications')}",
        "memory": f"peak memory {_times(found, 'memory')}",
    }
    return f"estimated ÷ real: {', '.join(shown.values())}{_reservation(found)}"


def accuracy_records(found: Accuracy | None) -> list[dict[str, str]]:
    """A row a measure: estimated, real, and the quotient."""
    if found is None:
        return []
    return [
        {
            "measure": _NAMES[name] + (_reservation(found) if name == "seconds" else ""),
            "estimated": _figure(name, estimated),
            "real": _figure(name, real),
            "estimated ÷ real": _times(found, name),
        }
        for name, (estimated, real) in found.pairs.items()
    ]


def _times(found: Accuracy, name: str) -> str:
    ratio = found.ratio(name)
    return "not known" if math.isnan(ratio) else f"{ratio:.2f}"


def _figure(name: str, value: float) -> str:
    if math.isnan(value):
        return "not known"
    return f"{value:.2f}" if name == "seconds" else f"{value:,.0f}"


def _reservation(found: Accuracy) -> str:
    if found.is_whole:
        return ""
    planned, done = found.calls
    retried = f", {found.retried} attempts failed" if found.retried else ""
    return f" ({done} of {planned} calls were done{retried})"
