"""Real kills on a real Ray: SIGKILL to a worker, to a raylet or to the driver, at random moments, and run again at most once.

Here one run takes all three, one after the other; RAYSWEEP_KILLS=20 (`make soak`) is as many runs with one fault each, a driver
that gets SIGTERM, one that is stopped until another has taken over, and a worker that is stopped among them. They run on
a cluster of two nodes, with the whole run folder on an S3 server. SIGTERM, and a raylet that takes the driver's only node with
it, are on a Ray that the run starts.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import time
from collections import Counter

import pytest
from command_line import started
from history import violations
from ray_cluster import head_node, node, raylet_below, workers_below
from s3_server import CREDENTIALS

from raysweep import api
from raysweep.config import parse_config
from raysweep.engine.driver import drive
from raysweep.engine.events import read_events
from raysweep.engine.folder import RunFolder
from raysweep.report.tables import collect_tables
from raysweep.store.places import listing, location, read_bytes

VICTIMS = ("worker", "raylet", "driver")
FAULTS = ("terminated driver", "paused driver", *VICTIMS, "paused worker")
ROUNDS = [(FAULTS[number % 6],) for number in range(int(os.environ.get("RAYSWEEP_KILLS", "0")))] or [VICTIMS]
STALE = 6.0  # seconds until the lock of a driver that is not heard of is taken over
SIGNALS = {
    "terminated driver": signal.SIGTERM,
    "paused driver": signal.SIGSTOP,
    "paused worker": signal.SIGSTOP,
}
ENDS = {  # of the driver: exit code, and what it says
    "driver": (-signal.SIGKILL, ""),
    "terminated driver": (143, "ended by SIGTERM; committed work is kept; resume with: raysweep run "),
    "paused driver": (1, "another raysweep has taken over the run folder"),
}
SEED = 23
SETTINGS = {
    "name": "kill",
    "models": [
        {"name": "tiny", "base": "lab://tiny", "tuned": {"facts": "lab://tiny/facts", "sums": "lab://tiny/sums"}}
    ],
    "datasets": [
        {"name": "facts", "path": "lab://facts/test", "format": "boolq", "limit": 12},
        {"name": "sums", "path": "lab://sums/test", "format": "gsm8k", "limit": 8},
    ],
    "studies": {"substitution": {"widths": [12]}, "similarity": {}, "correlation": {"resamples": 20}},
    "execution": {"chunk": 4, "device": "cpu"},
}


def laboratory(storage, executor, *overrides):
    values = {**SETTINGS, "storage": str(storage)}
    workers = ["execution.workers=2"] if executor == "ray" else []
    return parse_config(values, overrides=[f"execution.executor={executor}", *workers, *overrides])


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return drive(laboratory(tmp_path_factory.mktemp("uninterrupted") / "run", "local"))


@pytest.fixture
def start():
    """Starts `raysweep …`; what a failed test leaves running is killed."""
    processes = []

    def begin(*arguments):
        processes.append(started(*arguments, RAYSWEEP_STALE=str(STALE)))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


class TwoNodes:
    """A cluster of a head and another node, of one CPU slot each; `mend` starts the other anew where it was killed."""

    def __init__(self, stack):
        self._stack = stack
        self._head = stack.enter_context(head_node(cpus=1, gpus=0))
        self.address = self._head.address
        self._other = None
        self.mend()

    def mend(self):
        if self._other is None or raylet_below(self._other.pid) is None:
            self._other = self._stack.enter_context(node(self.address))

    def victim(self, what, driver, chance):
        """The process to kill, or None while there is none of the kind. The head's raylet is the driver's own, and stays."""
        if what.endswith("worker"):
            workers = sorted(pid for each in (self._head, self._other) for pid in workers_below(each.pid))
            return chance.choice(workers) if workers else None
        return raylet_below(self._other.pid) if what == "raylet" else driver


@pytest.fixture(scope="module")
def cluster(s3_process):
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield TwoNodes(stack)


@pytest.mark.parametrize(("number", "victims"), list(enumerate(ROUNDS)))
def test_a_killed_run_completes_after_at_most_one_more_start(
    tmp_path, uninterrupted, tables_of, same_tables, start, cluster, s3, number, victims
):
    cluster.mend()
    chance = random.Random(SEED + number)
    storage = (f"storage_options={{endpoint_url: {s3.endpoint}}}", "execution.workers=auto")
    if victims == ("paused worker",):
        storage = (*storage, "execution.call_deadline=8")
    asked = laboratory(s3.url(f"kill-{number}"), "ray", *storage, f"execution.address='{cluster.address}'")
    config, root = tmp_path / "config.yaml", location(asked.storage, asked.storage_options)
    config.write_text(asked.to_yaml())

    def committed():
        return sum(re.fullmatch(r"chunks/[^/]*\.json", name) is not None for name in listing(root))

    process = start("run", config)
    moments = sorted(chance.sample(range(9), len(victims)))  # so many chunks committed
    for what, until in zip(victims, moments, strict=True):
        while committed() < until and process.poll() is None:
            time.sleep(0.1)  # each look costs the store as much as a chunk
        time.sleep(chance.uniform(0, 0.5))
        while (target := cluster.victim(what, process.pid, chance)) is None and process.poll() is None:
            time.sleep(0.05)
        assert process.poll() is None, f"it ended before the {what} could be killed: {process.communicate()}"
        with contextlib.suppress(ProcessLookupError):
            os.kill(target, SIGNALS.get(what, signal.SIGKILL))
    again = None
    if victims == ("paused driver",):
        again = start("run", config, "--wait-at-most", 120)
        while sum(event["event"] == "run_started" for _, event in drivers_of(root)) < 2:
            assert again.poll() is None, again.communicate()
            time.sleep(0.2)
        process.send_signal(signal.SIGCONT)
    sent = time.monotonic()
    _, said = process.communicate(timeout=240)
    assert "Traceback" not in said
    if any(what.endswith("driver") for what in victims):
        code, words = ENDS[next(what for what in victims if what.endswith("driver"))]
        assert (process.returncode, words in said) == (code, True), said
        assert code != 143 or time.monotonic() - sent < 10
        cluster.mend()
        again = again or start("run", config)
        _, said = again.communicate(timeout=240)
        assert again.returncode == 0, said
    else:
        assert process.returncode == 0, said  # the other node, or another worker, goes on

    folder = RunFolder(root)
    log = list(read_events(folder.events))
    computed_once(log, uninterrupted.graph)
    if "paused driver" not in victims:
        assert not computed_again(log), f"{victims} killed after {moments} commits"
    if "paused worker" in victims:
        assert any(event["event"] == "worker_given_up" for event in log)
    keys = {key for task in uninterrupted.graph.tasks for key in task.keys}
    manifests = [set(manifest.parts) for manifest in folder.chunks.manifests()]
    assert violations(drivers_of(root), log, manifests, keys) == [], said
    examined = api.examine(root, remove=True, checksums=True)
    assert {finding.kind for finding in examined.findings} <= {"orphan"}, "files of chunks that were being written"
    assert api.examine(root, checksums=True).findings == ()
    same_tables(collect_tables(folder, folder.read_plan()[0]), tables_of(uninterrupted))


def drivers_of(root):
    """Every line of the log with its driver, whether it counts or not: each driver writes segments of its own."""
    found = []
    for name in listing(root / "events"):
        driver = name.removesuffix(".jsonl").rpartition("-")[2]
        lines = read_bytes(root / "events" / name).decode().splitlines()
        found += [(driver, event) for event in map(json.loads, lines) if "time" in event]
    return found


def computed_once(log, graph):
    committed = Counter(key for e in log if e["event"] == "chunk_committed" for key in e["keys"])
    assert committed == dict.fromkeys((key for task in graph.tasks for key in task.keys), 1)


def computed_again(log):
    """Calls that were started after they were committed. Making a cell's tables is one call with several commits, so it may
    be started for the rest."""
    by_time = [(e["event"], e["call"]) for e in log if e["event"] in ("call_started", "chunk_committed")]
    return [
        call
        for at, (event, call) in enumerate(by_time)
        if event == "chunk_committed" and not call.startswith("similarity") and ("call_started", call) in by_time[at:]
    ]


@pytest.mark.soak
def test_a_run_whose_only_raylet_is_killed_ends_in_words_and_is_resumed(
    tmp_path, uninterrupted, tables_of, same_tables, start
):
    config, events = tmp_path / "config.yaml", tmp_path / "run" / "events.jsonl"
    config.write_text(laboratory(tmp_path / "run", "ray", "execution.workers=1").to_yaml())
    process = start("run", config)
    while lines(events) < 8:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.kill(raylet_below(process.pid), signal.SIGKILL)
    _, said = process.communicate(timeout=180)
    assert process.returncode == 1, said
    assert "Traceback" not in said
    assert "error: " in said
    resumed = drive(laboratory(tmp_path / "run", "local"))
    log = list(read_events(events))
    computed_once(log, uninterrupted.graph)
    assert not computed_again(log)
    same_tables(tables_of(resumed), tables_of(uninterrupted))
    assert not list((tmp_path / "run").rglob(".tmp-*"))


def test_sigterm_ends_a_ray_that_was_started_here_and_what_is_committed_is_kept(tmp_path, start):
    config, events = tmp_path / "config.yaml", tmp_path / "run" / "events.jsonl"
    config.write_text(laboratory(tmp_path / "run", "ray", "execution.workers=1").to_yaml())
    process = start("run", config)
    while not any(event["event"] == "chunk_committed" for event in read_events(events)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    below = [*workers_below(process.pid), raylet_below(process.pid)]
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - sent < 10
    assert process.returncode == 143, said
    assert said.splitlines()[-1] == f"ended by SIGTERM; committed work is kept; resume with: raysweep run {config}"
    assert "Traceback" not in said
    log = list(read_events(events))
    assert log[-1]["event"] == "run_interrupted"
    for pid in below:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    before = {key for event in log if event["event"] == "chunk_committed" for key in event["keys"]}
    resumed = drive(laboratory(tmp_path / "run", "local"))
    assert resumed.failed == {}
    after = [key for e in read_events(events) if e["event"] == "chunk_committed" for key in e["keys"]]
    assert before <= set(after)
    assert len(after) == len(set(after))


@pytest.mark.soak  # without Ray it is test_ends.py's
def test_a_second_run_in_the_folder_is_refused_while_the_first_works(tmp_path, start):
    config, events = tmp_path / "config.yaml", tmp_path / "run" / "events.jsonl"
    config.write_text(laboratory(tmp_path / "run", "local").to_yaml())
    first = start("run", config)
    while lines(events) < 3:
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # so that it cannot end before the other asks
    second = start("run", config, "--executor", "local")
    _, said = second.communicate(timeout=60)
    assert (second.returncode, said.count("\n")) == (3, 1), said
    assert f"is in use by another raysweep (process {first.pid} on " in said
    first.send_signal(signal.SIGKILL)
    first.communicate()
    third = start("run", config)
    _, said = third.communicate(timeout=120)
    assert third.returncode == 0, said
