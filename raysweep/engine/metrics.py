"""The metrics of a run: every name, kind, unit, label and help text, in one table.

What moves in every run is a counter; what may stay at nought for a whole run (failures, evictions) is a gauge, for a Ray
counter is not there before its first value. All are the driver's own: emitting them is ray_metrics.py's, what they are
set to watch.py's, and the dashboards are generated from this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]
Unit = Literal["bool", "bytes", "calls", "layers", "models", "seconds", "share", "tasks", "times", "tokens", "workers"]


@dataclass(frozen=True)
class Metric:
    """One metric. `labels` are its keys; `buckets` are a histogram's upper bounds."""

    name: str
    kind: Kind
    unit: Unit
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()

    @property
    def series(self) -> str:
        """The name under which Prometheus finds it."""
        return f"ray_{self.name}" + {"counter": "_total", "gauge": "", "histogram": "_bucket"}[self.kind]


# How a run stands.
RUNNING = Metric(
    "raysweep_running",
    "gauge",
    "bool",
    ("run",),
    "1 while the driver runs, 0 after the run has ended or was interrupted.",
)
TASKS = Metric(
    "raysweep_tasks", "gauge", "tasks", ("run", "kind", "state"), "Tasks by kind and state: done, failed, left."
)
PROGRESS = Metric(
    "raysweep_progress_share",
    "gauge",
    "share",
    ("run",),
    "Calls ended since the run started, as a share of all calls of this start.",
)
SECONDS_LEFT = Metric(
    "raysweep_seconds_left",
    "gauge",
    "seconds",
    ("run",),
    "Estimated time left: remaining calls times the mean seconds of their kind, divided by the workers.",
)
LAST_PROGRESS = Metric(
    "raysweep_last_progress_timestamp_seconds",
    "gauge",
    "seconds",
    ("run",),
    "Time when the run started, last committed something or last ended a call, in seconds since 1970.",
)
WAITING = Metric("raysweep_waiting_calls", "gauge", "calls", ("run", "kind"), "Calls that no worker has taken yet.")
IN_FLIGHT = Metric(
    "raysweep_calls_in_flight",
    "gauge",
    "calls",
    ("run", "kind"),
    "Calls that workers have taken: running, or next in line.",
)

# What was done.
CALLS = Metric(
    "raysweep_calls",
    "counter",
    "calls",
    ("run", "kind", "outcome"),
    "Ended attempts at calls by outcome: done, retried (failed, will be tried again), failed (no attempts left).",
)
CALL_SECONDS = Metric(
    "raysweep_call_seconds",
    "histogram",
    "seconds",
    ("run", "kind"),
    "Seconds that a call took on its worker.",
    (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0),
)
BUSY = Metric(
    "raysweep_busy_seconds",
    "counter",
    "seconds",
    ("run", "kind", "worker"),
    "Seconds that workers spent in successful calls, added when each call ends.",
)
LOADING = Metric(
    "raysweep_load_seconds",
    "gauge",
    "seconds",
    ("run",),
    "Seconds spent loading models since the start, as reported by calls.",
)
TOKENS = Metric(
    "raysweep_tokens",
    "counter",
    "tokens",
    ("run", "kind"),
    "Tokens of the examples that models were run on, without padding and without repeats for further windows.",
)
APPLICATIONS = Metric(
    "raysweep_layer_applications",
    "counter",
    "layers",
    ("run", "kind"),
    "Layer applications as the plan counts them: one decoder layer on one batch (for a capture, once a call).",
)
TOKEN_APPLICATIONS = Metric(
    "raysweep_token_applications",
    "counter",
    "tokens",
    ("run", "kind"),
    "Tokens passed through decoder layers by sweeps and estimates, counted once for each layer applied.",
)

# What was moved.
READ = Metric("raysweep_read_bytes", "counter", "bytes", ("run",), "Bytes of checkpoints read.")
WRITTEN = Metric(
    "raysweep_written_bytes",
    "counter",
    "bytes",
    ("run", "what"),
    "Bytes written: results, activations, and spill (states of a streamed sweep that are kept on disk).",
)
LOADS = Metric("raysweep_loads", "gauge", "models", ("run",), "Checkpoints loaded by workers since the start.")
EVICTIONS = Metric(
    "raysweep_evictions",
    "gauge",
    "models",
    ("run",),
    "Checkpoints that workers released to make room for another, since the start.",
)

# What went wrong.
FAILED_ATTEMPTS = Metric(
    "raysweep_failed_attempts",
    "gauge",
    "times",
    ("run", "cause"),
    "Failed attempts at calls since the start, by cause: raised (an exception), lost (the worker died), refused (by "
    "raysweep's own checks; not tried again). Lost counts workers that died.",
)

# The machines.
WORKERS = Metric("raysweep_workers", "gauge", "workers", ("run",), "Workers that run models.")
HELD = Metric(
    "raysweep_worker_held_bytes",
    "gauge",
    "bytes",
    ("run", "worker"),
    "Memory that a worker held after its latest call: its tensors on the GPU; on a CPU, the process's own memory.",
)
PEAK = Metric(
    "raysweep_worker_peak_bytes",
    "gauge",
    "bytes",
    ("run", "worker"),
    "The most memory that a worker held during its latest call, measured in the same way.",
)
DISK_FREE = Metric(
    "raysweep_disk_free_bytes", "gauge", "bytes", ("run",), "Bytes free on the file system of the run folder."
)
DISK = Metric("raysweep_disk_bytes", "gauge", "bytes", ("run",), "Size of the file system of the run folder in bytes.")

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
