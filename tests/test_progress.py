"""Progress: what is reckoned from events, and how it is told in a terminal and elsewhere."""

from __future__ import annotations

import io
import os
import pty

import pytest

from raysweep.cli_verbosity import Verbosity
from raysweep.progress import Progress, Tally, duration


def started(**calls):
    return {"event": "run_started", "tasks": 9, "done": 2, "calls": calls}


def ready(workers, executor="local"):
    return {"event": "workers_ready", "executor": executor, "workers": workers, "each": "1 CPU", "dashboard": "h:1"}


def ended(call, seconds):
    return {"event": "call_done", "call": call, "measured": {"seconds": seconds}}


GIVEN_UP = {
    "event": "worker_given_up",
    "call": "capture m/d",
    "error": "the worker (process 1 on h) ran this for 9 min",
}
RETRIED = {"event": "call_retried", "call": "capture m/d", "attempt": 1, "attempts": 3, "error": "gone\nfar"}
FAILED = {"event": "call_failed", "call": "capture m/d", "attempt": 3, "attempts": 3, "error": "gone\nfar"}


def tally(*events):
    told = Tally()
    for event in events:
        told.take(event)
    return told


def test_rate_and_time_left_are_those_of_all_workers_together():
    told = tally(started(capture=4, substitute=10), ready(2), ended("capture m/d chunk 0", 3.0))
    assert told.rate("capture") == pytest.approx(2 / 3)
    assert told.rate("substitute") is None
    assert told.left("capture") == pytest.approx(3 * 3.0 / 2)
    assert told.left() == pytest.approx((3 * 3.0 + 10 * 3.0) / 2), "a kind not seen yet counts as the mean"
    told.take(ended("substitute m/d 0-4 chunk 0", 1.0))
    assert told.left() == pytest.approx((3 * 3.0 + 9 * 1.0) / 2)
    assert tally(started(capture=1)).left() is None


def test_a_new_start_counts_anew():
    told = tally(started(capture=4), ended("capture m/d", 1.0), RETRIED, FAILED, started(capture=2))
    assert (told.total, told.done, told.failed, told.retried) == ({"capture": 2}, {}, 0, 0)


def test_words():
    told = tally(started(capture=3, substitute=10), ready(2), ended("capture m/d", 4.0), ended("capture m/d", 4.0))
    told.take(ended("substitute m/d", 5.0))
    assert told.words() == "capture 2/3 (0.5/s), substitute 1/10 (0.4/s), 24 s left"
    told.take(RETRIED)
    told.take(FAILED)
    assert told.words() == "capture 2/3, substitute 1/10 (0.4/s), 22 s left, 1 failed, 1 tried again"


def test_what_is_set_aside_takes_no_more_time_and_what_a_lost_worker_had_takes_longer():
    told = tally(started(capture=4), ready(2), ended("capture m/d chunk 0", 3.0))
    told.take(FAILED)
    assert (told.failed, told.to_do("capture")) == (1, 2)
    assert told.left() == pytest.approx(2 * 3.0 / 2)
    told.take({"event": "workers_changed", "workers": 1})
    assert told.left() == pytest.approx(2 * 3.0)


def test_what_waits_and_what_workers_have():
    begun = [{"event": "call_started", "call": f"capture m/d chunk {i}"} for i in range(3)]
    told = tally(started(capture=4, substitute=2), *begun)
    assert [told.waiting("capture"), told.in_flight("capture"), told.waiting("substitute")] == [1, 3, 2]
    told.take({"event": "call_returned", "call": "capture m/d chunk 2"})
    assert [told.waiting("capture"), told.in_flight("capture")] == [2, 2]
    told.take(ended("capture m/d chunk 0", 1.0))
    told.take({**RETRIED, "call": "capture m/d chunk 1"})
    assert [told.waiting("capture"), told.in_flight("capture")] == [3, 0]
    told.take({"event": "calls_dropped", "calls": {"capture": 2}})
    assert [told.waiting("capture"), told.in_flight("capture")] == [1, 0]


def test_duration():
    assert [duration(s) for s in (0.4, 42, 99.4, 720, 12600)] == ["0 s", "42 s", "99 s", "12 min", "3.5 h"]


def test_plain_lines_come_now_and_then(capsys):
    now = [0.0]
    with Progress(clock=lambda: now[0]) as progress:
        progress(started(capture=4))
        progress(ready(2, "ray"))
        for second in range(1, 13):
            now[0] = float(second)
            progress(ended("capture m/d", 1.0) if second < 5 else {"event": "call_done", "call": "x", "measured": {}})
        progress(GIVEN_UP)
        progress(RETRIED)
        progress({"event": "workers_changed", "workers": 1})
        progress(FAILED)
        progress({**FAILED, "call": "capture m/d chunk 1"})
        progress({**FAILED, "call": "capture m/e", "error": "lost"})
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "[   0.0 s] 4 calls to run for 7 tasks; 2 of 9 tasks already done",
        "[   0.0 s] 2 workers of 1 CPU on ray, dashboard http://h:1",
        "[   5.0 s] capture 4/4, 0 s left",
        "[  10.0 s] capture 4/4, 0 s left",
        "[  12.0 s] replacing a worker: capture m/d: the worker (process 1 on h) ran this for 9 min",
        "[  12.0 s] 1 worker left",
        "[  12.0 s] failed: capture m/d: gone",
        "[  12.0 s] failed: capture m/e: lost",
    ], "attempts that failed are in the log alone, and one reason has one line"


def test_in_a_terminal_every_kind_has_its_row(monkeypatch):
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "140")
        with Progress() as progress:
            progress(started(capture=4, substitute=2))
            progress({"event": "call_started", "call": "capture [m]/d chunk 1"})
            progress(ended("capture [m]/d chunk 1", 2.0))
            progress(FAILED)
    said = io.BytesIO()
    while True:
        try:
            block = os.read(ours, 65536)
        except OSError:  # the other end is closed, and all is read
            break
        said.write(block)
    text = said.getvalue().decode()
    assert "failed: capture m/d: gone" in text
    last = text[text.rindex("capture ") :]
    for part in ("1/4", "0.5/s", "4 s left", "[m]/d chunk 1", "substitution", "0/2"):
        assert part in last
    os.close(ours)


def test_a_quarantined_worker_has_a_line_with_its_host_and_gpu(capsys):
    event = {
        "event": "slot_quarantined",
        "worker": "worker 2",
        "host": "node7",
        "gpu": "3",
        "failures": 3,
        "witness": "substitute m/d chunk 4",
        "error": "RuntimeError: CUDA error: misaligned address\nmore",
        "calls": [],
        "tasks": [],
    }
    with Progress(verbosity=Verbosity.QUIET) as progress:
        progress(event)
    assert capsys.readouterr().err.partition("] ")[2] == (
        "warning: worker 2 on node7, GPU 3 gets no more calls: its last 3 failed, and 'substitute m/d chunk 4' completed on "
        "another worker; its failure here: RuntimeError: CUDA error: misaligned address\n"
    )
