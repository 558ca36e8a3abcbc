"""What the driver itself costs: seconds a chunk over 2,000 chunks that compute nothing, without and with the metrics that a run on
Ray emits, and memory a finished chunk over 10,000.

Everything but the computation is real: records are read, worded and cut into chunks of one, the graph is planned, every
outcome is committed (Parquet, manifest, both flushed to the disk) and logged. The clock runs from the first call to the
last; the limit printed is what the four flushes of a commit take on this disk by themselves. Memory is what tracemalloc
counts as allocated, at the end less at the first call.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import tracemalloc
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from common import machine

from raysweep.config import Config, parse_config
from raysweep.engine.calls import Call, Commit, Outcome, SubstituteCall, commit_name
from raysweep.engine.dispatch import Slot
from raysweep.engine.driver import drive
from raysweep.engine.events import Listener
from raysweep.engine.executor import LocalBackend
from raysweep.store.artifacts import publish_bytes

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from s3_server import CREDENTIALS, serve

SETS = {"sums": "gsm8k", "facts": "boolq", "orders": "dolly"}


class NoWork:
    """Gives a table of the right size for every call, as eight workers with two calls in flight would.

    With `together`, the outcomes of all calls in flight come at once, as they do when workers are faster than the driver.
    """

    slots = (Slot(depth=2),) * 8
    about: Mapping[str, Any] = {"executor": "none", "workers": 8}

    def __init__(self, together: bool = False) -> None:
        self.calls: deque[Call] = deque()
        self.together = together
        self.seconds = time.perf_counter()
        self.memory = tracemalloc.get_traced_memory()[0]

    def submit(self, index: int, call: Call) -> None:
        self.calls.append(call)

    def collect(self) -> list[Outcome]:
        return [self.outcome(self.calls.popleft()) for _ in range(len(self.calls) if self.together else 1)]

    def outcome(self, call: Call) -> Outcome:
        assert isinstance(call, SubstituteCall)
        n = len(call.keys)
        table = pa.table({"part": list(call.keys), "loss": np.zeros(n), "example_id": np.zeros(n, dtype=np.int64)})
        commit = Commit(commit_name("substitute", call.model, call.dataset, call.keys), call.keys, table)
        measured = {"seconds": 0.1, "tokens": 9, "layer_applications": 9, "token_applications": 9, "bytes_read": 9}
        return Outcome(call, (commit,), measured)

    def close(self) -> None:
        self.seconds = time.perf_counter() - self.seconds
        self.memory = tracemalloc.get_traced_memory()[0] - self.memory


class Backend(LocalBackend):
    """`metrics`: with a listener such as Ray's backend has, and its clock in `seconds`."""

    def __init__(self, metrics: bool, together: bool) -> None:
        self.metrics, self.together, self.seconds = metrics, together, 0.0

    def listener(self, run: str, root: Path) -> Listener | None:
        if not self.metrics:
            return None
        from raysweep.engine.ray_metrics import RayMetrics

        self.emitter = RayMetrics(run, root)

        def timed(event: dict[str, Any]) -> None:
            started = time.perf_counter()
            self.emitter(event)
            self.seconds += time.perf_counter() - started

        return timed

    def close(self) -> None:
        if self.metrics:
            self.emitter.close()

    def open(self, folder: Path, n_calls: int, tell: object = None) -> NoWork:
        self.executor = NoWork(self.together)
        return self.executor


def config(storage: str, chunks: int, options: Mapping[str, Any] = {}) -> Config:
    """So many chunks of one record, four windows each."""
    sets, left = {}, chunks
    for name in SETS:
        if left:
            sets[name] = min(left, 4000)
            left -= sets[name]
    return parse_config(
        {
            "name": "cost",
            "models": [{"name": "tiny", "base": "lab://tiny", "tuned": {name: f"lab://tiny/{name}" for name in sets}}],
            "datasets": [
                {"name": name, "path": f"lab://{name}/train", "format": SETS[name], "limit": limit}
                for name, limit in sets.items()
            ],
            "studies": {"substitution": {"widths": [23]}},
            "execution": {"chunk": 1, "device": "cpu"},
            "storage": storage,
            "storage_options": options,
        }
    )


def flushes(folder: Path, n: int) -> float:
    """Seconds that two small published files take, each flushed with its folder."""
    started = time.perf_counter()
    for i in range(n):
        for kind in ("parquet", "json"):
            publish_bytes(folder / f"{i}.{kind}", b"x" * 2000)
    return (time.perf_counter() - started) / n


def run(chunks: int, *, metrics: bool = False, together: bool = False) -> tuple[NoWork, float, float]:
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as scratch:
        backend = Backend(metrics, together)
        done = drive(config(f"{scratch}/run", chunks), backend=backend)
        assert done.n_calls == chunks
        return backend.executor, flushes(Path(scratch), 200), backend.seconds


def on_s3(chunks: int, together: bool) -> float:
    """Commits per second on the S3 server of the tests, which runs on this machine."""
    os.environ |= CREDENTIALS
    with serve() as s3:
        backend = Backend(False, together)
        done = drive(config(s3.url("run"), chunks, {"endpoint_url": s3.endpoint}), backend=backend)
    assert done.n_calls == chunks
    return chunks / backend.executor.seconds


def main() -> None:
    print(f"the driver's own cost; {machine()}")
    for together in (False, True):
        how = "16 calls end at once" if together else "one call after the other"
        executor, floor, _ = run(2000, together=together)
        each = executor.seconds / 2000
        print(
            f"  {how}: {each * 1e3:.2f} ms a chunk over 2,000, {1 / each:.0f} commits a second (limit 200 if they end at once); "
            f"flushing the files of one commit by themselves: {floor * 1e3:.2f} ms"
        )
        print(
            f"    the same on an S3 server, over 300: {on_s3(300, together):.0f} commits a second (limit 50 if at once)"
        )
    if "--only-commits" in sys.argv:
        return
    import ray

    ray.init(address="local", num_cpus=1, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    executor, _, emitting = run(2000, metrics=True)
    ray.shutdown()
    each = executor.seconds / 2000
    print(
        f"  with metrics, one after the other: {each * 1e3:.2f} ms a chunk, of which emitting them {emitting / 2000 * 1e3:.2f} ms"
    )
    tracemalloc.start()
    executor, _, _ = run(10_000)
    print(f"  memory a finished chunk over 10,000: {executor.memory / 10_000:.0f} bytes (limit 2,000)")


if __name__ == "__main__":
    main()
