"""What the dashboard shows: panels with their queries, made from the constants that name the metrics.

`$run` and `$window` are the dashboard's variables. Of a gauge the greatest is taken: for some seconds after a run was
started again, the series of both drivers are there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raysweep.engine import metrics as m
from raysweep.engine.metrics import Metric


@dataclass(frozen=True)
class Panel:
    """A panel: `queries` has (PromQL, legend) pairs; `unit` is Grafana's word; width and height are in its grid of 24."""

    title: str
    kind: Literal["stat", "timeseries", "heatmap", "bargauge"]
    unit: str
    description: str
    queries: tuple[tuple[str, str], ...]
    width: int = 8
    height: int = 8
    stacked: bool = False


def of_run(metric: Metric, *more: str) -> str:
    """The chosen run's series of a metric, as PromQL."""
    return metric.series + "{" + ", ".join(('run=~"$run"', *more)) + "}"


def latest(metric: Metric, *by: str, where: tuple[str, ...] = ()) -> str:
    """A gauge's value for each run and each label in `by`."""
    return f"max by ({', '.join(('run', *by))}) ({of_run(metric, *where)})"


def rate(metric: Metric, *by: str) -> str:
    """How fast a counter grows, a second, for each run and each label in `by`."""
    return f"sum by ({', '.join(('run', *by))}) (rate({of_run(metric)}[$window]))"


def quantile(share: float, metric: Metric, *by: str) -> str:
    """A quantile of a histogram over the window."""
    return f"histogram_quantile({share:g}, {rate(metric, *by, 'le')})"


def stat(title: str, unit: str, description: str, query: str) -> Panel:
    """One number a run."""
    return Panel(title, "stat", unit, description, ((query, "{{run}}"),), 4, 4)


BUSY_SHARE = f"{rate(m.BUSY)} / {latest(m.WORKERS)}"
FREE_SHARE = f"{latest(m.DISK_FREE)} / {latest(m.DISK)}"
FAILED_TASKS = latest(m.TASKS, "kind", where=('state="failed"',))
FAILED = f"sum by (run) ({FAILED_TASKS})"
SINCE = f"time() - {latest(m.LAST_PROGRESS)}"

