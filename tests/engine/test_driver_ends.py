"""The driver where a run ends before its end: interrupted or killed at any moment, and where files are gone; it goes on from there."""

from __future__ import annotations

import os
import random
from collections import Counter

import pytest
from other_executors import Interrupted, Killed, On, commits

from raysweep import api
from raysweep.engine import events
from raysweep.engine.driver import drive
from raysweep.engine.events import EventLog


def test_a_run_that_is_killed_as_it_forgets_goes_on(make_config, tmp_path, monkeypatch):
    config = make_config(tmp_path, "studies={substitution: {widths: [6]}}")
    drive(config)

    def killed(folder):
        next(folder.glob("*.parquet")).unlink()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("raysweep.engine.folder.remove_below", killed)
        with pytest.raises(Killed):
            drive(config, fresh=True)
    again = drive(config)
    assert (again.n_calls, again.failed) == (3, {})


def test_an_interrupted_run_resumes(make_config, tmp_path, finished, events_of, tables_of, same_tables):
    backend = On(lambda folder: Interrupted(folder, after=4))
    with pytest.raises(KeyboardInterrupt):
        drive(make_config(tmp_path), backend=backend)
    assert backend.made[0].closed
    assert api.status(tmp_path).state == "interrupted"
    done = drive(make_config(tmp_path))
    assert done.n_calls == 11 - 4
    assert api.status(tmp_path).state == "finished"
    assert commits(events_of(done)) == commits(events_of(finished))
    same_tables(tables_of(done), tables_of(finished), exactly=True)


def test_a_kill_between_a_commit_and_its_event_loses_neither(
    make_config, tmp_path, finished, events_of, tables_of, same_tables, monkeypatch
):
    emit = EventLog.emit
    for nth in (1, 3):
        seen = []

        def dying(self, event, *, seen=seen, nth=nth, **details):
            seen.append(event)
            if event == events.CHUNK_COMMITTED and events.RUN_STARTED in seen and seen.count(event) == nth:
                raise Killed
            emit(self, event, **details)

        with monkeypatch.context() as patch:
            patch.setattr(EventLog, "emit", dying)
            with pytest.raises(Killed):
                drive(make_config(tmp_path))
    done = drive(make_config(tmp_path))
    assert commits(events_of(done)) == commits(events_of(finished))
    started = Counter(event["call"] for event in events_of(done, "call_started"))
    assert set(started.values()) == {1}, "no committed call was started again"
    same_tables(tables_of(done), tables_of(finished), exactly=True)


def test_a_kill_at_any_rename_loses_at_most_the_chunk_in_flight(
    make_config, tmp_path, finished, events_of, tables_of, same_tables, monkeypatch
):
    replace = os.replace
    countdown = []

    def dying(*args):
        countdown[0] -= 1
        if countdown[0] == 0:
            raise Killed
        replace(*args)

    chance = random.Random(5)
    monkeypatch.setattr("raysweep.store.artifacts.os.replace", dying)
    for _ in range(6):
        countdown[:] = [chance.randint(1, 15)]
        with pytest.raises(Killed):
            drive(make_config(tmp_path))
    countdown[:] = [0]
    done = drive(make_config(tmp_path))
    assert commits(events_of(done)) == commits(events_of(finished))
    assert [e["event"] for e in events_of(done)].count("run_started") >= 5
    same_tables(tables_of(done), tables_of(finished), exactly=True)
    assert not list(tmp_path.rglob(".tmp-*"))


@pytest.mark.parametrize("how", ["gone", "cut"])
def test_activations_that_are_gone_are_captured_again(
    make_config, tmp_path, finished, events_of, tables_of, same_tables, how
):
    config = make_config(tmp_path)
    drive(config)
    victim = sorted(tmp_path.glob("activations/m/first/layer=002/*.arrow"))[1]
    whole = victim.read_bytes()
    before = set(victim.parent.iterdir())
    victim.unlink() if how == "gone" else victim.write_bytes(whole[:100])
    assert api.status(tmp_path).unfinished == ["similarity m/first"]
    done = drive(config)
    assert done.n_calls == 1
    assert events_of(done, "call_started")[-1]["call"] == "capture m/first chunk 1"
    (captured,) = set(victim.parent.iterdir()) - before
    assert captured.read_bytes() == whole
    same_tables(tables_of(done), tables_of(finished), exactly=True)
    assert drive(config).n_calls == 0
