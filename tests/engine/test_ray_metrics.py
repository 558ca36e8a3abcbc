"""A real Prometheus beside a real run on Ray: every panel's query has data, every metric arrives, and the counts are right.

Two workers do three pairs of the laboratory's, so that checkpoints are let go; one worker is killed on the way.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections import Counter, defaultdict
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from ray_cluster import free_port, head

from raysweep.config import parse_config
from raysweep.engine import events, metrics
from raysweep.engine.driver import drive
from raysweep.engine.events import read_events

sys.path.insert(0, str(Path(__file__).parents[1] / "dashboards"))
from queries import FOLDER, queries

pytestmark = pytest.mark.prometheus

SECONDS = 60.0  # that what was sent may take to arrive
SETS = {"facts": "boolq", "sums": "gsm8k", "quiz": "openbookqa"}


def watched_run(storage, address):
    return parse_config(
        {
            "name": "watched",
            "models": [{"name": "tiny", "base": "lab://tiny", "tuned": {s: f"lab://tiny/{s}" for s in SETS}}],
            "datasets": [
                {"name": name, "path": f"lab://{name}/test", "format": form, "limit": 16} for name, form in SETS.items()
            ],
            "studies": {"substitution": {"widths": [8]}, "similarity": {}, "correlation": {"resamples": 20}},
            "execution": {"chunk": 4, "device": "cpu", "workers": 2, "executor": "ray", "address": address},
            "storage": str(storage),
        }
    )


class Prometheus:
    """A server of its own, with the repository's configuration: only the file, the pace and the rules' place are others."""

    def __init__(self, port):
        self._port = port

    def ask(self, query):
        """The samples of a query: a list of (labels, value), without what is no number."""
        url = f"http://127.0.0.1:{self._port}/api/v1/query?" + urllib.parse.urlencode({"query": query})
        with urllib.request.urlopen(url, timeout=10) as answer:
            found = json.load(answer)["data"]["result"]
        values = [(sample["metric"], float(sample["value"][1])) for sample in found]
        return [(labels, value) for labels, value in values if not math.isnan(value)]

    def until(self, query, is_right, end=None):
        """The answer once it is right, or the last one there was time for."""
        end = end or time.monotonic() + SECONDS
        while not is_right(found := self.ask(query)) and time.monotonic() < end:
            time.sleep(0.5)
        return found


@contextmanager
def prometheus(folder, discovery):
    server = shutil.which("prometheus")
    assert server, "this test needs prometheus on the PATH (Debian's package prometheus)"
    settings = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    settings["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    settings["rule_files"] = [str(FOLDER / name) for name in settings["rule_files"]]
    (job,) = settings["scrape_configs"]
    job["file_sd_configs"] = [{"files": [str(discovery)], "refresh_interval": "1s"}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    port = free_port()
    command = [server, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    try:
        yield Prometheus(port)
    finally:
        process.terminate()
        process.wait()


class Watcher:
    """Kills the first worker when two calls have ended, and asks Prometheus every panel's query before the run is over."""

    def __init__(self, server):
        self.server, self.answers, self.names, self.rules, self.ended = server, [], set(), {}, 0

    def __call__(self, event):
        if event["event"] == events.WORKERS_READY:
            self.first = event["seen"][0]["pid"]
        self.ended += event["event"] == events.CALL_DONE
        if event["event"] == events.CALL_DONE and self.ended == 2:
            os.kill(self.first, signal.SIGKILL)
        if event["event"] == events.RUN_FINISHED:
            end = time.monotonic() + SECONDS  # of all together
            self.answers = [(title, query, self.server.until(query, bool, end)) for title, query in queries()]
            self.names = {labels["__name__"] for labels, _ in self.server.ask('{__name__=~"ray_raysweep_.*"}')}
            rules = yaml.safe_load((FOLDER / "recording.yml").read_text())["groups"][0]["rules"]
            self.rules = {rule["record"]: self.server.until(rule["record"], bool, end) for rule in rules}


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A run that was watched: what the watcher saw, its events, and the server, still up."""
    folder = tmp_path_factory.mktemp("watched")
    nodes = folder / "nodes.json"
    with head(cpus=2, gpus=0, watched=nodes) as address, prometheus(folder, nodes) as server:
        watcher = Watcher(server)
        done = drive(watched_run(folder / "run", address), listener=watcher)
        assert done.failed == {}
        yield watcher, list(read_events(done.folder.events)), server


def test_every_panels_query_returns_data_during_the_run(watched):
    watcher, _, _ = watched
    assert len(watcher.answers) == len(queries())
    assert [(title, query) for title, query, found in watcher.answers if not found] == []
    assert [name for name, found in watcher.rules.items() if not found] == []


def test_every_metric_arrives_and_no_other(watched):
    watcher, _, _ = watched
    ends = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_count", "_sum"]}
    assert watcher.names == {f"ray_{m.name}{end}" for m in metrics.METRICS for end in ends[m.kind]}


def test_the_injected_failure_is_seen(watched):
    watcher, _, _ = watched
    by_title = defaultdict(list)
    for title, _, found in watcher.answers:
        by_title[title] += found
    causes = {labels["cause"]: value for labels, value in by_title["Failed attempts by cause"]}
    assert causes == {"lost": 1, "raised": 0, "refused": 0}
    outcomes = {labels["outcome"]: value for labels, value in by_title["Ended attempts"]}
    assert outcomes["retried"] == 1
    assert [value for _, value in by_title["Tasks failed"]] == [0]


def test_what_arrives_is_what_the_events_say(watched):
    _, log, server = watched
    done = [event for event in log if event["event"] == events.CALL_DONE]
    told = [event["measured"] for event in done]
    exact = {
        'sum(ray_raysweep_calls_total{outcome="done"})': len(done),
        "sum(ray_raysweep_call_seconds_count)": len(done),
        "sum(ray_raysweep_tokens_total)": sum(m.get("tokens", 0) for m in told),
        "sum(ray_raysweep_layer_applications_total)": sum(m.get("layer_applications", 0) for m in told),
        "sum(ray_raysweep_read_bytes_total)": sum(m["bytes_read"] for m in told),
        'sum(ray_raysweep_written_bytes_total{what="results"})': sum(
            event["bytes"]["results"] for event in log if event["event"] == events.CHUNK_COMMITTED
        ),
    }
    for query, value in exact.items():
        found = server.until(f"last_over_time({query}[5m:1s])", lambda at, value=value: [v for _, v in at] == [value])
        assert [v for _, v in found] == [value], query
    busy = server.ask("sum(ray_raysweep_busy_seconds_total)")[0][1]
    assert busy == pytest.approx(sum(m["seconds"] for m in told))


def test_once_it_has_ended_it_says_so_and_no_alert_is_left(watched):
    _, log, server = watched
    found = server.until("last_over_time(ray_raysweep_running[5m])", lambda at: [v for _, v in at] == [0])
    assert [value for _, value in found] == [0]
    tasks = server.ask('sum by (state) (last_over_time(ray_raysweep_tasks{run="watched"}[5m]))')
    n = Counter(event["event"] for event in log)[events.TASK_DONE]
    assert {labels["state"]: value for labels, value in tasks} == {"done": n, "failed": 0, "left": 0}
    fired = {labels["alertname"] for labels, _ in server.ask('ALERTS{alertstate="firing"}')}
    assert fired <= {"RaysweepDiskNearlyFull"}, "which is up to the machine"
