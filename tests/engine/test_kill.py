"""Real kills: `raysweep run` on the laboratory gets SIGKILL at random moments, and is run again.

The small stand-ins for a kill (at every rename, between a commit and its event) are test_driver_ends.py's.
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter

import pytest
from command_line import started

from raysweep.config import parse_config
from raysweep.engine.driver import drive
from raysweep.engine.events import read_events

SEED = 11
KILLS = 3
SETTINGS = {
    "name": "kill",
    "models": [{"name": "tiny", "base": "lab://tiny", "tuned": {"facts": "lab://tiny/facts"}}],
    "datasets": [{"name": "facts", "path": "lab://facts/test", "format": "boolq", "limit": 12}],
    "studies": {"substitution": {"widths": [12]}, "similarity": {}, "correlation": {"resamples": 20}},
    "execution": {"chunk": 4, "device": "cpu", "fuse": False},
}


def laboratory(storage, *overrides):
    return parse_config({**SETTINGS, "storage": str(storage)}, overrides=overrides)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return drive(laboratory(tmp_path_factory.mktemp("uninterrupted") / "run"))


def lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_killed_at_random_moments_a_run_still_computes_every_chunk_once(
    tmp_path, uninterrupted, tables_of, same_tables
):
    config, events = tmp_path / "config.yaml", tmp_path / "run" / "events.jsonl"
    config.write_text(laboratory(tmp_path / "run").to_yaml())
    chance = random.Random(SEED)
    for _ in range(KILLS):
        until = lines(events) + chance.randint(2, 16)
        process = started("run", config)
        while lines(events) < until and process.poll() is None:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        _, said = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, said
    last = started("run", config)
    _, said = last.communicate(timeout=120)
    assert last.returncode == 0, said

    log = list(read_events(events))
    assert Counter(e["event"] for e in log if e["event"].startswith("run_")) == {
        "run_started": KILLS + 1,
        "run_finished": 1,
    }
    committed = Counter(key for e in log if e["event"] == "chunk_committed" for key in e["keys"])
    assert committed == dict.fromkeys((key for task in uninterrupted.graph.tasks for key in task.keys), 1)
    by_time = [(e["event"], e["call"]) for e in log if e["event"] in ("call_started", "chunk_committed")]
    for at, (event, call) in enumerate(by_time):
        # making a cell's three similarity tables is one call with three commits, so it may be started for the rest
        if event == "chunk_committed" and not call.startswith("similarity"):
            assert ("call_started", call) not in by_time[at:]
    assert not list((tmp_path / "run").rglob(".tmp-*"))

    resumed = drive(laboratory(tmp_path / "run"))
    assert resumed.n_calls == 0
    same_tables(tables_of(resumed), tables_of(uninterrupted), exactly=True)


@pytest.mark.parametrize("budget", [256, 65_536])
def test_the_batch_budget_does_not_matter_on_trained_models(tmp_path, uninterrupted, tables_of, same_tables, budget):
    done = drive(laboratory(tmp_path, f"execution.batch_tokens={budget}", "execution.fuse=true"))
    same_tables(tables_of(done), tables_of(uninterrupted))
