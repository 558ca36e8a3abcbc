"""The run's metrics as Ray's own, which its nodes serve to Prometheus.

Ray forgets what is recorded before it is up, so samples wait for that. Its gauges are served until the driver leaves, and
its counters as long as the node is up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.util.metrics import Counter, Gauge, Histogram

from raysweep.engine import metrics
from raysweep.engine.disk import space
from raysweep.engine.metrics import Metric
from raysweep.engine.watch import Sample, Watch


class RayMetrics:
    """Listens to the events of a run whose folder is `root`."""

    def __init__(self, run: str, root: Path) -> None:
        self._run = run
        self._watch = Watch(run, partial(space, root))
        self._record = {metric: _recorder(metric) for metric in metrics.METRICS}
        self._waiting: list[Sample] = []

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take one event of the run."""
        self._waiting += self._watch.take(event)
        self._send()

    def close(self) -> None:
        """Say that the run works no more, however it ended."""
        self._waiting.append(Sample(metrics.RUNNING, 0, {"run": self._run}))
        self._send()

    def _send(self) -> None:
        if ray.is_initialized():
            for sample in self._waiting:
                self._record[sample.metric](sample.value, sample.labels)
            self._waiting.clear()


def _recorder(metric: Metric) -> Callable[[float, dict[str, str]], None]:
    if metric.kind == "counter":
        return Counter(metric.name, metric.help, metric.labels).inc
    if metric.kind == "gauge":
        return Gauge(metric.name, metric.help, metric.labels).set
    return Histogram(metric.name, metric.help, list(metric.buckets), metric.labels).observe