ROWS: dict[str, tuple[Panel, ...]] = {
    "Run status": (
        stat("Progress", "percentunit", m.PROGRESS.help, latest(m.PROGRESS)),
        stat("Time left", "s", m.SECONDS_LEFT.help, latest(m.SECONDS_LEFT)),
        stat("Since the last progress", "s", "Seconds since something was committed or a call ended.", SINCE),
        stat("Tasks failed", "short", "Tasks without attempts left, and tasks that depend on them.", FAILED),
        stat("Workers", "short", m.WORKERS.help, latest(m.WORKERS)),
        stat("Working", "bool_yes_no", m.RUNNING.help, latest(m.RUNNING)),
        Panel(
            "Tasks by state",
            "timeseries",
            "short",
            "A task is one window of one pair on one data set, or the tables of one model on one data set.",
            ((f"sum by (run, state) ({latest(m.TASKS, 'kind', 'state')})", "{{run}} {{state}}"),),
            stacked=True,
        ),
        Panel(
            "Tasks left by kind",
            "bargauge",
            "short",
            "Remaining tasks, by study.",
            ((latest(m.TASKS, "kind", where=('state="left"',)), "{{run}} {{kind}}"),),
        ),
        Panel(
            "Queue",
            "timeseries",
            "short",
            f"Waiting: {m.WAITING.help} In flight: {m.IN_FLIGHT.help}",
            (
                (latest(m.WAITING, "kind"), "{{run}} {{kind}} waiting"),
                (latest(m.IN_FLIGHT, "kind"), "{{run}} {{kind}} in flight"),
            ),
        ),
    ),
    "Throughput": (
        Panel("Tokens", "timeseries", "si:tokens/s", m.TOKENS.help, ((rate(m.TOKENS, "kind"), "{{run}} {{kind}}"),)),
        Panel(
            "Layer applications",
            "timeseries",
            "si:layers/s",
            m.APPLICATIONS.help,
            ((rate(m.APPLICATIONS, "kind"), "{{run}} {{kind}}"),),
        ),
        Panel(
            "Tokens through layers",
            "timeseries",
            "si:tokens/s",
            m.TOKEN_APPLICATIONS.help + " Independent of the batch size, so use it to compare machines.",
            ((rate(m.TOKEN_APPLICATIONS, "kind"), "{{run}} {{kind}}"),),
        ),
        Panel(
            "Seconds per call",
            "timeseries",
            "s",
            "Median and 95th percentile over the window, as precise as the histogram's buckets.",
            (
                (quantile(0.5, m.CALL_SECONDS, "kind"), "{{run}} {{kind}} median"),
                (quantile(0.95, m.CALL_SECONDS, "kind"), "{{run}} {{kind}} 95 %"),
            ),
        ),
        Panel(
            "Calls by seconds",
            "heatmap",
            "s",
            "How many calls ended in the window, by the seconds they took.",
            ((f"sum by (le) (increase({of_run(m.CALL_SECONDS)}[$window]))", "{{le}}"),),
        ),
        Panel(
            "Workers busy",
            "timeseries",
            "percentunit",
            "Seconds spent in calls per second, divided by the workers. A call's seconds are added when it ends: choose a window of several calls.",
            ((BUSY_SHARE, "{{run}}"),),
        ),
    ),
    "Bytes and models": (
        Panel("Read", "timeseries", "Bps", m.READ.help, ((rate(m.READ), "{{run}}"),)),
        Panel("Written", "timeseries", "Bps", m.WRITTEN.help, ((rate(m.WRITTEN, "what"), "{{run}} {{what}}"),)),
        Panel(
            "Models loaded and released",
            "timeseries",
            "short",
            "Checkpoints loaded, and released to make room, since the start. If they are many for few pairs, workers switch pairs too often.",
            ((latest(m.LOADS), "{{run}} loaded"), (latest(m.EVICTIONS), "{{run}} released")),
        ),
        Panel("Time spent loading", "timeseries", "s", m.LOADING.help, ((latest(m.LOADING), "{{run}}"),)),
        Panel(
            "Free on the run folder's disk",
            "timeseries",
            "bytes",
            "Free bytes and size of the run folder's file system.",
            ((latest(m.DISK_FREE), "{{run}} free"), (latest(m.DISK), "{{run}} total")),
        ),
        Panel(
            "Free share of the disk",
            "timeseries",
            "percentunit",
            "An alert fires below 5 %.",
            ((FREE_SHARE, "{{run}}"),),
        ),
    ),
    "Failures and machines": (
        Panel(
            "Ended attempts",
            "timeseries",
            "short",
            m.CALLS.help,
            ((f"sum by (run, outcome) ({of_run(m.CALLS)})", "{{run}} {{outcome}}"),),
        ),
        Panel(
            "Failed attempts by cause",
            "timeseries",
            "short",
            m.FAILED_ATTEMPTS.help,
            ((latest(m.FAILED_ATTEMPTS, "cause"), "{{run}} {{cause}}"),),
        ),
        Panel("Workers over time", "timeseries", "short", m.WORKERS.help, ((latest(m.WORKERS), "{{run}}"),)),
        Panel(
            "Memory held by each worker",
            "timeseries",
            "bytes",
            m.HELD.help,
            ((latest(m.HELD, "worker"), "{{run}} {{worker}}"),),
            12,
        ),
        Panel(
            "Peak memory of each worker",
            "timeseries",
            "bytes",
            m.PEAK.help,
            ((latest(m.PEAK, "worker"), "{{run}} {{worker}}"),),
            12,
        ),
    ),
}

# Metrics on no panel, each with the reason.
LEFT_OUT: dict[Metric, str] = {}
