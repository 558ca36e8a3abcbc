"""Attempts and failed tasks, and what is taken back once a worker is found to be to blame."""

from __future__ import annotations

from raysweep.engine import events
from raysweep.engine.calls import Call, Outcome
from raysweep.engine.failures import Failures
from raysweep.engine.tally import Tally

QUARANTINED = {"event": events.SLOT_QUARANTINED, "calls": ["substitute a"], "tasks": ["t"]}
STARTED = {"event": events.RUN_STARTED, "calls": {"substitute": 2}}


def failed(name, task):
    return {"event": events.CALL_FAILED, "call": name, "tasks": [task], "error": "e"}


def outcome(name):
    return Outcome(Call(name, "m", "d", ()), error="e")


def test_failures_of_a_worker_that_is_to_blame_are_taken_back():
    failures = Failures()
    assert [failures.charge(name) for name in ("a", "b", "a", "c")] == [1, 1, 2, 1]
    failures.end("a", ["t", "u"], "of a")
    failures.end("c", ["u"], "of c")
    assert failures.tasks == {"t": "of a", "u": "of c"}
    again, tasks = failures.take_back([outcome("a"), outcome("b"), outcome("done elsewhere")])
    assert ([call.name for call in again], tasks) == (["a"], ["t"])
    assert failures.tasks == {"u": "of c"}, "another call has failed it"
    assert [failures.charge(name) for name in ("a", "b")] == [2, 1]


def test_so_are_they_in_the_log():
    log = [STARTED, failed("substitute a", "t"), failed("substitute b", "u"), QUARANTINED]
    assert events.latest_failures(log) == {"u": "e"}
    assert events.latest_start(log).failures == ["substitute b: e"]
    tally = Tally()
    for event in log:
        tally.take(event)
    assert (tally.failed, tally.to_do("substitute")) == (1, 1)
