"""Random runs of broken workers and bad calls: who is blamed, and that the run ends."""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass

import pytest

from raysweep.engine.calls import Call, Outcome
from raysweep.engine.dispatch import CallCost, Load, Slot, is_final
from raysweep.engine.dispatcher import Dispatcher
from raysweep.engine.slot_health import LIMIT
from raysweep.errors import RunError

ATTEMPTS = 3
KINDS = ["lost", "raised", "refused"]


@dataclass(frozen=True)
class OnPair(Call):
    pair: tuple[str, ...] = ()

    @property
    def affinity(self):
        return self.pair


class Workers:
    """Workers of which some break after a number of calls; `bad` calls fail on every one."""

    def __init__(self, rng, breaks, bad):
        self.rng, self.breaks, self.bad, self.about = rng, breaks, bad, {}
        self.slots = [Slot(depth=2)] * len(breaks)
        self.calls = [deque() for _ in breaks]
        self.ran = Counter()

    def submit(self, index, call):
        assert self.slots[index].models
        self.calls[index].append(call)

    def _failure(self, index):
        kind, after = self.breaks[index] or ("", 0)
        return kind if kind and self.ran[index] > after else None

    def collect(self):
        busy = [index for index, calls in enumerate(self.calls) if calls]
        fast = [index for index in busy if self._failure(index)]
        index = self.rng.choice(fast if fast and self.rng.random() < 0.8 else busy)
        call = self.calls[index].popleft()
        self.ran[index] += 1
        failure = self._failure(index) or self.bad.get(call.name)
        if not failure:
            return [Outcome(call, measured={"seconds": 1.0})]
        outcomes = [Outcome(call, error="x", failure=failure)]
        if failure == "lost":
            outcomes += [Outcome(behind, error="x", failure="unstarted") for behind in self.calls[index]]
            self.calls[index].clear()
        return outcomes

    def retire(self, index):
        self.slots[index] = Slot(models=False, results=False)
        return {}


def check_run(seed, share_bad=0.0):
    """Run random calls, start again after each RunError, and check what came of them."""
    rng = random.Random(seed)
    n, m, groups = rng.randint(1, 5), rng.randint(1, 40), rng.randint(1, 4)
    breaks = [None] * n
    if n > 1 and rng.random() < 0.8:
        breaks[rng.randrange(n)] = (rng.choice(KINDS[:2] if seed % 2 else KINDS), rng.choice([0, 0, 0, 1, 3, 6]))
    calls = [OnPair(f"c{i}", "m", "d", (), (f"b{rng.randrange(2)}", f"t{rng.randrange(groups)}")) for i in range(m)]
    bad = {call.name: rng.choice(KINDS) for call in calls if rng.random() < share_bad}
    load = rng.choice([0.0, 1.0, 5.0])
    done, lost_before, starts = Counter(), set(), 0
    while True:
        starts += 1
        assert starts <= m + 1, "the run never finishes"
        failed, charged = set(), Counter()
        dispatcher = Dispatcher(
            [call for call in calls if not done[call.name]],
            lambda call: CallCost(1.0, 0, {each: Load(1, load) for each in call.affinity}),
            may_cut=lambda call: False,
            lost_before=lost_before,
        )

        def take(outcome, queue=dispatcher.queue, failed=failed, charged=charged):
            call = outcome.call
            if outcome.error is None:
                done[call.name] += 1
                lost_before.discard(call.name)
            elif outcome.failure == "unstarted":
                queue.push_back(call)
            else:
                charged[call.name] += 1
                if outcome.failure == "lost":
                    lost_before.add(call.name)
                if is_final(outcome, charged[call.name], ATTEMPTS):
                    failed.add(call.name)
                else:
                    queue.push(call)

        def take_back(found, queue=dispatcher.queue, failed=failed, charged=charged):
            for outcome in found.charged:
                charged[outcome.call.name] -= 1
                if outcome.call.name in failed:
                    failed.remove(outcome.call.name)
                    queue.push(outcome.call)

        workers = Workers(rng, breaks, bad)
        try:
            dispatcher.run(workers, take, take_back)
        except RunError:
            assert sum(kind == "lost" for kind in bad.values()) >= LIMIT, "RunError with a healthy worker"
            continue
        break
    assert not dispatcher.queue, "calls wait with nothing in flight"
    assert max(done.values(), default=1) == 1
    assert all(count <= ATTEMPTS for count in charged.values())
    assert failed | set(done) == {call.name for call in calls}
    if not bad:
        assert failed == set(), "good calls failed"


@pytest.mark.parametrize("seed", [15, 2858])
def test_one_broken_worker_fails_no_call(seed):
    check_run(seed)


def test_calls_that_kill_every_worker_end_as_failed():
    check_run(19, 0.6)


def test_random_runs_with_a_broken_worker():
    for seed in range(400):
        check_run(seed)


def test_random_runs_with_bad_calls():
    for seed in range(200):
        check_run(seed, (0.1, 0.3, 0.6)[seed % 3])


@pytest.mark.soak
def test_many_random_runs():
    for seed in range(6000):
        check_run(seed, (0.0, 0.1, 0.3, 0.6)[seed % 4])
