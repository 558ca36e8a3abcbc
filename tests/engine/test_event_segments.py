"""The log in an object store: segments in order, whole, and at most seconds behind."""

from __future__ import annotations

import time

import pytest

from raysweep.engine import event_segments
from raysweep.engine.events import EventLog, read_events
from raysweep.engine.folder import RunFolder
from raysweep.store import places
from raysweep.store.places import listing, location, put_bytes, remove_below


@pytest.fixture(params=["memory", "s3"])
def folder(request, tmp_path):
    """A run folder in a store."""
    if request.param == "s3":
        s3 = request.getfixturevalue("s3")
        root = location(s3.url(f"segments/{tmp_path.name}"), s3.options)
    else:
        root = location(f"memory://segments/{tmp_path.name}")
    yield RunFolder(root)
    remove_below(root)


def told(folder):
    return [event["n"] for event in read_events(folder.events)]


def test_events_are_read_in_their_order_over_several_writers(folder):
    heard = []
    assert (list(read_events(folder.events)), folder.is_run) == ([], False)
    for start in (0, 3, 6):
        with EventLog(folder.events, heard.append) as log:
            for n in range(start, start + 3):
                log.emit("call_started", n=n, call="δ\u2028\n")
    assert told(folder) == list(range(9)) == [event["n"] for event in heard]
    names = sorted(listing(folder.events))
    assert [name.partition("-")[0] for name in names] == ["000001", "000002", "000003"]
    assert {event["call"] for event in read_events(folder.events)} == {"δ\u2028\n"}


def test_a_folder_is_a_runs_from_the_first_moment(folder):
    with EventLog(folder.events):
        assert RunFolder(folder.root).is_run
        folder.check_usable()
    assert told(folder) == []


def test_events_appear_while_the_log_is_open(folder, monkeypatch):
    monkeypatch.setattr(event_segments, "SECONDS", 0.05)
    with EventLog(folder.events) as log:
        for n in range(3):
            log.emit("call_started", n=n)
            until = time.monotonic() + 10
            while told(folder) != list(range(n + 1)):
                assert time.monotonic() < until
                time.sleep(0.02)
        assert len(listing(folder.events)) == 1


def test_a_long_log_is_several_segments(folder, monkeypatch):
    monkeypatch.setattr(event_segments, "SEGMENT_BYTES", 300)
    monkeypatch.setattr(event_segments, "SECONDS", 0.01)
    with EventLog(folder.events) as log:
        for n in range(60):
            log.emit("call_started", n=n)
            time.sleep(0.005)
    assert told(folder) == list(range(60))
    assert len(listing(folder.events)) > 2


def test_a_cleared_log_goes_on_as_new(folder):
    with EventLog(folder.events) as log:
        log.emit("call_started", n=0)
    with EventLog(folder.events) as log:
        log.emit("call_started", n=1)
        log.clear()
        assert (told(folder), folder.is_run) == ([], True)
        log.emit("call_started", n=2)
    assert told(folder) == [2]
    assert len(listing(folder.events)) == 1


def test_a_store_that_is_away_for_a_while_loses_no_event(folder, monkeypatch):
    monkeypatch.setattr(event_segments, "SECONDS", 0.02)
    away, tries = [True], []

    def send(place, data):
        tries.append(data)
        if away[0]:
            raise OSError("away")
        places.put_bytes(place, data)

    with EventLog(folder.events) as log:
        monkeypatch.setattr(event_segments, "put_bytes", send)
        log.emit("call_started", n=0)
        until = time.monotonic() + 10
        while len(tries) < 3 and time.monotonic() < until:
            time.sleep(0.01)
        log.emit("call_started", n=1)
        away[0] = False
    assert told(folder) == [0, 1]


def test_a_store_that_stays_away_is_told_in_the_end(folder, monkeypatch):
    def send(place, data):
        raise OSError("away")

    log = EventLog(folder.events)
    monkeypatch.setattr(event_segments, "put_bytes", send)
    log.emit("call_started", n=0)
    with pytest.raises(OSError, match="away"):
        log.__exit__()


def test_files_of_other_names_do_not_stop_a_log(folder):
    put_bytes(folder.events / "notes.txt", b"mine\n")
    with EventLog(folder.events) as log:
        log.emit("call_started", n=0)
    assert told(folder) == [0]


def test_what_a_writer_adds_after_another_opened_the_log_does_not_count(folder, monkeypatch):
    """A paused driver wakes up, goes on logging, and begins further segments, although another has taken the run over."""
    monkeypatch.setattr(event_segments, "SECONDS", 3600)
    paused = EventLog(folder.events)
    paused.emit("call_started", n=0)
    paused._lines._send()
    paused.emit("call_started", n=-1)  # not published before the successor looks
    with EventLog(folder.events) as log:
        log.emit("call_started", n=1)
        paused.emit("call_started", n=-2)
        paused._lines._send()
        assert told(folder) == [0]
        monkeypatch.setattr(event_segments, "SEGMENT_BYTES", 1)
        for _ in range(3):
            paused.emit("call_started", n=-3)
            paused._lines._send()
        log.emit("call_started", n=2)
    paused.__exit__()
    assert told(folder) == [0, 1, 2]
    assert len(listing(folder.events)) > 3
    with EventLog(folder.events) as log:
        log.emit("call_started", n=3)
    assert told(folder) == [0, 1, 2, 3]


def test_a_log_without_openings_counts_whole(folder):
    """As logs from before every log began with what it found."""
    for number, token in ((1, "aaaaaaaa"), (2, "bbbbbbbb")):
        put_bytes(
            folder.events / f"{number:06d}-{token}.jsonl", f'{{"event": "call_started", "n": {number}}}\n'.encode()
        )
    assert told(folder) == [1, 2]
    with EventLog(folder.events) as log:
        log.emit("call_started", n=3)
    put_bytes(
        folder.events / "000002-bbbbbbbb.jsonl", b'{"event": "call_started", "n": 2}\n{"event": "late", "n": 4}\n'
    )
    assert told(folder) == [1, 2, 3]
