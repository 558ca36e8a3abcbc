"""What a signal leaves of a run: a line in the log and a free lock, whether the process unwinds or is ended by force."""

from __future__ import annotations

import json
import signal

import pytest

from raysweep import signals
from raysweep.engine.driver import drive
from raysweep.engine.events import EventLog, read_events
from raysweep.engine.folder import RunFolder
from raysweep.engine.interruption import interrupts_logged, lock_released
from raysweep.store.object_lock import holder
from raysweep.store.places import location, remove_below


class GoneError(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def stored(tmp_path):
    """A run folder in an object store."""
    root = location(f"memory://interruption/{tmp_path.name}")
    yield RunFolder(root)
    remove_below(root)


def ended(monkeypatch):
    def end(code):
        raise GoneError(code)

    monkeypatch.setattr("raysweep.signals.os._exit", end)
    with pytest.raises(GoneError) as gone:
        signals._end_by_force(signal.SIGTERM)
    return gone.value.args[0]


def test_ended_by_force_a_run_is_logged_as_interrupted_and_its_lock_in_a_store_is_free(stored, monkeypatch, capfd):
    told = []
    with lock_released(stored), stored.locked(), EventLog(stored.events, told.append) as log, interrupts_logged(log):
        log.emit("run_started")
        assert ended(monkeypatch) == 143
        (started, last) = (event for event in read_events(stored.events) if event["event"].startswith("run_"))
        assert (last["event"], last["signal"], started["event"]) == ("run_interrupted", "SIGTERM", "run_started")
        assert not holder(stored.lock).held
        assert [event["event"] for event in told] == ["run_started"], "nobody else is waited for"
    assert "is cut off" in capfd.readouterr().err
    assert ended(monkeypatch) == 143, "nothing is left to be done"


def test_a_run_that_unwinds_is_logged_once(tmp_path, monkeypatch):
    log = EventLog(tmp_path / "events.jsonl")

    def run():
        with interrupts_logged(log):
            raise signals.Interrupted(signal.SIGHUP)

    with pytest.raises(signals.Interrupted), log:  # noqa: PT012
        try:
            run()
        finally:
            ended(monkeypatch)
    assert [(event["event"], event["signal"]) for event in read_events(tmp_path / "events.jsonl")] == [
        ("run_interrupted", "SIGHUP")
    ]


def test_an_interrupt_that_cannot_be_logged_still_ends_the_run(tmp_path):
    def lost():
        raise OSError(28, "No space left on device")

    with (
        pytest.raises(signals.Interrupted),
        EventLog(tmp_path / "events.jsonl", check=lost) as log,
        interrupts_logged(log),
    ):
        raise signals.Interrupted(signal.SIGTERM)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_a_handler_of_the_applications_own_ends_a_run_as_ctrl_c_does(make_config, tmp_path, error):
    def listen(event):
        if event["event"] == "chunk_committed":
            raise error

    with pytest.raises(type(error)):
        drive(make_config(tmp_path, "studies={similarity: {}}"), listener=listen)
    *_, committed, last = (json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines())
    assert (committed["event"], last["event"]) == ("chunk_committed", "run_interrupted")
    assert last["signal"] == ("SIGINT" if isinstance(error, KeyboardInterrupt) else None)
