"""What a run costs per cell as it has more of them: 1,000 made-up cells against 50, on one machine, without models.

Losses and states are random; everything else is real: planning, commits flushed to the disk, the log, and the tables
(similarity, spectrum, correlation), which a worker makes from what is committed. Printed are CPU and clock time per cell of the
tables and of the driver, how often each manifest is read, and the size of plan.json.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine

from raysweep.config import Config, parse_config
from raysweep.engine.calls import Call, CaptureCall, Commit, Outcome, SubstituteCall
from raysweep.engine.dispatch import Slot
from raysweep.engine.driver import Done, drive
from raysweep.engine.executor import LocalBackend
from raysweep.engine.work import Worker, _loss_commits
from raysweep.store import chunks
from raysweep.studies.capture import Captured

FEW, MANY = 50, 1000
LAYERS, WIDTH, RECORDS = 24, 16, 12


class MadeUp:
    """Random losses and states for calls of models; a real worker makes the tables."""

    slots = (Slot(depth=2),) * 8
    about: Mapping[str, Any] = {"executor": "none", "workers": 8}

    def __init__(self, folder: Path) -> None:
        self._worker = Worker(folder)
        self._calls: deque[Call] = deque()
        self._random = np.random.default_rng(0)
        self.tables = self.models = self.clock = 0.0
        self.n_tables = 0

    def submit(self, index: int, call: Call) -> None:
        self._calls.append(call)

    def collect(self) -> list[Outcome]:
        outcomes = [self._outcome(call) for call in self._calls]
        self._calls.clear()
        return outcomes

    def _outcome(self, call: Call) -> Outcome:
        started, clock = time.process_time(), time.perf_counter()
        if isinstance(call, SubstituteCall | CaptureCall):
            outcome = Outcome(call, tuple(self._made(call)), {"seconds": 0.1, "tokens": 9, "layer_applications": 9})
            self.models += time.process_time() - started
            return outcome
        outcome = self._worker.attempt(call)
        assert outcome.error is None, outcome.traceback
        self.tables += time.process_time() - started
        self.clock += time.perf_counter() - clock
        self.n_tables += 1
        return outcome

    def _made(self, call: SubstituteCall | CaptureCall) -> Iterator[Commit]:
        ids = np.array([example.id for example in call.examples])
        if isinstance(call, SubstituteCall):
            yield from _loss_commits(call, self._random.random((len(call.windows), len(ids))), "exact")
        else:
            states = torch.from_numpy(self._random.standard_normal((LAYERS + 1, len(ids), WIDTH), dtype=np.float32))
            captured = Captured(states, ids, ids, ids)
            yield from self._worker._captured(call, call.captures, captured)

    def close(self) -> None:
        pass


class Backend(LocalBackend):
    """Gives the made-up executor."""

    def open(self, folder: Path, n_calls: int, tell: object = None) -> MadeUp:
        self.executor = MadeUp(folder)
        return self.executor


def config(scratch: Path, cells: int) -> Config:
    """One model on so many data sets of a few records each."""
    data = scratch / "data"
    data.mkdir()
    names = [f"set{n:04d}" for n in range(cells)]
    for n, name in enumerate(names):
        records = ({"question": f"What is {n} + {i}?", "answer": str(n + i)} for i in range(RECORDS))
        (data / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return parse_config(
        {
            "name": "cells",
            "models": [{"name": "tiny", "base": "lab://tiny", "tuned": dict.fromkeys(names, "lab://tiny/sums")}],
            "datasets": [{"name": name, "path": str(data / f"{name}.jsonl"), "format": "gsm8k"} for name in names],
            "studies": {
                "substitution": {"widths": [8], "verify": 0},
                "similarity": {"metrics": ["cosine"]},
                "spectrum": {},
                "correlation": {"resamples": 20},
            },
            "execution": {"chunk": RECORDS, "device": "cpu"},
            "storage": str(scratch / "run"),
        }
    )


@contextmanager
def reads() -> Iterator[Counter[str]]:
    """Count how often each manifest is read."""
    found: Counter[str] = Counter()
    real = chunks.read_bytes

    def counted(place: Any) -> bytes:
        found[str(place)] += 1
        return real(place)

    chunks.read_bytes = counted  # type: ignore[attr-defined]
    try:
        yield found
    finally:
        chunks.read_bytes = real  # type: ignore[attr-defined]


def run(cells: int) -> tuple[float, float, float, Done]:
    """Milliseconds per cell: of the tables in CPU and clock time, of the driver in CPU time."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        scratch, backend = Path(name), Backend()
        planned = config(scratch, cells)
        marks: list[float] = []

        def listen(event: dict[str, Any]) -> None:
            if event["event"] in ("run_started", "run_finished"):
                marks.append(time.process_time())

        started = time.process_time()
        with reads() as found:
            done = drive(planned, backend=backend, listener=listen)
        assert not done.failed
        made = backend.executor
        driver = marks[1] - marks[0] - made.tables - made.models
        plan = (scratch / "run" / "plan.json").stat().st_size
        each = 1e3 / cells
        print(
            f"  {cells} cells, {made.n_tables} tables: per cell {made.tables * each:.1f} ms of CPU time for the tables "
            f"({made.clock * each:.1f} by the clock), {driver * each:.1f} for the driver, {(marks[0] - started) * each:.1f} for planning; "
            f"manifests: {len(found)} read, the most often {max(found.values(), default=0)} times; "
            f"plan.json {plan / cells / 1e3:.1f} kB per cell"
        )
        return made.tables * each, made.clock * each, driver * each, done


def main() -> None:
    few, many = (int(n) for n in sys.argv[1:3]) if len(sys.argv) > 2 else (FEW, MANY)
    print(f"cells of a run; {machine()}")
    run(2)  # warm-up
    first, second = run(few), run(many)
    for what, a, b in zip(("tables, CPU time", "tables, clock", "driver, CPU time"), first, second, strict=False):
        print(f"  {what}: per cell of {many} ÷ of {few}: {b / a:.2f} (limit 1.5)")


if __name__ == "__main__":
    main()
