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
from raysweep.engine.pending import model_calls
from raysweep.engine.rates import Rates, measured_rates, torch_threads
from raysweep.engine.reckoning import Estimate, Reckoning
from raysweep.engine.residency import RESIDENT, Residency, choose_residency
from raysweep.engine.several_workers import with_repeated_work
from raysweep.errors import InputError

if TYPE_CHECKING:
    from raysweep.config import Config
    from raysweep.engine.facts import Facts
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


def reckon(
    config: Config,
    facts: Facts,
    calls: Sequence[ModelCall],
    workers: int = 1,
    rates: Mapping[str, Rates | None] | None = None,
) -> Reckoned:
    """Estimate these calls, by each model's `rates` if given, else by those measured here.

    With several `workers`, what they repeat counts: each loads the checkpoints, and pieces of a sweep go through the same layers.
    """
    found: dict[str, Rates | None] = rates_here(config, facts, calls) if rates is None else {**rates}
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
    config: Config, facts: Facts, graph: Graph, done: Collection[str], calls: Sequence[ModelCall]
) -> dict[str, Options]:
    """For each model both residencies, by the model's name; `calls` are those that the graph needs."""
    rates = rates_here(config, facts, calls)
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
        return choose_residency(asked, name, model.base, list(model.tuned.values()), model.dtype, facts.device)
    except InputError as error:
        return str(error)


def rates_here(config: Config, facts: Facts, calls: Iterable[ModelCall]) -> dict[str, Rates | None]:
    """Each model's rates on this machine; None where the device, or the checkpoint, is another machine's."""
    lengths: dict[str, list[int]] = {}
    for call in calls:
        if facts.models[call.model].base.on_paper:  # nothing of it can be timed
            lengths[call.model] = [1]
            continue
        sizes = [e.n_prompt if isinstance(call, CaptureCall) else e.length - 1 for e in call.examples]
        lengths.setdefault(call.model, []).extend(sizes)
    tokens = batch_budget(config.execution.batch_tokens, facts.device)
    threads = config.execution.cpus_per_worker if config.execution.executor == "ray" else None
    with torch_threads(threads if facts.device == "cpu" else None):
        return {
            name: measured_rates(
                facts.models[name], facts.device, tokens, max(1, int(median(of_model))), config.execution.memory_bytes
            )
            for name, of_model in lengths.items()
        }
