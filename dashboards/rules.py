"""Recording and alert rules, and how Prometheus finds Ray's nodes."""

from __future__ import annotations

from typing import Any

from raysweep.engine import metrics as m
from raysweep.engine.metrics import Metric

Rule = dict[str, Any]

SINCE = "run:raysweep_since_progress:seconds"
MEAN = "run:raysweep_call_seconds:mean"
FREE = "run:raysweep_disk_free:share"
FAILED = "run:raysweep_failed_tasks:max1h"
LOST = "run:raysweep_lost_workers:increase15m"

STUCK_SECONDS, STUCK_CALLS = 1800, 5
CHURN = 3
NEARLY_FULL = 0.05


def _record(name: str, expression: str) -> Rule:
    return {"record": name, "expr": expression}


def _rate(metric: Metric) -> str:
    return f"sum by (run) (rate({metric.series}[5m]))"


def _alert(name: str, expression: str, summary: str, description: str, *, wait: str, severity: str = "warning") -> Rule:
    return {
        "alert": name,
        "expr": expression,
        "for": wait,
        "labels": {"severity": severity},
        "annotations": {"summary": summary, "description": description},
    }


RECORDING: tuple[Rule, ...] = (
    _record("run:raysweep_tokens:rate5m", _rate(m.TOKENS)),
    _record("run:raysweep_layer_applications:rate5m", _rate(m.APPLICATIONS)),
    _record("run:raysweep_token_applications:rate5m", _rate(m.TOKEN_APPLICATIONS)),
    _record("run:raysweep_busy:share5m", f"{_rate(m.BUSY)} / max by (run) ({m.WORKERS.series})"),
    _record(MEAN, f'sum by (run) ({m.BUSY.series}) / sum by (run) ({m.CALLS.series}{{outcome="done"}})'),
    _record(
        SINCE,
        f"(time() - max by (run) ({m.LAST_PROGRESS.series})) and on (run) (max by (run) ({m.RUNNING.series}) == 1)",
    ),
    _record(FREE, f"min by (run) ({m.DISK_FREE.series} / {m.DISK.series})"),
    # An hour is looked back, for a run's gauges are gone soon after its end.
    _record(FAILED, f'sum by (run) (max by (run, kind) (max_over_time({m.TASKS.series}{{state="failed"}}[1h])))'),
    _record(
        LOST,
        f'max by (run) (max_over_time({m.FAILED_ATTEMPTS.series}{{cause="lost"}}[15m]) '
        f'- min_over_time({m.FAILED_ATTEMPTS.series}{{cause="lost"}}[15m]))',
    ),
)

ALERTS: tuple[Rule, ...] = (
    _alert(
        "RaysweepNoProgress",
        f"{SINCE} > {STUCK_SECONDS} unless on (run) {SINCE} < {STUCK_CALLS} * {MEAN}",
        "Run {{ $labels.run }} makes no progress",
        "Nothing was committed and no call has ended for {{ $value | humanizeDuration }}, which is more than "
        f"{STUCK_CALLS} calls take. Check what the workers do (Ray's dashboard, Actors, stack trace), and whether Ray "
        "still has room for them.",
        wait="1m",
    ),
    _alert(
        "RaysweepWorkerChurn",
        f"{LOST} >= {CHURN}",
        "Workers of run {{ $labels.run }} keep dying",
        "{{ $value }} workers died within 15 minutes. Out of memory is the usual cause: lower execution.batch_tokens, or "
        "give each worker more; events.jsonl names the calls.",
        wait="0m",
    ),
    _alert(
        "RaysweepDiskNearlyFull",
        f"{FREE} < {NEARLY_FULL}",
        "The disk of run {{ $labels.run }} is nearly full",
        "{{ $value | humanizePercentage }} is free. A full disk ends the run; what is committed is kept.",
        wait="1m",
        severity="critical",
    ),
    _alert(
        "RaysweepTasksFailed",
        f"{FAILED} > 0",
        "Tasks of run {{ $labels.run }} failed",
        "{{ $value }} tasks failed within the last hour; the others continue. `raysweep status` names them, "
        "events.jsonl has the tracebacks.",
        wait="0m",
    ),
)


def groups(name: str, rules: tuple[Rule, ...]) -> dict[str, Any]:
    """A rule file's content."""
    return {"groups": [{"name": name, "rules": list(rules)}]}


PROMETHEUS: dict[str, Any] = {
    "global": {"scrape_interval": "10s", "evaluation_interval": "10s"},
    "rule_files": ["recording.yml", "alerts.yml"],
    "scrape_configs": [
        {
            "job_name": "ray",
            "file_sd_configs": [{"files": ["/tmp/ray/prom_metrics_service_discovery.json"], "refresh_interval": "10s"}],
        }
    ],
}
