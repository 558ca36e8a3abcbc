"""What the calls of a run will take under each residency, reckoned call by call as a worker would run them.

Counts are exact: batches, passes and what is read follow the same arithmetic as the worker. Seconds come from rates.py,
memory from sizes. Text that is generated, losses taken again and tables are not in it; of answers to a backdoor's prompts, which
their training's call writes too, the least that they take.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TYPE_CHECKING, Any

from raysweep.engine.call_queue import Costs
from raysweep.engine.calls import CaptureCall, ModelCall
from raysweep.engine.demands import RECKONED
from raysweep.engine.loading import batch_budget
from raysweep.engine.measuring import Measure, measure_here
from raysweep.engine.pending import model_calls
from raysweep.engine.rates import Rates, measured_rates, slowest, torch_threads
from raysweep.engine.reckoning import Estimate, Reckoning
from raysweep.engine.residency import RESIDENT, Residency, choose_residency
from raysweep.engine.several_workers import with_repeated_work
from raysweep.errors import InputError

if TYPE_CHECKING:
    from raysweep.config import Config
    from raysweep.engine.facts import Facts, ModelFacts
    from raysweep.engine.graph import Graph


@dataclass(frozen=True)
class Options:
    """What a model takes `resident` and `stream`: an estimate each, or why it cannot be so; which is taken, and why."""

    taken: str
    why: str
    resident: Estimate | str
    stream: Estimate | str

    def to_json(self) -> dict[str, Any]:
        """Plain values; what cannot be is `{"reason": …}`."""
        told = {
            mode: {"reason": found} if isinstance(found, str) else found.to_json()
            for mode, found in (("resident", self.resident), ("stream", self.stream))
        }
        return {"taken": self.taken, "why": self.why, **told}


@dataclass(frozen=True)
class Reckoned:
    """What calls take in all, what each of them does, and by which rates; a model's are None where it could not be timed."""

    estimate: Estimate
    cost: Costs
    rates: Mapping[str, Rates | None]
    kinds: Mapping[str, Estimate] = field(default_factory=dict)  # by the calls' kind, seconds of all devices


@dataclass(frozen=True)
class Timed:
    """Each model's rates (None if it could not be timed), where they were measured, and why nothing could be, if so."""

    rates: Mapping[str, Rates | None]
    where: str = "this machine"
    why: str = ""


def reckon(
    config: Config,
    facts: Facts,
    calls: Sequence[ModelCall],
    workers: int = 1,
    rates: Mapping[str, Rates | None] | None = None,
    *,
    measure: Measure = measure_here,
) -> Reckoned:
    """Estimate these calls, by each model's `rates` if given, else by those that `measure` finds.

    With several `workers`, what they repeat counts: each loads the checkpoints, and pieces of a sweep go through the same layers.
    """
    found: dict[str, Rates | None] = dict(rates_of(config, facts, calls, measure).rates if rates is None else rates)
    reckoning = Reckoning(config, facts, found)
    left, asked = reckoning.of(calls, workers), config.studies.substitution
    if workers > 1 and left.calls:
        left = with_repeated_work(
            left,
            [call for call in calls if isinstance(call, RECKONED)],
            reckoning.cost,
            reckoning.applications,
            workers=workers,
            resident=config.execution.resident,
            may_cut=asked is None or asked.stop is None,
        )
    return Reckoned(left, reckoning.cost, found, reckoning.kinds)


def options(
    config: Config,
    facts: Facts,
    graph: Graph,
    done: Collection[str],
    calls: Sequence[ModelCall],
    *,
    rates: Mapping[str, Rates | None] | None = None,
) -> dict[str, Options]:
    """For each model both residencies, by the model's name; `calls` are those that the graph needs.

    Without `rates` they are measured on this machine.
    """
    rates = rates_of(config, facts, calls).rates if rates is None else rates
    found = {}
    for name, model in facts.models.items():
        taken = model.residency
        by_mode: dict[str, Estimate | str] = {}
        for mode in ("resident", "stream"):
            at = taken if taken.mode == mode else RESIDENT if mode == "resident" else _streamed(config, facts, name)
            if isinstance(at, str):
                by_mode[mode] = at
                continue
            other = replace(facts, models={**facts.models, name: replace(model, residency=at)})
            all_calls = calls if at is taken else model_calls(config, other, graph, done, only=name)
            own = [call for call in all_calls if call.model == name]
            try:
                by_mode[mode] = Reckoning(config, other, rates).of(own)
            except InputError as error:  # a layer that its conversion rules do not make alone, say
                by_mode[mode] = str(error)
        found[name] = Options(taken.mode, taken.why, by_mode["resident"], by_mode["stream"])
    return found


def _streamed(config: Config, facts: Facts, name: str) -> Residency | str:
    """How the model would be streamed, or why it cannot be."""
    asked = config.model_copy(update={"execution": config.execution.model_copy(update={"residency": "stream"})})
    model = facts.models[name]
    try:
        return choose_residency(asked, name, model.base, list(model.tuned.values()), model.dtype, facts.memory)
    except InputError as error:
        return str(error)


def rates_of(config: Config, facts: Facts, calls: Iterable[ModelCall], measure: Measure = measure_here) -> Timed:
    """Measure each model's rates where `measure` runs a function: of several machines, the slowest of each rate."""
    lengths: dict[str, list[int]] = {}
    for call in calls:
        if facts.models[call.model].base.on_paper:  # nothing of it can be timed
            lengths[call.model] = [1]
            continue
        sizes = [e.n_prompt if isinstance(call, CaptureCall) else e.length - 1 for e in call.examples]
        lengths.setdefault(call.model, []).extend(sizes)
    models = {name: (facts.models[name], max(1, int(median(of_model)))) for name, of_model in lengths.items()}
    if all(model.base.on_paper for model, _ in models.values()):
        return Timed(dict.fromkeys(models))
    tokens = batch_budget(config.execution.batch_tokens, facts.device)
    threads = config.execution.cpus_per_worker if config.execution.executor == "ray" else None
    found = measure(
        time_models,
        models,
        facts.device,
        tokens,
        threads if facts.device == "cpu" else None,
        config.execution.memory_bytes,
    )
    why = found.why or f"{facts.device} is not available on {found.where}"
    known = {name: [rates for each in found.values if (rates := each[name]) is not None] for name in models}
    return Timed(
        {name: slowest(of_model) if of_model else None for name, of_model in known.items()},
        found.where,
        "" if any(known.values()) else why,
    )


def time_models(
    models: Mapping[str, tuple[ModelFacts, int]], device: str, tokens: int, threads: int | None, memory: int | None
) -> dict[str, Rates | None]:
    """Measure in this process the rates of models, each with the length of its texts; with so many threads."""
    with torch_threads(threads):
        return {name: measured_rates(model, device, tokens, length, memory) for name, (model, length) in models.items()}
