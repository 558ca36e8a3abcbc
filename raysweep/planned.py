"""What a run would do and cost, without running it: the call behind `raysweep plan`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.collector import collection_paused
from raysweep.config import Config, load_config, parse_config
from raysweep.config_beside import beside_told

_WORTHWHILE = 1.2  # a change of dtype is suggested from this gain on

if TYPE_CHECKING:
    from raysweep.engine.by_kind import KindCost
    from raysweep.engine.estimate import Options
    from raysweep.engine.rates import Rates
    from raysweep.engine.simulate import Simulation


@dataclass(frozen=True)
class Planned:
    """What a run would do: tasks by kind (done, all), and the cost of the remaining work.

    `layer_applications` are counted once per data set, `batch_applications` as workers count them, once per batch.
    `bytes_to_read`, `memory` (bytes of the largest worker), `pinned` (bytes of its host's pinned memory, if layers are streamed
    to a GPU) and `seconds` (of all `workers`; None if the device could not be timed) are those of the chosen residencies;
    `options` has both residencies of each model.
    `identical`: for a model and data set whose checkpoints share weights, the number of layers that are identical, and of
    the windows and other changes that cost nothing because they equal another. `at_most`: sweeps may stop before they need
    all of it. `kinds` are costs by kind of work, with the rates of the simulation if there is one; `assumed` says what is
    not on this machine and was taken from the config; `warnings` report records that are left out or cut.
    `notes` are what checkpoints' provenance files say about their weights, by source; `template_dates` are the dates given to
    chat templates that read the clock, by model.
    `timed_on` says where layers and reads were timed, `untimed` why nothing could be, if workers on Ray gave no answer.
    `redone` says why completed work is recomputed. `void` says which sweeps can find nothing, `untuned` which cells have no tuned
    checkpoint, `withheld` which cells get no ρ. `bfloat16` has the models that this CPU computes faster in bfloat16 than in float32:
    how many times as fast one layer was.
    """

    tasks: Mapping[str, tuple[int, int]]
    names: Sequence[str]
    layer_applications: int
    bytes_to_read: int
    memory: int
    seconds: float | None
    device: str
    residency: Mapping[str, str]
    batch_applications: int
    workers: int
    options: Mapping[str, Options]
    identical: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    at_most: bool = False
    simulation: Simulation | None = None
    assumed: Sequence[str] = ()
    kinds: Sequence[KindCost] = ()
    warnings: Sequence[str] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    template_dates: Mapping[str, str] = field(default_factory=dict)
    void: Sequence[str] = ()
    untuned: Sequence[str] = ()
    withheld: Sequence[str] = ()
    redone: str = ""
    pinned: int = 0
    timed_on: str = "this machine"
    untimed: str = ""
    bfloat16: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            **asdict(self),
            "tasks": {kind: {"done": done, "all": n} for kind, (done, n) in self.tasks.items()},
            "options": {name: found.to_json() for name, found in self.options.items()},
            "simulation": self.simulation.to_json() if self.simulation else None,
            "kinds": [kind.to_json() for kind in self.kinds],
        }

    def to_text(self) -> str:
        """Return a few lines for a terminal."""
        from raysweep.engine.standing import kind_name
        from raysweep.engine.template_dates import date_texts
        from raysweep.report.kinds import kind_lines

        lines = [f"void         {text}" for text in self.void]
        lines += [f"assumed      {text}" for text in self.assumed]
        lines += [f"checkpoint   {source}: {note}" for source, note in self.notes.items()]
        lines += [f"warning      {text}" for text in self.warnings if text not in self.void]
        lines += [f"date         {text}" for text in date_texts(self.template_dates)]
        lines += [f"not tuned    {text}" for text in self.untuned]
        lines += [f"withheld     {text}" for text in self.withheld]
        lines += [f"recompute    {self.redone}"] if self.redone else []
        lines += [
            f"{kind_name(kind):<12} {n} task{'s' * (n != 1)}, {done} done" for kind, (done, n) in self.tasks.items()
        ]
        lines += kind_lines(self.kinds)
        lines += [
            f"to read      {_size(self.bytes_to_read)} of checkpoints",
            f"to compute   {self.layer_applications:,} layer applications, each on a full data set "
            f"({self.batch_applications:,} layer calls, each on one batch)",
            f"memory       about {_size(self.memory)} for weights, states and the program, on {self.device}{self._pinned()}",
            f"time         {self._time()}",
        ]
        lines += [
            f"faster       dtype: bfloat16 would make the layers of {name} {gain:.1f} times as fast (one layer timed on "
            f"{self.timed_on}); losses then differ, mostly by about 0.001 nats, and completed work is recomputed"
            for name, gain in self.bfloat16.items()
        ]
        for name, told in self.residency.items():
            lines.append(f"weights      of {name}: {told}")
            if name in self.options:
                lines += [f"  {mode:<10} {text}" for mode, text in _option_lines(self.options[name])]
        lines += [
            f"identical    {layers} decoder layers of base and tuned of {cell}, so {shared} changes equal others and cost nothing"
            for cell, (layers, shared) in self.identical.items()
        ]
        if self.at_most:
            lines.append(
                "at most      these figures are an upper limit: a sweep ends as soon as studies.substitution.stop is met"
            )
        if self.simulation:
            from raysweep.report.simulation import simulation_lines

            lines += simulation_lines(self.simulation)
        return "\n".join(lines)

    def _pinned(self) -> str:
        return f", and {_size(self.pinned)} of pinned memory on its host" if self.pinned else ""

    def _time(self) -> str:
        if self.seconds is None:
            what = "what the plan assumes" if self.assumed else self.device
            why = self.untimed or f"{what} is not available on this machine"
            return f"not known, because {why}, so nothing could be timed"
        many = f" with {self.workers} workers" if self.workers > 1 else ""
        return (
            f"about {_duration(self.seconds)}{many} for sweeping and capture, based on a layer and reads timed on {self.timed_on}; "
            "text, tables and starting workers add to this"
        )


def _option_lines(found: Options) -> list[tuple[str, str]]:
    """(residency, what it would take), the one that is taken marked."""
    lines = []
    for mode, told in (("resident", found.resident), ("stream", found.stream)):
        taken = " (chosen)" if mode == found.taken else ""
        if isinstance(told, str):
            lines.append((mode, f"not possible: {told}"))
            continue
        time = "time not known" if told.call_seconds is None else _duration(told.call_seconds)
        lines.append(
            (
                mode,
                f"{_size(told.bytes_read)} to read, {told.layer_applications:,} layer calls, {_size(told.memory)} of memory, "
                f"{time}{taken}",
            )
        )
    return lines


@collection_paused()
def plan_run(
    config: Config | str | Path,
    overrides: Sequence[str] = (),
    *,
    gpus: int | None = None,
    nodes: int | None = None,
    rates: str | None = None,
) -> Planned:
    """Plan what `run` would do with this config: read and check everything it names, but run and write nothing.

    For anything that is not on this machine, `architecture` and `expected` are used. With `gpus` (on `nodes`; 8 GPUs on each by
    default) the run is simulated on that many: with `rates` (a run folder whose calls were timed, or figures such as
    flops=4e14,read=5e9), or with rates timed on this machine. A training with more processes than GPUs then gets one process
    per GPU.
    """
    from raysweep.engine.assumed import will_assume
    from raysweep.engine.by_kind import by_kind
    from raysweep.engine.cost import cost
    from raysweep.engine.estimate import options, rates_of, reckon
    from raysweep.engine.executor import Backend, LocalBackend, backend_for
    from raysweep.engine.graph import beyond, shortened
    from raysweep.engine.origins import checkpoint_notes, dataset_records, describe_run
    from raysweep.engine.paper import device_on_paper, rates_from, settled, simulated
    from raysweep.engine.pending import model_calls, spilled
    from raysweep.engine.phases import fitted
    from raysweep.engine.preparation import prepare
    from raysweep.engine.promised import as_sized
    from raysweep.engine.scored import untuned, withheld
    from raysweep.engine.several_workers import workers_needed
    from raysweep.engine.shared import shared_by
    from raysweep.engine.steps import with_steps
    from raysweep.errors import InputError
    from raysweep.report.records_words import records_warnings

    asked = config
    if isinstance(config, Config):
        config = parse_config(config.model_dump(), overrides=overrides)
    else:
        config = load_config(config, overrides)
    config = with_steps(config)
    if gpus is None and (nodes is not None or rates is not None):
        raise InputError("--nodes and --rates are for a simulation; give --gpus too")
    given = rates_from(rates, config) if rates is not None else None
    on_paper = gpus is not None or will_assume(config)
    backend: Backend = LocalBackend() if on_paper else backend_for(config.execution)
    find_device = device_on_paper if on_paper else backend.device
    with closing(backend):
        with beside_told(asked, config):
            facts, graph, folder = prepare(config, find_device, measure=backend.measure, may_assume=on_paper)
        facts = as_sized(facts)
        done = folder.committed() if folder.is_run else {}
        needed_graph = shortened(graph, done)
        calls = list(model_calls(config, facts, needed_graph, done))
        workers = workers_needed(backend.workers(), calls, needed_graph, done)
        timed = rates_of(config, facts, calls, backend.measure)
    by_model = None if given is None else settled(given, facts)
    tasks: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for task in needed_graph.tasks:
        before = tasks[task.kind]
        tasks[task.kind] = (before[0] + all(key in done for key in task.keys), before[1] + 1)
    needed = cost(config, facts, graph, done.keys() | beyond(graph, needed_graph))
    as_asked = calls
    if gpus is not None:
        calls = fitted(calls, gpus)
    told = reckon(config, facts, calls, workers, by_model or timed.rates)
    left = told.estimate
    if by_model is not None:
        known = any(rates is not None for rates in timed.rates.values())
        left = reckon(config, facts, calls, workers, timed.rates).estimate if known else left.untimed()
    waiting = spilled(config, facts, graph)
    return Planned(
        dict(tasks),
        [task.name for task in graph.tasks],
        needed.layer_applications,
        left.bytes_read,
        left.memory,
        left.seconds,
        facts.device,
        {
            name: "; ".join([f"{model.residency.mode}, {model.residency.why}", *waiting.get(name, ())])
            for name, model in facts.models.items()
        },
        left.layer_applications,
        left.workers,
        options(config, facts, needed_graph, done, as_asked, rates=timed.rates),
        needed.identical,
        any(key not in done for task in graph.of_kind("stop") for key in task.keys),
        None if gpus is None else simulated(config, facts, needed_graph, calls, gpus, nodes, by_model or timed.rates),
        facts.assumed,
        by_kind(config, facts, needed_graph, done, calls, told),
        records_warnings(dataset_records(config, facts), facts.warnings),
        checkpoint_notes(facts),
        facts.template_dates,
        [shared.sentence for shared in shared_by(facts.models) if shared.sentence in facts.warnings],
        untuned(config, facts, graph),
        withheld(facts, graph),
        folder.why_redone(graph, describe_run(config, facts), done) if folder.is_run else "",
        left.pinned,
        timed.where,
        timed.why,
        {} if gpus is not None else _faster_in_bfloat16(timed.rates),
    )


def _faster_in_bfloat16(rates: Mapping[str, Rates | None]) -> dict[str, float]:
    """The gain of each model for which it is worthwhile."""
    gains = {name: found.bfloat16_gain for name, found in rates.items() if found is not None}
    return {name: gain for name, gain in gains.items() if gain >= _WORTHWHILE}


def _size(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} TB"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
