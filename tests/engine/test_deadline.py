"""How long a call may take: from what is expected of it, and what calls have taken so far."""

from __future__ import annotations

import time

import pytest
from other_executors import Failing, On

from raysweep.engine.calls import Call, Outcome
from raysweep.engine.deadline import Deadline, deadline
from raysweep.engine.dispatch import CALL_SECONDS, CallCost, Load, Slot
from raysweep.engine.dispatcher import Dispatcher
from raysweep.engine.driver import drive


@pytest.mark.parametrize(
    ("expected", "floor", "seconds"),
    [(1.0, 1800.0, 1800.0), (90.0, 1800.0, 1800.0), (600.0, 1800.0, 12_000.0), (None, 1800.0, 43_200.0)],
)
def test_a_deadline_is_generous_and_never_below_the_floor(expected, floor, seconds):
    assert deadline(expected, floor) == Deadline(seconds, expected)
    assert deadline(expected, None) == Deadline(None, expected)


def test_a_deadline_says_where_it_comes_from():
    assert Deadline(1800.0, 2.0).words == "2 s were expected, and execution.call_deadline allows 30 min"
    assert Deadline(1800.0).words == "execution.call_deadline allows 30 min"


class Model(Call):
    affinity = ("base",)


class Once:
    """A worker whose call took `seconds`."""

    slots = (Slot(),)

    def __init__(self, seconds):
        self.seconds = seconds

    def submit(self, index, call):
        self.call = call

    def collect(self):
        return [Outcome(self.call, measured={"seconds": self.seconds})]


@pytest.mark.parametrize("is_timed", [True, False])
def test_what_calls_have_taken_moves_the_deadline_of_those_that_follow(is_timed):
    first, second = Model("substitute a", "m", "d", ()), Model("substitute b", "m", "d", ())
    tables = Call("similarity m/d", "m", "d", ())
    costs = {"substitute": CallCost(10.0, 0, {"base": Load(1, 4.0)})}
    found = Dispatcher(
        [first], lambda call: costs.get(call.kind, CallCost()), call_deadline=60.0, is_timed=lambda call: is_timed
    )
    before = found.deadline(second)
    assert before == (Deadline(20 * (14.0 + CALL_SECONDS), 14.0 + CALL_SECONDS) if is_timed else Deadline(1440.0, None))
    assert found.deadline(tables) == Deadline(1440.0, None), "nothing is estimated of tables"
    found.run(Once(30.0), lambda outcome: None)
    assert found.deadline(second).expected == pytest.approx(30.0 + 4.0 + CALL_SECONDS)


class Slow(Failing):
    def collect(self):
        self._deadline_of = lambda call: Deadline(0.05, 0.01)
        self._worker.attempt, attempt = (lambda call: (time.sleep(0.3), attempt(call))[1]), self._worker.attempt
        try:
            return super().collect()
        finally:
            self._worker.attempt = attempt


def test_a_call_in_this_process_goes_on_past_its_deadline_and_that_is_said(make_config, tmp_path, capsys):
    config = make_config(tmp_path, "studies={similarity: {}}", "datasets.0.limit=4", "datasets.1.limit=4")
    done = drive(config, backend=On(lambda folder: Slow(folder, times=0)))
    assert done.failed == {}
    said = capsys.readouterr().err
    assert (
        "warning: 'capture m/first chunk 0' still runs after 0 s (0 s were expected, and execution.call_deadline allows 0 s); "
        "Ctrl-C ends the run\n"
    ) in said
