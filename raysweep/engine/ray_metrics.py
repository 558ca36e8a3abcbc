"""The run's metrics as Ray's own, which its nodes serve to Prometheus.

Ray forgets what is recorded before it is up, so samples wait for that. It serves a gauge for some 20 seconds after it was
last set, and a call may take hours: gauges are set anew every few seconds until the run is over. Counters stay as long as
the node is up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import ray
from ray.util.metrics import Counter, Gauge, Histogram

from raysweep.engine import metrics
from raysweep.engine.disk import space
from raysweep.engine.metrics import Metric
from raysweep.engine.watch import Sample, Watch

if TYPE_CHECKING:
    from raysweep.store.places import Location

_SECONDS = 5.0  # between settings of the same value


class RayMetrics:
    """Listens to the events of a run whose folder is `root`, from when it is made until it is closed."""

    def __init__(self, run: str, root: Location) -> None:
        self._run = run
        self._watch = Watch(run, partial(space, root))
        self._record = {metric: _recorder(metric) for metric in metrics.METRICS}
        self._waiting: list[Sample] = []
        self._gauges: dict[tuple[Metric, tuple[str, ...]], Sample] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="raysweep-metrics", daemon=True)
        self._thread.start()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take one event of the run."""
        self._send(self._watch.take(event))

    def close(self) -> None:
        """Say that the run works no more, however it ended, and stop."""
        self._over.set()
        self._thread.join()
        self._send([Sample(metrics.RUNNING, 0, {"run": self._run})])

    def _keep(self) -> None:
        while not self._over.wait(_SECONDS):
            self._send(self._watch.disk())
            with self._lock:
                self._put(self._gauges.values())

    def _send(self, samples: Iterable[Sample]) -> None:
        with self._lock:
            self._waiting += samples
            if not ray.is_initialized():
                return
            self._put(self._waiting)
            for sample in self._waiting:
                if sample.metric.kind == "gauge":
                    self._gauges[sample.metric, tuple(sample.labels.values())] = sample
            self._waiting.clear()

    def _put(self, samples: Iterable[Sample]) -> None:
        if ray.is_initialized():
            for sample in samples:
                self._record[sample.metric](sample.value, sample.labels)


def _recorder(metric: Metric) -> Callable[[float, dict[str, str]], None]:
    if metric.kind == "counter":
        return Counter(metric.name, metric.help, metric.labels).inc
    if metric.kind == "gauge":
        return Gauge(metric.name, metric.help, metric.labels).set
    return Histogram(metric.name, metric.help, list(metric.buckets), metric.labels).observe
