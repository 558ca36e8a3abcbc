"""What several workers take beyond one: checkpoints that each of them loads, and layers that pieces of a cut call repeat. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from raysweep.engine.call_queue import Costs
from raysweep.engine.calls import Call, ModelCall, TrainCall
from raysweep.engine.graph import Graph
from raysweep.engine.reckoning import Estimate
from raysweep.engine.simulate import Simulation, simulate


def workers_needed(workers: int, calls: Sequence[ModelCall], graph: Graph, done: Collection[str]) -> int:
    """Return how many of the workers a run will start: at most one for each call, including those that make tables."""
    tables = sum(task.made_from_others and any(key not in done for key in task.keys) for task in graph.tasks)
    return max(1, min(workers, len(calls) + tables))


def with_repeated_work(
    one: Estimate,
    calls: Sequence[ModelCall],
    costs: Costs,
    applications: Callable[[Call], int],
    *,
    workers: int,
    resident: int,
    may_cut: bool,
) -> Estimate:
    """Return the estimate of one worker's calls plus what `workers` repeat when the driver's own rules hand the calls out.

    `applications` gives the layer applications of a call or of a piece of one. Trainings of several processes are left as they are.
    """
    shared = [call for call in calls if not (isinstance(call, TrainCall) and call.processes > 1)]
    cut: list[tuple[Call, list[Call]]] = []

    def simulated(n: int) -> Simulation:
        return simulate(
            shared,
            costs,
            workers=n,
            nodes=n,
            resident=resident,
            may_cut=lambda call: may_cut,
            was_cut=lambda call, pieces: cut.append((call, pieces)),
        )

    alone, together = simulated(1), simulated(workers)
    applied = sum(sum(map(applications, pieces)) - applications(call) for call, pieces in cut)
    more = _busy(together) - _busy(alone)
    return replace(
        one,
        layer_applications=one.layer_applications + applied,
        bytes_read=one.bytes_read + together.bytes_read - alone.bytes_read,
        call_seconds=None if one.call_seconds is None else one.call_seconds + more,
        seconds=None if one.seconds is None else one.seconds + more / one.workers,
    )


def _busy(found: Simulation) -> float:
    return sum(map(found.busy, range(found.workers)))
