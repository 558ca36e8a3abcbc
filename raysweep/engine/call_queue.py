"""The calls that wait, and what each worker has loaded as far as the driver knows. What to take is dispatch.py's to decide."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable

from raysweep.engine.calls import Call
from raysweep.engine.dispatch import Affinity, CallCost, Held, Load, Slot, choose_group, may_queue_behind

Costs = Callable[[Call], CallCost]


def even_cost(call: Call) -> CallCost:
    """Where nothing is known of what calls take: all the same."""
    return CallCost()


class CallQueue:
    """Calls that wait, grouped by the checkpoints that they need; calls that need none come first."""

    def __init__(self, calls: Iterable[Call] = (), costs: Costs = even_cost, resident: int = 2) -> None:
        self._costs, self._resident = costs, resident
        self._results: deque[Call] = deque()
        self._groups: dict[Affinity, deque[Call]] = {}
        self._seconds: dict[Affinity, float] = {}
        self.seconds = 0.0  # of the calls that wait for a model, loads left out
        self._loads: dict[str, Load] = {}
        self._at: dict[int, Affinity] = {}
        self._working: Counter[Affinity] = Counter()
        self._held: dict[int, Held] = {}
        # By worker and its calls in flight, how many changes there had been when it was to have nothing.
        self._declined: dict[tuple[int, int], int] = {}
        self._changes = 0  # that may make it want something: calls that come, workers that leave a group
        self._size = 0
        for call in calls:
            self.push(call)

    def __len__(self) -> int:
        return self._size

    def push(self, call: Call) -> None:
        """Put a call at the end of its group."""
        self._queue_of(call).append(call)

    def push_back(self, call: Call) -> None:
        """Put a call that was taken, and not begun, at the head of its group again."""
        self._queue_of(call).appendleft(call)

    def _queue_of(self, call: Call) -> deque[Call]:
        self._size += 1
        self._changes += 1
        group = call.affinity
        if not group:
            return self._results
        cost = self._costs(call)
        self._seconds[group] = self._seconds.get(group, 0.0) + cost.seconds
        self.seconds += cost.seconds
        self._loads |= cost.loads
        return self._groups.setdefault(group, deque())

    def drop(self, is_needless: Callable[[Call], bool]) -> Counter[str]:
        """Take out the calls that need not be made; how many, by kind."""
        dropped: Counter[str] = Counter()
        for group, calls in list(self._groups.items()):
            needless = [call for call in calls if is_needless(call)]
            for call in needless:
                calls.remove(call)
                self._left(group, call)
            dropped += Counter(call.kind for call in needless)
        return dropped

    def take(
        self,
        index: int,
        slot: Slot,
        *,
        in_flight: int = 0,
        slots: int = 1,
        load_pace: float = 1.0,
        avoid: Collection[str] = (),
    ) -> Call | None:
        """The next call for the worker `index` of so many, or None where nothing waits that it is to have.

        `in_flight`: how many it has already. `load_pace`: how much longer loads take than reckoned, by how much longer
        calls do. `avoid`: names of calls that this worker leaves to others.
        """
        if not may_queue_behind(in_flight, self._size, slots):
            return None
        if slot.results and self._results:
            self._size -= 1
            return self._results.popleft()
        if not (slot.models and self._groups) or self._declined.get((index, in_flight)) == self._changes:
            return None
        seconds = {group: left for group, left in self._seconds.items() if self.first(group, avoid)}
        if avoid and self._at.get(index, ()) not in seconds:
            self._leave(index)
        own, held = self._at.get(index, ()), self.held(index)
        others = self._working.copy()
        if own:
            others[own] -= 1
        group = choose_group(
            seconds, own, held, others, lambda needed: self.load_seconds(needed) * load_pace, busy=in_flight > 0
        )
        call = None if group is None else self.first(group, avoid)
        if call is None or not may_queue_behind(in_flight, self.seconds, slots, self._costs(call).seconds):
            self._declined[index, in_flight] = self._changes
            return None
        for depth in range(slot.depth):
            self._declined.pop((index, depth), None)
        self.give(index, call)
        return call

    def first(self, group: Affinity, avoid: Collection[str] = ()) -> Call | None:
        """The first call of the group that is not to be avoided; None if there is none."""
        return next((call for call in self._groups.get(group, ()) if call.name not in avoid), None)

    def waiting(self) -> Iterable[Call]:
        """All calls that need a model, by group."""
        return itertools.chain.from_iterable(self._groups.values())

    def give(self, index: int, call: Call) -> None:
        """Take a call that waits for a model out of its group, for the worker `index`, which works on this group then."""
        group = call.affinity
        if group != self._at.get(index):
            self._leave(index)
            self._at[index] = group
            self._working[group] += 1
        self.held(index).use(group)
        self._groups[group].remove(call)
        self._left(group, call)

    def held(self, index: int) -> Held:
        """What the worker `index` will have loaded once the calls that it was given are done."""
        return self._held.setdefault(index, Held(self._resident))

    def load_seconds(self, needed: Affinity) -> float:
        """Seconds of loading these checkpoints."""
        return sum(self._loads[checkpoint].seconds for checkpoint in needed if checkpoint in self._loads)

    def forget(self, index: int) -> None:
        """The worker `index` has died: it has nothing loaded any more."""
        self._leave(index)
        self._held.pop(index, None)

    def _leave(self, index: int) -> None:
        group = self._at.pop(index, ())
        if group:
            self._working[group] -= 1
            self._changes += group in self._groups
            if not self._working[group]:
                del self._working[group]

    def _left(self, group: Affinity, call: Call) -> None:
        """Take note that a call is out of its group."""
        self._size -= 1
        seconds = self._costs(call).seconds
        self._seconds[group] -= seconds
        self.seconds -= seconds
        if not self._groups[group]:
            del self._groups[group], self._seconds[group]
