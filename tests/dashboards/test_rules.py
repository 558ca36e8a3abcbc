"""Prometheus's own tool reads the rules and every panel's query, and each alert fires when it should and not else."""

from __future__ import annotations

import shutil
import subprocess

import pytest
import yaml
from queries import FOLDER, queries

pytestmark = pytest.mark.prometheus

RUN = "{run='tiny'}"
FILES = ("recording.yml", "alerts.yml")


def promtool(*arguments, where=FOLDER):
    tool = shutil.which("promtool")
    assert tool, "these tests need promtool on the PATH (Debian's package prometheus)"
    done = subprocess.run([tool, *arguments], cwd=where, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def test_configuration_and_rules_are_sound():
    code, said = promtool("check", "config", "prometheus.yml")
    assert code == 0, said
    assert "2 rule files found" in said
    code, said = promtool("check", "rules", *FILES)
    assert code == 0, said


def rule_file(path, expressions):
    rules = [{"record": f"panel:{number}", "expr": expression} for number, expression in enumerate(expressions)]
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    return promtool("check", "rules", path.name, where=path.parent)


def test_every_panels_query_is_sound(tmp_path):
    asked = [query for _, query in queries()]
    code, said = rule_file(tmp_path / "panels.yml", asked)
    assert code == 0, said
    assert f"{len(asked)} rules found" in said


def test_the_check_sees_a_query_that_is_not(tmp_path):
    code, said = rule_file(tmp_path / "panels.yml", ["sum by (run (up)"])
    assert code != 0
    assert "parse error" in said


# --- alerts -------------------------------------------------------------------------------------------------------


def fired(tmp_path, alert, series, at):
    """Whether promtool finds that the alert fires for run `tiny` at this time, given series a minute apart."""
    asked = f'count by (run) (ALERTS{{alertname="{alert}", alertstate="firing"}})'
    answers = []
    for samples in ([], [{"labels": '{run="tiny"}', "value": 1}]):
        rules = {
            "rule_files": [str(FOLDER / name) for name in FILES],
            "evaluation_interval": "1m",
            "tests": [
                {
                    "interval": "1m",
                    "input_series": [{"series": name, "values": values} for name, values in series.items()],
                    "promql_expr_test": [{"expr": asked, "eval_time": at, "exp_samples": samples}],
                }
            ],
        }
        (tmp_path / "test.yml").write_text(yaml.safe_dump(rules))
        answers.append(promtool("test", "rules", "test.yml", where=tmp_path))
    (quiet, _), (loud, _) = answers
    assert (quiet == 0) != (loud == 0), answers
    return loud == 0


def progress(at, running="1x120", **calls):
    """A run whose last progress was `at` seconds after the beginning, and what it did before."""
    return {
        f"ray_raysweep_last_progress_timestamp_seconds{RUN}": f"{at}x120",
        f"ray_raysweep_running{RUN}": running,
        **calls,
    }


def mean_seconds(seconds):
    return {
        "ray_raysweep_busy_seconds_total{run='tiny', kind='substitute', worker='0'}": f"{seconds * 10}x120",
        "ray_raysweep_calls_total{run='tiny', kind='substitute', outcome='done'}": "10x120",
    }


@pytest.mark.parametrize(
    ("series", "at", "expected"),
    [
        (progress(60), "29m", False),
        (progress(60), "35m", True),
        (progress(60, **mean_seconds(10)), "35m", True),
        (progress(60, **mean_seconds(600)), "35m", False),
        (progress(60, **mean_seconds(600)), "55m", True),
        (progress(60, running="1x10 0x110"), "35m", False),
    ],
    ids=[
        "not yet",
        "no call has ended",
        "calls are short",
        "calls take long",
        "longer than five calls",
        "it has ended",
    ],
)
def test_no_progress(tmp_path, series, at, expected):
    assert fired(tmp_path, "RaysweepNoProgress", series, at) is expected


@pytest.mark.parametrize(
    ("lost", "at", "expected"),
    [
        ("0x60", "30m", False),
        ("0x9 1x9 2x40", "30m", False),
        ("0x9 1x2 2x2 3x40", "18m", True),
        ("0x9 1x2 2x2 3x40", "40m", False),
    ],
    ids=["none", "two", "three within a quarter of an hour", "three long ago"],
)
def test_worker_churn(tmp_path, lost, at, expected):
    series = {
        "ray_raysweep_failed_attempts{run='tiny', cause='lost'}": lost,
        "ray_raysweep_failed_attempts{run='tiny', cause='raised'}": "0x5 9x60",
    }
    assert fired(tmp_path, "RaysweepWorkerChurn", series, at) is expected


@pytest.mark.parametrize(("free", "expected"), [("60x30", False), ("60x9 49x30", True), ("60x9 49x1 60x30", False)])
def test_disk_nearly_full(tmp_path, free, expected):
    series = {f"ray_raysweep_disk_free_bytes{RUN}": free, f"ray_raysweep_disk_bytes{RUN}": "1000x60"}
    assert fired(tmp_path, "RaysweepDiskNearlyFull", series, "15m") is expected


@pytest.mark.parametrize(
    ("failed", "at", "expected"),
    [
        ("0x60", "10m", False),
        ("0x5 2x60", "10m", True),
        ("0x5 2x2 stale", "20m", True),
        ("0x5 2x2 stale", "90m", False),
    ],
    ids=["none", "two", "the run has ended since", "long ago"],
)
def test_tasks_failed(tmp_path, failed, at, expected):
    series = {
        "ray_raysweep_tasks{run='tiny', kind='substitute', state='failed'}": failed,
        "ray_raysweep_tasks{run='tiny', kind='substitute', state='left'}": "7x60",
    }
    assert fired(tmp_path, "RaysweepTasksFailed", series, at) is expected
