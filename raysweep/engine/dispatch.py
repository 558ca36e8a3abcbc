"""Which worker gets which call next, and what becomes of a call that failed: values and pure decisions.

The driver owns the queue and acts on what is decided here; workers and processes are the executors'.
"""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from raysweep.engine.calls import Call, Outcome

Affinity = tuple[str, ...]  # fingerprints of the checkpoints that a call needs, the base's first


@dataclass(frozen=True)
class Slot:
    """A worker as the driver sees it: what it takes, and how many calls may be in flight on it."""

    models: bool = True
    results: bool = True
    depth: int = 1


@dataclass(frozen=True)
class Node:
    """A machine of a cluster: its CPU slots and GPUs."""

    cpus: float
    gpus: float


def room_for(nodes: Sequence[Node], cpus: float, gpus: float) -> int:
    """How many workers of so many CPU slots and GPUs (a share of one, or several) the machines hold together."""
    slack = 1e-9  # a third of a GPU fits three times
    return sum(
        min(int(node.cpus / cpus + slack), int(node.gpus / gpus + slack) if gpus else sys.maxsize) for node in nodes
    )


def choose_group(waiting: Mapping[Affinity, int], own: Affinity, others: Collection[Affinity]) -> Affinity:
    """The group of calls that a worker takes from, so that a checkpoint is loaded as seldom as can be.

    `waiting` has the calls left by group, in their order; `own` is what the worker has loaded, `others` what the other
    workers have. A worker goes on with its own group; then it takes the first that nobody works on, one with its own base
    before any; then it helps where most calls are left per worker.
    """
    if own in waiting:
        return own
    working = Counter(others)
    untouched = [group for group in waiting if not working[group]]
    if untouched:
        return min(untouched, key=lambda group: group[:1] != own[:1])
    return max(waiting, key=lambda group: waiting[group] / (1 + working[group]))


def may_queue_behind(in_flight: int, waiting: int, slots: int) -> bool:
    """Whether a worker that has `in_flight` calls may get one more: a second one only while everybody can have one.

    A call queued behind another keeps a worker from waiting for the driver; queued at the end of a run it would wait
    behind its neighbour while another worker has nothing to do.
    """
    return in_flight == 0 or waiting >= slots


def is_final(outcome: Outcome, attempts: int, limit: int) -> bool:
    """Whether a failed call is set aside: refused input at once, anything else after `limit` charged attempts."""
    return outcome.failure == "refused" or attempts >= limit


class CallQueue:
    """Calls that wait, grouped by the checkpoints that they need; calls that need none come first."""

    def __init__(self, calls: Iterable[Call] = ()) -> None:
        self._results: deque[Call] = deque()
        self._groups: dict[Affinity, deque[Call]] = {}
        self._loaded: dict[int, Affinity] = {}
        self._size = 0
        for call in calls:
            self.push(call)

    def __len__(self) -> int:
        return self._size

    def counts(self) -> Counter[str]:
        """How many calls wait, by kind."""
        queues = [self._results, *self._groups.values()]
        return Counter(call.kind for queue in queues for call in queue)

    def push(self, call: Call) -> None:
        """Put a call at the end of its group."""
        queue = self._groups.setdefault(call.affinity, deque()) if call.affinity else self._results
        queue.append(call)
        self._size += 1

    def push_back(self, call: Call) -> None:
        """Put a call that was taken, and not begun, at the head of its group again."""
        queue = self._groups.setdefault(call.affinity, deque()) if call.affinity else self._results
        queue.appendleft(call)
        self._size += 1

    def drop(self, is_needless: Callable[[Call], bool]) -> Counter[str]:
        """Take out the calls that need not be made; how many, by kind."""
        dropped: Counter[str] = Counter()
        for group, calls in list(self._groups.items()):
            kept = deque(call for call in calls if not is_needless(call))
            dropped += Counter(call.kind for call in calls) - Counter(call.kind for call in kept)
            self._groups[group] = kept
            if not kept:
                del self._groups[group]
        self._size -= dropped.total()
        return dropped

    def take(self, index: int, slot: Slot) -> Call | None:
        """The next call for the worker `index`, or None where nothing waits that it takes."""
        if slot.results and self._results:
            self._size -= 1
            return self._results.popleft()
        if not (slot.models and self._groups):
            return None
        waiting = {group: len(calls) for group, calls in self._groups.items()}
        others = [group for worker, group in self._loaded.items() if worker != index]
        group = choose_group(waiting, self._loaded.get(index, ()), others)
        self._loaded[index] = group
        call = self._groups[group].popleft()
        if not self._groups[group]:
            del self._groups[group]
        self._size -= 1
        return call
