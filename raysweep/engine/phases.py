"""A run with trainings on paper: what needs none of them, trainings of several processes, what waits for what they make. Pure.

As the driver does it: workers hold the devices while there are calls for them, and let go of them for trainings of several
processes, of which as many go at once as there are devices for.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from raysweep.engine.calls import Call, ModelCall, TrainCall
from raysweep.engine.dispatch import CallCost
from raysweep.engine.graph import Graph
from raysweep.engine.simulate import Simulation, Span

Run = Callable[[Sequence[ModelCall]], Simulation]


def fitted(calls: Sequence[ModelCall], gpus: int) -> list[ModelCall]:
    """The calls with trainings in as many processes as there are GPUs, where they ask for more."""
    return [
        replace(call, processes=min(call.processes, gpus)) if isinstance(call, TrainCall) else call for call in calls
    ]


def in_phases(calls: Sequence[ModelCall], graph: Graph, costs: Callable[[Call], CallCost], run: Run) -> Simulation:
    """The simulation of all calls; `run` simulates those that workers take, all at once."""
    spread = [call for call in calls if isinstance(call, TrainCall) and call.processes > 1]
    first, last = _parted([call for call in calls if call not in spread], graph)
    found = run(first)
    trained = _trained(spread, costs, found)
    found = replace(
        found,
        makespan=found.makespan + trained.makespan,
        timelines=_joined(found, trained),
        calls=found.calls + len(spread),
        bytes_read=found.bytes_read + trained.bytes_read,
    )
    if not last:
        return found
    swept = run(last)
    return Simulation(
        found.makespan + swept.makespan,
        found.bytes_read + swept.bytes_read,
        found.loads + swept.loads,
        len({name for call in (*first, *last) for name in call.affinity}),
        found.calls + swept.calls,
        found.cut + swept.cut,
        found.nodes,
        _joined(found, swept),
    )


def _parted(calls: Sequence[ModelCall], graph: Graph) -> tuple[list[ModelCall], list[ModelCall]]:
    """The calls that wait for no fine-tune, and those that do."""
    needs: Mapping[str, Sequence[str]] = {task.name: task.needs for task in graph.tasks}
    makes = {task.name for task in graph.of_kind("finetune")}
    first: list[ModelCall] = []
    last: list[ModelCall] = []
    for call in calls:
        waits = any(name in makes for task in call.tasks for name in needs[task])
        (last if waits else first).append(call)
    return first, last


def _trained(calls: Sequence[TrainCall], costs: Callable[[Call], CallCost], like: Simulation) -> Simulation:
    """Trainings that each hold a block of workers, the next as soon as a block is free."""
    timelines: list[list[Span]] = [[] for _ in range(like.workers)]
    if not calls:
        return replace(like, makespan=0.0, bytes_read=0, timelines=timelines)
    size = max(call.processes for call in calls)
    free = [(0.0, block) for block in range(max(1, like.workers // size))]
    read = 0
    for call in calls:
        cost = costs(call)
        loading = sum(load.seconds for load in cost.loads.values())
        begin, block = heapq.heappop(free)
        end = begin + loading + cost.seconds
        heapq.heappush(free, (end, block))
        read += sum(load.bytes for load in cost.loads.values()) * call.processes
        for worker in range(block * size, min(like.workers, block * size + call.processes)):
            timelines[worker].append(Span(call.name, begin, end, loading))
    return replace(like, makespan=max(end for end, _ in free), bytes_read=read, timelines=timelines)


def _joined(before: Simulation, then: Simulation) -> list[list[Span]]:
    """Both simulations' timelines, one after the other."""
    start = before.makespan
    return [
        [*spans, *(replace(s, begin=s.begin + start, end=s.end + start) for s in others)]
        for spans, others in zip(before.timelines, then.timelines, strict=True)
    ]
