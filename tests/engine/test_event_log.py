"""The event log: whole lines in order, whatever was torn before."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from raysweep.engine.events import EventLog, read_events


def told(path):
    return [{key: value for key, value in event.items() if key != "time"} for event in read_events(path)]


def test_events_are_lines_with_a_time_and_reach_the_listener(tmp_path):
    path, heard = tmp_path / "run" / "events.jsonl", []
    before = datetime.now(UTC)
    with EventLog(path, heard.append) as log:
        log.emit("call_started", call="substitute m/d δ\n2")
        assert len(path.read_text(encoding="utf-8").splitlines()) == 1, "written at once"
        log.emit("chunk_committed", keys=("a", "b"), measured={"seconds": 0.5})
    assert told(path) == [
        {"event": "call_started", "call": "substitute m/d δ\n2"},
        {"event": "chunk_committed", "keys": ["a", "b"], "measured": {"seconds": 0.5}},
    ]
    assert [event["event"] for event in heard] == ["call_started", "chunk_committed"]
    for event in read_events(path):
        seconds = (datetime.fromisoformat(event["time"]) - before).total_seconds()
        assert -0.001 <= seconds < 60


def test_a_log_is_appended_to(tmp_path):
    path = tmp_path / "events.jsonl"
    for n in range(2):
        with EventLog(path) as log:
            log.emit("run_started", n=n)
    assert [event["n"] for event in told(path)] == [0, 1]


def test_a_log_that_is_cleared_goes_on_as_new(tmp_path):
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        log.emit("run_started", n=0)
        log.clear()
        assert path.read_bytes() == b"", "emptied, and still there"
        log.emit("run_started", n=1)
    assert [event["n"] for event in told(path)] == [1]


def test_a_line_that_a_kill_tore_costs_that_line_only(tmp_path):
    path = tmp_path / "events.jsonl"
    whole = [json.dumps({"event": "call_started", "call": f"δ{n}"}, ensure_ascii=False) for n in range(3)]
    for cut in range(1, len(whole[2].encode())):  # inside the two bytes of δ as well
        path.write_bytes(("\n".join(whole[:2]) + "\n").encode() + whole[2].encode()[:cut])
        with EventLog(path) as log:
            log.emit("run_started")
        assert told(path) == [json.loads(line) for line in whole[:2]] + [{"event": "run_started"}]


def test_lines_that_are_no_events_are_passed_over(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'\n[1]\n3\nnull\n\xff\xfe\n{"event": "a"}\n')
    assert told(path) == [{"event": "a"}]
    assert list(read_events(tmp_path / "none.jsonl")) == []


def test_a_secret_in_a_traceback_is_logged_and_told_to_nobody(tmp_path, monkeypatch):
    monkeypatch.setenv("HUB_TOKEN", "0f1e2d3c4b5a6978")
    heard = []
    with EventLog(tmp_path / "events.jsonl", heard.append) as log:
        log.emit("call_failed", call="c", traceback="403 for 0f1e2d3c4b5a6978 at https://me:pw@host")
    assert heard[0]["traceback"] == "403 for *** at https://***@host"
    assert (tmp_path / "events.jsonl").read_text().count("***") == 2
    assert "0f1e2d3c4b5a6978" not in (tmp_path / "events.jsonl").read_text()
