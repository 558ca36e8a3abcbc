"""What a simulation needs beside calls: which workers there would be on so many GPUs, and what their calls take."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from raysweep.config import Config
from raysweep.engine.calls import Call, ModelCall
from raysweep.engine.demands import RECKONED
from raysweep.engine.dispatch import Node, room_for
from raysweep.engine.estimate import reckon
from raysweep.engine.events import RUN_FINISHED, read_events
from raysweep.engine.facts import Facts
from raysweep.engine.folder import RunFolder
from raysweep.engine.graph import Graph
from raysweep.engine.inspection import resolve_device
from raysweep.engine.phases import in_phases
from raysweep.engine.rates import DeviceFigures, Rates, given_rates
from raysweep.engine.simulate import Simulation, simulate
from raysweep.errors import InputError

_GPUS_A_NODE = 8


def device_on_paper(asked: str) -> str:
    """The device that a simulation takes the workers to have: as asked, whether or not this machine has it."""
    return resolve_device(asked) if asked == "auto" else asked


def workers_on(gpus: int, nodes: int, each: float) -> int:
    """How many workers of so many GPUs each there are on the GPUs, which are spread over the nodes evenly.

    Raises InputError where there are more nodes than GPUs, or no worker fits.
    """
    if nodes > gpus:
        raise InputError(
            f"--nodes {nodes}: {gpus} GPU{'s' * (gpus != 1)} cannot be spread over {nodes} nodes; give at most {gpus}"
        )
    sizes = [gpus // nodes + (node < gpus % nodes) for node in range(nodes)]
    room = room_for([Node(sys.maxsize, size) for size in sizes], 1, each)
    if not room:
        raise InputError(
            f"execution.gpus_per_worker is {each:g}, and a node has {max(sizes)} GPUs at most ({gpus} on {nodes} nodes); ask for "
            "more GPUs or fewer nodes"
        )
    return room


Given = Mapping[str, Rates | DeviceFigures]


def rates_from(text: str, config: Config) -> Given:
    """Each model's rates: as written (given_rates), or those at which the latest whole run in this folder went.

    Raises InputError for anything else, and for a model that the run did not have.
    """
    folder = RunFolder(Path(text).expanduser())
    if not folder.is_run:
        return {model.name: given_rates(text) for model in config.models}
    found: dict[str, dict[str, float]] = {}
    for event in read_events(folder.events):
        if event["event"] == RUN_FINISHED:
            found |= event.get("rates", {})
    lacking = [model.name for model in config.models if model.name not in found]
    if lacking:
        raise InputError(
            f"--rates {text}: that run has no timings for model '{lacking[0]}', only for {', '.join(found) or 'none'}; give another "
            "run, layer=SECONDS,read=BYTES, or flops=OPERATIONS,read=BYTES"
        )
    taken = {model.name: found[model.name] for model in config.models}
    return {
        name: Rates(each["layer"], each["head"], each["read"], f"the run in {text}") for name, each in taken.items()
    }


def settled(given: Given, facts: Facts) -> dict[str, Rates]:
    """Each model's rates; a device's figures are turned into those of its layers."""
    return {
        name: each.of(facts.models[name].base) if isinstance(each, DeviceFigures) else each
        for name, each in given.items()
    }


def simulated(
    config: Config,
    facts: Facts,
    graph: Graph,
    left: Sequence[ModelCall],
    gpus: int,
    nodes: int | None,
    rates: Mapping[str, Rates | None] | None,
) -> Simulation:
    """The calls that are left of a run, simulated. Raises InputError where neither rates are given nor can be measured here."""
    nodes = nodes or -(-gpus // _GPUS_A_NODE)
    each = config.execution.gpus_per_worker
    workers = workers_on(gpus, nodes, 1.0 if each in ("auto", 0) else float(each))
    calls = [call for call in left if isinstance(call, RECKONED)]
    found = reckon(config, facts, calls, rates=rates)
    if found.estimate.call_seconds is None:
        raise InputError(
            f"nothing can be simulated: {_untimed(facts)}; give --rates layer=SECONDS,read=BYTES, or "
            "flops=OPERATIONS,read=BYTES for models of different sizes"
        )
    stopping = {(task.model, task.dataset) for task in graph.of_kind("stop")}

    def may_cut(call: Call) -> bool:
        return (call.model, call.dataset) not in stopping

    def run(calls: Sequence[ModelCall]) -> Simulation:
        return simulate(
            calls, found.cost, workers=workers, nodes=nodes, resident=config.execution.resident, may_cut=may_cut
        )

    return in_phases(calls, graph, found.cost, run)


def _untimed(facts: Facts) -> str:
    lacking = next((model.base.source for model in facts.models.values() if model.base.on_paper), None)
    return (
        f"checkpoint '{lacking}' is not on this machine"
        if lacking
        else f"{facts.device} cannot be timed on this machine"
    )
