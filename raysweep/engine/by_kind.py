"""What a run takes by kind of work: calls, seconds, bytes and the memory of a worker, for a plan.

What goes through layers is estimate.py's. What is made from what is committed, and text, is roughly reckoned here: tables by
how long one core took for a cell of other sizes, text as if every token went through the layers once, which is the least
that it takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from raysweep.config import Config
from raysweep.engine.calls import GenerateCall, ModelCall, RemovalCall, VerifyCall
from raysweep.engine.dispatch import CallCost
from raysweep.engine.estimate import Reckoned
from raysweep.engine.facts import Facts
from raysweep.engine.graph import Graph, Task
from raysweep.engine.rates import Rates
from raysweep.engine.result_calls import result_call
from raysweep.models.sizes import SIZES, hidden_size

# Seconds of one core on one layer, example and value of a state, and on one layer, example and resample; timed for 16 and 32
# layers, 150 and 300 examples, widths of 2048 and 4096, and 10 and 1000 resamples.
_SIMILARITY, _CORRELATION, _RESAMPLE = 1.5e-7, 5e-8, 2.3e-7
_SPECTRUM = 4e-10  # and of a spectrum on one layer, value, example and example

_MOMENT = 1.0  # seconds of what is made of few rows

_TABLES = ("similarity", "spectrum", "correlate")
_TEXT = ("generate", "removal")
_LONGER = "generating text takes longer than this"


@dataclass(frozen=True)
class KindCost:
    """A kind of work: how many tasks and calls, seconds of all calls on all of their devices (None: not known), bytes read, the
    largest memory of a worker (of a process that trains) in bytes; `on` says whether a device or a core alone does it, `note`
    what is rough. What is read is that of one worker on its way through all calls."""

    kind: str
    tasks: int
    calls: int
    seconds: float | None
    bytes_read: int
    memory: int
    on: str
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def by_kind(
    config: Config, facts: Facts, graph: Graph, done: Mapping[str, Any], calls: list[ModelCall], reckoned: Reckoned
) -> list[KindCost]:
    """What is left of each kind of work, those that run models in the order of their calls first."""
    left: dict[str, list[Task]] = {}
    for task in graph.tasks:
        if any(key not in done for key in task.keys):
            left.setdefault(task.kind, []).append(task)
    found = [
        KindCost(
            kind,
            len(left.get(kind, ())),
            e.calls,
            e.call_seconds,
            e.bytes_read,
            e.memory,
            facts.device,
            _LONGER if kind == "backdoor" else "",
        )
        for kind, e in reckoned.kinds.items()
    ]
    for kind, tasks in left.items():
        if kind in reckoned.kinds:
            continue
        if kind in _TABLES:
            found.append(_tables(config, facts, kind, tasks))
        elif kind in (*_TEXT, "verify"):
            found.append(_runs(config, facts, graph, kind, tasks, calls, reckoned))
        else:
            found.append(_small(config, kind, tasks))
    return found


def _small(config: Config, kind: str, tasks: list[Task]) -> KindCost:
    """What takes a moment a task; and judging by an endpoint, which takes so many answers a minute."""
    asked = config.studies.backdoor
    asking = [task for task in tasks if task.kind == "judge" and task.at == "endpoint"] if asked and asked.judge else []
    seconds, note = _MOMENT * (len(tasks) - len(asking)), "about 1 s each"
    if asked and asked.judge and asking:
        answers = 2 * asked.examples * len(asking) * sum(len(asked.seeds) if arm != "none" else 1 for arm in asked.arms)
        seconds += 60 * answers / asked.judge.per_minute if asked.judge.per_minute else 0
        note = f"{answers:,} answers to an endpoint"
    return KindCost(kind, len(tasks), len(tasks), seconds, 0, 0, "cpu", note)


def _tables(config: Config, facts: Facts, kind: str, tasks: list[Task]) -> KindCost:
    """Tables that one core makes of a cell's stored states."""
    correlation, similarity = config.studies.correlation, config.studies.similarity
    resamples = correlation.resamples if correlation else 1000
    metrics = len(similarity.metrics) if similarity else 1
    seconds, read, memory = 0.0, 0, 0
    for task in tasks:
        model, examples = facts.models[task.model], len(facts.cells[task.model, task.dataset].examples)
        width, layers = hidden_size(model.base.config), model.base.n_layers
        states = layers * examples * width * SIZES[model.dtype]
        one = layers * examples
        seconds += {
            "similarity": metrics * one * (width * _SIMILARITY + resamples * _RESAMPLE),
            "correlate": metrics * one * (width * _CORRELATION + resamples * _RESAMPLE),
            "spectrum": one * examples * width * _SPECTRUM,
        }[kind]
        read += states
        memory = max(memory, 3 * states + 8 * layers * examples**2)
    return KindCost(
        kind, len(tasks), len(tasks), seconds, read, memory, "cpu", "estimated from one core on a similar cell"
    )


def _runs(
    config: Config,
    facts: Facts,
    graph: Graph,
    kind: str,
    tasks: list[Task],
    calls: list[ModelCall],
    reckoned: Reckoned,
) -> KindCost:
    """What runs a model and is not reckoned call by call: text, components taken out, losses taken again."""
    its: list[ModelCall] = [call for call in calls if call.kind == kind]
    if kind != "generate":
        made = (result_call(config, facts, graph, task) for task in tasks)
        its = [call for call in made if isinstance(call, ModelCall)]
    seconds: float | None = 0.0
    loads: dict[str, int] = {}
    memory = 0
    for call in its:
        cost: CallCost = reckoned.cost(call)
        loads |= {name: load.bytes for name, load in cost.loads.items()}
        size = SIZES[call.loading.dtype]
        weights = call.base.n_parameters * size * len(cost.loads)
        memory = max(memory, weights)
        rates: Rates | None = reckoned.rates.get(call.model)
        tokens = _tokens(call)
        seconds = (
            None if rates is None or seconds is None else seconds + tokens * call.base.n_layers * rates.layer_seconds
        )
    note = _LONGER if kind in _TEXT else ""
    return KindCost(kind, len(tasks), len(its), seconds, sum(loads.values()), memory, facts.device, note)


def _tokens(call: ModelCall) -> int:
    """Tokens that go through all layers."""
    lengths = sum(example.length for example in call.examples)
    if isinstance(call, GenerateCall):
        return len(call.windows) * sum(example.n_prompt + call.new_tokens for example in call.examples)
    if isinstance(call, VerifyCall):
        return len(call.windows) * lengths
    assert isinstance(call, RemovalCall)
    shown = sum(example.n_prompt + call.new_tokens for example in call.examples[: call.shown])
    return lengths + (1 + len(call.removals)) * (lengths + shown)
