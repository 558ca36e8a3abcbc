"""Real kills on a real Ray: SIGKILL to a worker, to the raylet or to the driver, at random moments, and run again at most once.

Three rounds here; RAYSWEEP_KILLS=20 (`make soak`) makes it twenty. Every run starts a Ray of its own.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter

import pytest
from ray_cluster import raylet_below, workers_below
from ray_cluster import start as start_process

from raysweep.config import parse_config
from raysweep.engine.driver import drive
from raysweep.engine.events import read_events

ROUNDS = int(os.environ.get("RAYSWEEP_KILLS", "3"))
SEED = 23
SETTINGS = {
    "name": "kill",
    "models": [
        {"name": "tiny", "base": "lab://tiny", "tuned": {"facts": "lab://tiny/facts", "sums": "lab://tiny/sums"}}
    ],
    "datasets": [
        {"name": "facts", "path": "lab://facts/test", "format": "boolq", "limit": 24},
        {"name": "sums", "path": "lab://sums/test", "format": "gsm8k", "limit": 16},
    ],
    "studies": {"substitution": {"widths": [12]}, "similarity": {}, "correlation": {"resamples": 20}},
    "execution": {"chunk": 4, "device": "cpu", "workers": 2},
}


def laboratory(storage, executor):
    values = {**SETTINGS, "storage": str(storage)}
    return parse_config(values, overrides=[f"execution.executor={executor}"])


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return drive(laboratory(tmp_path_factory.mktemp("uninterrupted") / "run", "local"))


@pytest.fixture
def start():
    """Starts `raysweep …`; what a failed test leaves running is killed."""
    started = []

    def begin(arguments):
        started.append(start_process(arguments))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def victim(what, pid, chance):
    """The process to kill, or None while there is none of the kind."""
    if what == "worker":
        workers = sorted(workers_below(pid))
        return chance.choice(workers) if workers else None
    return raylet_below(pid) if what == "raylet" else pid


@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_killed_run_completes_after_at_most_one_more_start(
    tmp_path, uninterrupted, tables_of, same_tables, start, number
):
    chance = random.Random(SEED + number)
    what = ("worker", "raylet", "driver")[number % 3]
    config, events = tmp_path / "config.yaml", tmp_path / "run" / "events.jsonl"
    config.write_text(laboratory(tmp_path / "run", "ray").to_yaml())

    process = start(["run", str(config)])
    until = chance.randint(1, 30)
    while lines(events) < until and process.poll() is None:
        time.sleep(0.01)
    time.sleep(chance.uniform(0, 0.3))
    while (target := victim(what, process.pid, chance)) is None and process.poll() is None:
        time.sleep(0.05)
    assert process.poll() is None, f"it ended before the {what} could be killed: {process.communicate()}"
    with contextlib.suppress(ProcessLookupError):
        os.kill(target, signal.SIGKILL)
    _, said = process.communicate(timeout=180)
    if what == "driver":
        assert process.returncode == -signal.SIGKILL, said
    elif process.returncode != 0:
        assert process.returncode == 1, said
        assert "Traceback" not in said
        assert "error: " in said
    if process.returncode != 0:
        again = start(["run", str(config)])
        _, said = again.communicate(timeout=180)
        assert again.returncode == 0, said

    log = list(read_events(events))
    committed = Counter(key for e in log if e["event"] == "chunk_committed" for key in e["keys"])
    assert committed == dict.fromkeys((key for task in uninterrupted.graph.tasks for key in task.keys), 1)
    by_time = [(e["event"], e["call"]) for e in log if e["event"] in ("call_started", "chunk_committed")]
    for at, (event, call) in enumerate(by_time):
        # making a cell's three similarity tables is one call with three commits, so it may be started for the rest
        if event == "chunk_committed" and not call.startswith("similarity"):
            assert ("call_started", call) not in by_time[at:], f"{what} killed after {until} events"
    resumed = drive(laboratory(tmp_path / "run", "local"))
    assert resumed.n_calls == 0
    same_tables(tables_of(resumed), tables_of(uninterrupted))
    assert not list((tmp_path / "run").rglob(".tmp-*"))


def test_ctrl_c_ends_cleanly_and_what_is_committed_is_kept(tmp_path, start):
    config, events = tmp_path / "config.yaml", tmp_path / "run" / "events.jsonl"
    config.write_text(laboratory(tmp_path / "run", "ray").to_yaml())
    process = start(["run", str(config)])
    while not any(event["event"] == "chunk_committed" for event in read_events(events)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    workers = workers_below(process.pid)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == "interrupted; what is committed is kept, and running again resumes it"
    assert "Traceback" not in said
    log = list(read_events(events))
    assert log[-1]["event"] == "run_interrupted"
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    before = {key for event in log if event["event"] == "chunk_committed" for key in event["keys"]}
    resumed = drive(laboratory(tmp_path / "run", "local"))
    assert resumed.failed == {}
    after = [key for e in read_events(events) if e["event"] == "chunk_committed" for key in e["keys"]]
    assert before <= set(after)
    assert len(after) == len(set(after))


def test_a_second_run_in_the_folder_is_refused_while_the_first_works(tmp_path, start):
    config, events = tmp_path / "config.yaml", tmp_path / "run" / "events.jsonl"
    config.write_text(laboratory(tmp_path / "run", "local").to_yaml())
    first = start(["run", str(config)])
    while lines(events) < 3:
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # so that it cannot end before the other asks
    second = start(["run", str(config), "--executor", "local"])
    _, said = second.communicate(timeout=60)
    assert (second.returncode, said.count("\n")) == (2, 1), said
    assert f"is in use by another raysweep (process {first.pid} on " in said
    first.send_signal(signal.SIGKILL)
    first.communicate()
    third = start(["run", str(config)])
    _, said = third.communicate(timeout=120)
    assert third.returncode == 0, said
