"""How far the plan's estimate was off, in words: a line or two for a terminal, records for the page."""

from __future__ import annotations

import math

from raysweep.engine.accuracy import Accuracy
from raysweep.terminal import wrapped

_NAMES = {
    "seconds": "seconds of sweeping and capture, all calls",
    "bytes_read": "bytes of checkpoints read",
    "layer_applications": "layer applications",
    "memory": "peak memory of a worker, bytes",
}


def accuracy_line(found: Accuracy) -> str:
    """Return the estimate ÷ what the run took for every measure, and what makes the two different work; wrapped for a terminal."""
    shown = (
        f"time {_times(found, 'seconds')}",
        f"bytes read {_times(found, 'bytes_read')}",
        f"layer applications {_times(found, 'layer_applications')}",
        f"peak memory {_times(found, 'memory')}",
    )
    return "\n".join(wrapped(f"plan's estimate ÷ measured: {', '.join(shown)}{_reservation(found)}"))


def accuracy_records(found: Accuracy | None) -> list[dict[str, str]]:
    """Return a row for each measure: estimated, real, and the quotient."""
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
    """Return why estimate and run are not of the same work, in brackets; nothing if they are."""
    planned, done = found.calls
    why = [f"{done} of {planned} planned calls were done"] if done != planned else []
    why += [f"{_counted(found.dropped, 'planned call')} not needed"] if found.dropped else []
    why += [f"{_counted(found.retried, 'attempt')} failed or resumed"] if found.retried else []
    return f" ({', '.join(why)})" if why else ""


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"
