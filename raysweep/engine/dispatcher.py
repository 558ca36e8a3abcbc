"""The loop that hands calls to workers until none is left: the driver's, and a simulation's on paper.

What to decide is dispatch.py's; this keeps count of what is in flight and when each worker is expected to be free.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from raysweep.engine.call_queue import CallQueue, Costs, even_cost
from raysweep.engine.calls import Call, Outcome
from raysweep.engine.deadline import Deadline, deadline
from raysweep.engine.dispatch import CALL_SECONDS, CallCost, choose_pieces
from raysweep.engine.slot_health import Quarantine, SlotHealth, nothing_works
from raysweep.engine.splitting import MOST_PIECES, cut, shares
from raysweep.errors import RunError

if TYPE_CHECKING:
    from raysweep.engine.executor import Executor


def nothing_said(call: Call) -> None:
    """Where nobody wants to know what is started."""


def never_cut(call: Call, pieces: list[Call]) -> None:
    """Where nobody wants to know what is cut."""


class Dispatcher:
    """Calls that wait and calls in flight.

    `costs` tells what a call takes, `may_cut` which ones may be cut; `started` and `was_cut` are told of both as it
    happens. How much slower than reckoned calls and loads are is learnt from those that have ended. Calls run for at least
    `call_deadline` seconds before they count as hung; `is_timed` says whose costs are measured and not nominal.
    `lost_before` names calls that lost a worker in an earlier start of this run.
    """

    def __init__(
        self,
        calls: Iterable[Call] = (),
        costs: Costs = even_cost,
        *,
        resident: int = 2,
        may_cut: Callable[[Call], bool] = lambda call: True,
        call_deadline: float | None = None,
        is_timed: Callable[[Call], bool] = lambda call: True,
        lost_before: Iterable[str] = (),
        started: Callable[[Call], None] = nothing_said,
        was_cut: Callable[[Call, list[Call]], None] = never_cut,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pieces: dict[str, CallCost] = {}  # by name, of those that were cut
        self._costs, self._may_cut, self._started, self._was_cut = costs, may_cut, started, was_cut
        self._clock = clock
        self._call_deadline, self._is_timed = call_deadline, is_timed
        self.queue = CallQueue(calls, self.cost, resident)
        self._in_flight: dict[str, tuple[int, float]] = {}  # by name: the worker, and the seconds that are expected
        self._count: dict[int, int] = {}
        self._free: dict[int, float] = {}
        self._run_pace, self._load_pace = _Pace(), _Pace()
        self._lost_before = frozenset(lost_before)
        self._health = SlotHealth(self._lost_before)

    def cost(self, call: Call) -> CallCost:
        """What the call takes, or the piece of one."""
        found = self._pieces.get(call.name)
        return self._costs(call) if found is None else found

    @property
    def paces(self) -> tuple[float, float]:
        """How much longer calls, and loads, took than reckoned: 1 before any has ended."""
        return self._run_pace.ratio, self._load_pace.ratio

    def deadline(self, call: Call) -> Deadline:
        """Return how long the call may run, from what it and its loads are expected to take by now."""
        cost = self.cost(call)
        if not call.affinity or cost.seconds <= 0 or not (self._run_pace.is_known or self._is_timed(call)):
            return deadline(None, self._call_deadline)
        load = self.queue.load_seconds(call.affinity) * self._load_pace.ratio
        return deadline(cost.seconds * self._run_pace.ratio + load + CALL_SECONDS, self._call_deadline)

    def run(
        self,
        executor: Executor,
        take: Callable[[Outcome], None],
        quarantined: Callable[[Quarantine], None] = lambda found: None,
    ) -> None:
        """Hand out and collect until nothing is left; `take` gets what came of each call, once it is off the books.

        `quarantined` gets each slot that is found to be to blame for failures; it gets no more calls. A call that failed on
        a slot goes to one on which it has not failed, as long as there is one. Raises RunError if no worker can run anything,
        and calls wait that have not been tried.
        """
        self._health = SlotHealth(self._lost_before)
        while self._hand_out(executor):
            for outcome in executor.collect():
                index = self._ended(outcome)
                verdict = self._health.judge(index, outcome, _running_models(executor))
                take(verdict.outcome)
                for found in verdict.quarantined:
                    quarantined(found.close(executor))
                if not self._health.may_work(index):
                    self.queue.forget(index)  # others need not leave its group to it
                if verdict.nothing_works and self._untried_wait():
                    raise RunError(nothing_works(outcome))

    def _hand_out(self, executor: Executor) -> int:
        """Hand out what waits, each worker's first call before anybody's second; how many calls are in flight."""
        slots, count, queue = executor.slots, self._count, self.queue
        if not any(map(self._health.may_work, able := _running_models(executor))):
            for index in able:
                self._health.release(index)  # nobody else is left to try what failed there
        for depth in range(max(slot.depth for slot in slots) if queue else 0):
            for index, slot in enumerate(slots):
                if count.get(index, 0) != depth or depth >= slot.depth or not self._health.may_work(index):
                    continue
                pace = self._load_pace.ratio / self._run_pace.ratio
                witness = self._witness(index) if slot.models else None
                avoid = self._health.leaves(index, able)
                call = witness or queue.take(
                    index, slot, in_flight=depth, slots=len(slots), load_pace=pace, avoid=avoid
                )
                if call is None:
                    continue
                if call.affinity and not depth and not witness:
                    call = self._first_piece(call, index, executor)
                self._submit(executor, index, call)
                if not executor.slots[index].models:
                    queue.forget(index)  # it could not be replaced, or only makes tables
        if not self._in_flight:
            self._hand_out_one(executor)
        return len(self._in_flight)

    def _hand_out_one(self, executor: Executor) -> None:
        """Hand out a call that each worker would leave to another one, as nobody works."""
        able = _running_models(executor)
        for index in filter(self._health.may_work, able):
            avoid = self._health.leaves(index, able)
            call = next((call for call in self.queue.waiting() if call.name not in avoid), None)
            if call is not None:
                self.queue.give(index, call)
                self._submit(executor, index, call)
                return

    def _untried_wait(self) -> bool:
        tried = self._health.failed_on.keys() | self._lost_before
        return any(call.name not in tried for call in self.queue.waiting())

    def _witness(self, index: int) -> Call | None:
        """The call of a suspended slot that this worker is to try next; None if there is none."""
        for suspended, call in list(self._health.witnesses.items()):
            if call.name in self._in_flight or not self._health.may_try(index, call):
                continue
            waiting = next((each for each in self.queue.waiting() if each.name == call.name), None)
            if waiting is not None:
                self.queue.give(index, waiting)
                return waiting
            self._health.release(suspended)  # it is not needed any more, or was cut: nothing can be learnt from it
        return None

    def _submit(self, executor: Executor, index: int, call: Call) -> None:
        self._started(call)
        expected = self.cost(call).seconds * self._run_pace.ratio + CALL_SECONDS if call.affinity else 0.0
        self._in_flight[call.name] = (index, expected)
        self._count[index] = self._count.get(index, 0) + 1
        self._free[index] = max(self._clock(), self._free.get(index, 0.0)) + expected
        executor.submit(index, call)

    def _first_piece(self, call: Call, index: int, executor: Executor) -> Call:
        """The call, or its first piece where there are too few calls left for all workers; the others wait then."""
        many = [i for i in _running_models(executor) if i != index and self._health.may_work(i)]
        seconds = self.cost(call).seconds
        enough = self.queue.seconds >= len(many) * seconds
        if enough or call.name in self._pieces or not self._may_cut(call):
            return call
        cuts = [found for n in range(2, min(MOST_PIECES, len(many) + 1) + 1) if (found := shares(call, n))]
        now, pace = self._clock(), self._run_pace.ratio
        chosen = choose_pieces(
            now,
            [max(now, self._free.get(i, now)) for i in many],
            self.queue.seconds * pace,
            seconds * pace,
            self.queue.load_seconds(call.affinity) * self._load_pace.ratio,
            cuts,
        )
        if chosen < 0:
            return call
        first, *others = pieces = cut(call, len(cuts[chosen]))
        whole = self.cost(call)
        for piece, share in zip(pieces, cuts[chosen], strict=True):
            self._pieces[piece.name] = replace(whole, seconds=whole.seconds * share)
        for piece in reversed(others):
            self.queue.push_back(piece)
        self._was_cut(call, pieces)
        return first

    def _ended(self, outcome: Outcome) -> int:
        """Take a call off the books; the worker that had it."""
        call = outcome.call
        index, _ = self._in_flight.pop(call.name)
        self._count[index] -= 1
        if outcome.failure in ("lost", "unstarted") and outcome.error is not None:
            self.queue.forget(index)
        elif call.affinity and outcome.error is None:
            self._learn(call, outcome.measured)
        ours = [expected for at, expected in self._in_flight.values() if at == index]
        self._free[index] = self._clock() + sum(ours)
        return index

    def _learn(self, call: Call, measured: Mapping[str, Any]) -> None:
        cost, load = self.cost(call), float(measured.get("load_seconds", 0.0))
        if "seconds" in measured:
            self._run_pace.take(cost.seconds, float(measured["seconds"]) - load)
        if n := int(measured.get("loads", 0)):
            each = self.queue.load_seconds(call.affinity) / len(call.affinity)
            self._load_pace.take(n * each, load)


def _running_models(executor: Executor) -> list[int]:
    return [index for index, slot in enumerate(executor.slots) if slot.models]


class _Pace:
    """Measured ÷ reckoned, over all that has ended so far; 1 before."""

    def __init__(self) -> None:
        self._reckoned = self._measured = 0.0

    def take(self, reckoned: float, measured: float) -> None:
        self._reckoned += reckoned
        self._measured += measured

    @property
    def is_known(self) -> bool:
        return self._reckoned > 0 and self._measured > 0

    @property
    def ratio(self) -> float:
        return self._measured / self._reckoned if self.is_known else 1.0
