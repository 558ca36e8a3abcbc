"""Two Ray workers of one thread each against one: the same run, split by data, the start of Ray and of the workers left out.

One run of each in turn, the first of a round in turn too: the machine drifts within a round. The limit is 2; what keeps from
it is that each worker loads the models, that tables are made at the end by one, and that the driver commits on the same two
cores. `busy` is the share of the workers' time that was spent in calls, and `slower` how much longer all calls together took
on two: the ratio is two times busy (of two over of one) over slower. The losses of both are compared.
"""

from __future__ import annotations

import tempfile
from datetime import datetime
from typing import Any

import numpy as np
from common import machine, spread

from raysweep.config import parse_config
from raysweep.engine import events
from raysweep.engine.driver import drive
from raysweep.report.tables import collect_tables

ROUNDS = 6


def one(workers: int) -> tuple[float, float, np.ndarray]:
    """Seconds from the first call to the end, seconds in calls, and the losses."""
    times: dict[str, str] = {}
    in_calls = 0.0

    def listen(event: dict[str, Any]) -> None:
        nonlocal in_calls
        times[event["event"]] = event["time"]
        if event["event"] == events.CALL_DONE:
            in_calls += event["measured"]["seconds"]

    with tempfile.TemporaryDirectory() as storage:
        done = drive(
            parse_config(
                {
                    "name": "workers",
                    "models": [{"name": "tiny", "base": "lab://tiny", "tuned": {"sums": "lab://tiny/sums"}}],
                    "datasets": [{"name": "sums", "path": "lab://sums/test", "format": "gsm8k", "limit": 256}],
                    "studies": {"substitution": {"widths": [5]}, "similarity": {}, "correlation": {}},
                    "execution": {"executor": "ray", "device": "cpu", "workers": workers, "chunk": 8},
                    "storage": storage,
                }
            ),
            listener=listen,
        )
        losses = collect_tables(done.folder, done.graph)["substitution"]["loss"].to_numpy()
    begun, ended = (datetime.fromisoformat(times[name]) for name in (events.WORKERS_READY, events.RUN_FINISHED))
    return (ended - begun).total_seconds(), in_calls, losses


def main() -> None:
    print(f"two Ray workers of one thread against one; {machine()}")
    ratios, apart = [], 0.0
    for turn in range(ROUNDS):
        runs = {workers: one(workers) for workers in ((1, 2), (2, 1))[turn % 2]}
        (alone, calls_alone, first), (together, calls_together, second) = runs[1], runs[2]
        ratios.append(alone / together)
        apart = max(apart, float(np.abs(first - second).max()))
        print(
            f"  one {alone:6.2f} s, busy {calls_alone / alone:.2f}   two {together:6.2f} s, busy {calls_together / together / 2:.2f}, "
            f"slower {calls_together / calls_alone:.2f} ×   {ratios[-1]:.2f} ×",
            flush=True,
        )
    print(f"  ratio {spread(ratios)} (target 1.7, limit 2); losses apart by {apart:.1e}")


if __name__ == "__main__":
    main()
