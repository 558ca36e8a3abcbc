"""A run on paper: the driver's own loop over workers that only let time pass, by what each call is reckoned to take. Pure.

Text, tables and starting workers are not in it, as they are not in an estimate. The workers of a node read checkpoints one
after the other, at the rate that the costs have.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from raysweep.engine.call_queue import Costs
from raysweep.engine.calls import Call, ModelCall, Outcome
from raysweep.engine.dispatch import CallCost, Held, Slot
from raysweep.engine.dispatcher import Dispatcher, never_cut

_DEPTH = 2


@dataclass(frozen=True)
class Span:
    """A call on a worker: when it began and ended, and how much of that went by loading its checkpoints."""

    call: str
    begin: float
    end: float
    loading: float


@dataclass(frozen=True)
class Simulation:
    """How a run would go, in seconds from its first call: `timelines` has each worker's calls, in order.

    `least_loads` are as many as there are checkpoints; `cut` tells how many calls were cut into pieces.
    """

    makespan: float
    bytes_read: int
    loads: int
    least_loads: int
    calls: int
    cut: int
    nodes: int
    timelines: Sequence[Sequence[Span]] = field(repr=False)

    @property
    def workers(self) -> int:
        """How many."""
        return len(self.timelines)

    def busy(self, worker: int) -> float:
        """Seconds that a worker is in calls, loading and waiting for its turn to load included."""
        return sum(span.end - span.begin for span in self.timelines[worker])

    @property
    def idle_share(self) -> float:
        """The share of all workers' time until the last call has ended in which they have none."""
        if not self.makespan:
            return 0.0
        return 1 - sum(map(self.busy, range(self.workers))) / (self.makespan * self.workers)

    def to_json(self) -> dict[str, Any]:
        """Plain values, every worker's timeline among them."""
        told = {**asdict(self), "workers": self.workers, "idle_share": self.idle_share}
        told["timelines"] = [[[s.call, s.begin, s.end, s.loading] for s in spans] for spans in self.timelines]
        return told


class _Paper:
    """An executor whose clock jumps from one call's end to the next."""

    def __init__(self, workers: int, nodes: int, resident: int, cost: Costs) -> None:
        self.slots: Sequence[Slot] = [Slot(results=False, depth=_DEPTH)] * workers
        self.about: Mapping[str, Any] = {}
        self.now, self.read, self.loads = 0.0, 0, 0
        self.timelines: list[list[Span]] = [[] for _ in range(workers)]
        self._cost, self._nodes = cost, nodes
        self._held = [Held(resident) for _ in range(workers)]
        self._free = [0.0] * workers
        self._reading = [0.0] * nodes  # until when each node's store is busy
        self._ends: list[tuple[float, int, int, Call, Span]] = []
        self._submitted = 0

    def submit(self, index: int, call: Call) -> None:
        cost = self._cost(call)
        begin = max(self.now, self._free[index])
        loaded = [cost.loads[name] for name in self._held[index].use(call.affinity)]
        ready, node = begin, index * self._nodes // len(self.slots)
        if loaded:
            ready = max(begin, self._reading[node]) + sum(load.seconds for load in loaded)
            self._reading[node] = ready
        end = ready + cost.seconds
        self._free[index] = end
        self.read += cost.read + sum(load.bytes for load in loaded)
        self.loads += len(loaded)
        span = Span(call.name, begin, end, ready - begin)
        self.timelines[index].append(span)
        self._submitted += 1
        heapq.heappush(self._ends, (end, self._submitted, len(loaded), call, span))

    def collect(self) -> list[Outcome]:
        self.now, _, loads, call, span = heapq.heappop(self._ends)
        measured = {"seconds": span.end - span.begin, "load_seconds": span.loading, "loads": loads}
        return [Outcome(call, measured=measured)]

    def close(self) -> None:
        """Nothing was started."""


def simulate(
    calls: Sequence[ModelCall],
    costs: Callable[[Call], CallCost],
    *,
    workers: int,
    nodes: int = 1,
    resident: int = 2,
    may_cut: Callable[[Call], bool] = lambda call: True,
    was_cut: Callable[[Call, list[Call]], None] = never_cut,
) -> Simulation:
    """Run these calls on paper with so many workers, spread over the nodes evenly; `was_cut` gets each call that is cut."""
    pieces: list[int] = []

    def count(call: Call, found: list[Call]) -> None:
        pieces.append(len(found))
        was_cut(call, found)

    paper = _Paper(workers, nodes, resident, lambda call: dispatcher.cost(call))
    dispatcher = Dispatcher(
        calls,
        costs,
        resident=resident,
        may_cut=may_cut,
        was_cut=count,
        clock=lambda: paper.now,
    )
    done: list[Outcome] = []
    dispatcher.run(paper, done.append)
    checkpoints = {name for call in calls for name in call.affinity}
    return Simulation(
        paper.now, paper.read, paper.loads, len(checkpoints), len(done), len(pieces), nodes, paper.timelines
    )
