"""The calls behind the command line and `import raysweep`: run a config, open a run, draw its report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.config import Config, load_config, parse_config

if TYPE_CHECKING:
    import pandas as pd

    from raysweep.engine.accuracy import Accuracy
    from raysweep.engine.by_kind import KindCost
    from raysweep.engine.doctor import Examined
    from raysweep.engine.estimate import Options
    from raysweep.engine.events import Listener
    from raysweep.engine.folder import RunFolder
    from raysweep.engine.ray_submit import Job
    from raysweep.engine.simulate import Simulation
    from raysweep.report.export import Exported
    from raysweep.store.places import Location
    from raysweep.studies.consolidate import Consolidated
    from raysweep.studies.critical import Critical
    from raysweep.studies.measured import Correlated
    from raysweep.studies.measured_cells import CorrelatedCells

_SHOWN = 10


@dataclass(frozen=True)
class Run:
    """A run folder and what is in it. `tables` are data frames by name (substitution, similarity, dynamics, …).

    Of a run in an object store, `folder` and `report` are paths of universal-pathlib, which have pathlib's words.
    `accuracy` tells how far the estimate of its latest start was off; None where that had nothing to sweep or capture.
    """

    folder: Location
    tables: Mapping[str, pd.DataFrame]
    report: Location
    failed: Mapping[str, str] = field(default_factory=dict)
    accuracy: Accuracy | None = None

    def __getattr__(self, name: str) -> pd.DataFrame:
        if name.startswith("__"):  # copy and pickle look for their methods before there are tables
            raise AttributeError(name)
        try:
            return self.tables[name]
        except KeyError:
            raise AttributeError(f"this run has no table '{name}'; it has {', '.join(self.tables)}") from None

    def summary(self) -> list[str]:
        """The answer in a few lines; ρ of every cell, or the costliest windows where nothing was correlated."""
        from raysweep.report.summary import summary_lines

        return summary_lines(self.tables)


def run(
    config: Config | Mapping[str, Any] | str | Path,
    overrides: Sequence[str] = (),
    *,
    fresh: bool = False,
    listener: Listener | None = None,
) -> Run:
    """Run a config (a file, plain values or a Config) to its end and draw the report; what is whole is not done again.

    `overrides` are texts like `execution.chunk=16`. Raises InputError before anything runs, and RunError
    where the run folder cannot be written to any more.
    """
    from raysweep.engine.disk import failures_told
    from raysweep.engine.driver import drive
    from raysweep.store.places import location

    if isinstance(config, (str, Path)):
        config = load_config(config, overrides)
    else:
        values = config.model_dump() if isinstance(config, Config) else dict(config)
        config = parse_config(values, overrides=overrides)
    with failures_told(location(config.storage, config.storage_options)):
        done = drive(config, fresh=fresh, listener=listener)
        return _reported(done.folder, done.failed)


def open_run(folder: str | Location, storage_options: Mapping[str, Any] | None = None) -> Run:
    """A run's tables joined again from what is committed, and its report drawn again. Raises InputError for no run folder."""
    from raysweep.engine.disk import failures_told
    from raysweep.engine.folder import RunFolder
    from raysweep.engine.reach import reach

    found = RunFolder(reach(folder, storage_options))
    found.require_run()
    with failures_told(found.root):
        return _reported(found, {})


def _reported(folder: RunFolder, failed: Mapping[str, str]) -> Run:
    import pandas as pd

    from raysweep.engine.accuracy import compare
    from raysweep.engine.events import read_events
    from raysweep.report.provenance import provenance
    from raysweep.report.stored import write_stored_report
    from raysweep.report.tables import collect_tables, write_tables

    graph, about = folder.read_plan()
    tables = collect_tables(folder, graph)
    write_tables(folder, tables)
    if about.get("along"):
        tables["along"] = pd.DataFrame(about["along"])
    page = write_stored_report(tables, provenance(folder, graph, about, tables), folder.report)
    return Run(folder.root, tables, page, failed, compare(about.get("estimate"), read_events(folder.events)))


def export_run(
    folder: str | Location,
    out: str | Path | None = None,
    format: str = "paper",
    storage_options: Mapping[str, Any] | None = None,
) -> Exported:
    """What is committed of a run as files of another program, in a local folder that is new or empty; see report/export.py.

    Without `out` the folder is `<run folder>-<format>` in the current one. The report is not drawn again. Raises InputError,
    with nothing written, for no run folder, an unknown format, another kind of `out`, and a run without swept windows.
    """
    from raysweep.engine.disk import check_writable, failures_told
    from raysweep.engine.folder import RunFolder
    from raysweep.engine.reach import reach
    from raysweep.errors import InputError
    from raysweep.report.export import check_format, check_vacant, export_paper
    from raysweep.report.tables import collect_tables

    check_format(format)
    if "://" in str(out):
        raise InputError(f"--out '{out}' is a URL; files are exported to a local folder")
    found = RunFolder(reach(folder, storage_options))
    found.require_run()
    name = found.root.resolve().name if isinstance(found.root, Path) else found.root.name
    to = Path(out).expanduser() if out is not None else Path(f"{name}-{format}")
    check_writable(to, "--out")
    check_vacant(to)
    with failures_told(found.root):
        graph, _ = found.read_plan()
        tables = collect_tables(found, graph)
    return export_paper(tables, to)


def consolidate(shards: str | Path, base: str, out: str | Path, *, dtype: str = "auto") -> Consolidated:
    """A sharded checkpoint of FSDP as a Hugging Face folder, with its base's config and tokenizer; see studies/consolidate.py."""
    from raysweep.studies.consolidate import consolidate as write

    return write(shards, base, out, dtype=dtype)


@dataclass(frozen=True)
class Standing:
    """Where a run stands: tasks by kind (done, all), parts committed, failures of the last start, and whether it ended."""

    tasks: Mapping[str, tuple[int, int]]
    parts: tuple[int, int]
    failures: Mapping[str, str]
    state: str
    unfinished: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "state": self.state,
            "tasks": {kind: {"done": done, "all": n} for kind, (done, n) in self.tasks.items()},
            "parts": {"done": self.parts[0], "all": self.parts[1]},
            "failures": dict(self.failures),
            "unfinished": list(self.unfinished),
        }

    def to_text(self) -> str:
        """A few lines for a terminal."""
        lines = [f"{self.state}; {self.parts[0]} of {self.parts[1]} parts committed"]
        lines += [f"  {kind:<12} {done} of {n} tasks done" for kind, (done, n) in self.tasks.items()]
        lines += [f"  failed: {task}: {error.splitlines()[0]}" for task, error in self.failures.items()]
        lines += [f"  not done: {name}" for name in self.unfinished[:_SHOWN]]
        if len(self.unfinished) > _SHOWN:
            lines.append(f"  … and {len(self.unfinished) - _SHOWN} more")
        return "\n".join(lines)


def status(folder: str | Location, storage_options: Mapping[str, Any] | None = None) -> Standing:
    """Where the run in this folder stands, from its plan, its commits and its events."""
    from raysweep.engine import events
    from raysweep.engine.folder import RunFolder
    from raysweep.engine.reach import reach

    found = RunFolder(reach(folder, storage_options))
    found.require_run()
    graph, _ = found.read_plan()
    done = found.committed()
    tasks: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    unfinished = []
    for task in graph.tasks:
        whole = all(key in done for key in task.keys)
        before = tasks[task.kind]
        tasks[task.kind] = (before[0] + whole, before[1] + 1)
        if not whole:
            unfinished.append(task.name)
    keys = {key for task in graph.tasks for key in task.keys}
    failures: dict[str, str] = {}
    state = "running, or killed"
    for event in events.read_events(found.events):
        if event["event"] == events.RUN_STARTED:
            failures, state = {}, "running, or killed"
        elif event["event"] == events.CALL_FAILED:
            failures |= dict.fromkeys(event["tasks"], event["error"])
        elif event["event"] == events.RUN_FINISHED:
            state = "finished"
        elif event["event"] == events.RUN_INTERRUPTED:
            state = "interrupted"
    return Standing(dict(tasks), (len(keys & done.keys()), len(keys)), failures, state, unfinished)


def examine(
    folder: str | Location,
    storage_options: Mapping[str, Any] | None = None,
    *,
    remove: bool = False,
    checksums: bool = False,
) -> Examined:
    """What kills and damage have left in a run folder, and with `remove` no more; see engine/doctor.py.

    Raises InputError for no run folder, and for one that a run is in.
    """
    from raysweep.engine.disk import failures_told
    from raysweep.engine.doctor import examine as examine_folder
    from raysweep.engine.folder import RunFolder
    from raysweep.engine.reach import reach

    found = RunFolder(reach(folder, storage_options, write=remove))
    with failures_told(found.root):
        return examine_folder(found, remove=remove, checksums=checksums)


@dataclass(frozen=True)
class Planned:
    """What a run would do: tasks by kind (done, all), and the cost of what is not done.

    `layer_applications` are counted once a data set, `batch_applications` as workers count them, each on one batch.
    `bytes_to_read`, `memory` (the largest worker's, bytes) and `seconds` (of `workers`; None where the device is another
    machine's) are those of the residencies taken; `options` has, for each model, those of both.
    `identical`: for a model and data set whose checkpoints have weights in common, the number of layers that are the same
    in both, and of the windows and other changes that cost nothing because they are one with another. `at_most`: sweeps may
    stop before they have needed all of it. `kinds` are costs by kind of work, by the rates of the simulation where there is
    one; `assumed` says what is not here and was taken as the config has it.
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
        """A few lines for a terminal."""
        from raysweep.report.kinds import kind_lines, training_line

        lines = [f"assumed      {text}" for text in self.assumed]
        lines += [f"{kind:<12} {n} tasks, {done} done" for kind, (done, n) in self.tasks.items()]
        lines += kind_lines(self.kinds)
        lines += [
            f"to read      {_size(self.bytes_to_read)} of checkpoints",
            f"to compute   {self.layer_applications:,} layer applications, each on a whole data set "
            f"({self.batch_applications:,} calls of a layer on a batch)",
            f"memory       about {_size(self.memory)} for weights, states and the program, on {self.device}",
            f"time         {self._time()}",
        ]
        for name, told in self.residency.items():
            lines.append(f"weights      of {name}: {told}")
            if name in self.options:
                lines += [f"  {mode:<10} {text}" for mode, text in _option_lines(self.options[name])]
        lines += [
            f"identical    {layers} decoder layers in base and tuned of {cell}; {shared} changes are another's for that"
            for cell, (layers, shared) in self.identical.items()
        ]
        if self.at_most:
            lines.append("at most      what is told above: a sweep ends once studies.substitution.stop is met")
        if self.simulation:
            from raysweep.report.simulation import simulation_lines

            lines += simulation_lines(self.simulation)
            lines += training_line(self.kinds, self.simulation.workers)
        return "\n".join(lines)

    def _time(self) -> str:
        if self.seconds is None:
            return f"not known: {self.device} or a checkpoint is another machine's, and nothing could be timed here"
        many = f" with {self.workers} workers" if self.workers > 1 else ""
        return (
            f"about {_duration(self.seconds)}{many} for sweeping and capture, from a layer and reads timed just now; text, tables "
            "and starting workers come on top"
        )


def _option_lines(found: Options) -> list[tuple[str, str]]:
    """(residency, what it would take), the one that is taken marked."""
    lines = []
    for mode, told in (("resident", found.resident), ("stream", found.stream)):
        taken = " (taken)" if mode == found.taken else ""
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


def plan_run(
    config: Config | str | Path,
    overrides: Sequence[str] = (),
    *,
    gpus: int | None = None,
    nodes: int | None = None,
    rates: str | None = None,
) -> Planned:
    """What `run` would do with this config; reads and checks everything it names, and runs and writes nothing.

    What is not here is taken as `architecture` and `expected` have it. With so many `gpus` on so many `nodes` (8 on each by default) the run is simulated there: by `rates` (a run folder, whose
    calls were timed, or figures as given_rates reads them), or by this machine's as a moment's clock has them.
    """
    from raysweep.engine.assumed import will_assume
    from raysweep.engine.by_kind import by_kind
    from raysweep.engine.cost import cost
    from raysweep.engine.driver import prepare
    from raysweep.engine.estimate import options, reckon
    from raysweep.engine.executor import backend_for
    from raysweep.engine.graph import beyond, shortened
    from raysweep.engine.paper import device_on_paper, rates_from, settled, simulated
    from raysweep.engine.pending import model_calls, spilled
    from raysweep.engine.plan import as_sized
    from raysweep.engine.steps import with_steps
    from raysweep.errors import InputError

    if isinstance(config, Config):
        config = parse_config(config.model_dump(), overrides=overrides)
    else:
        config = load_config(config, overrides)
    config = with_steps(config)
    if gpus is None and (nodes is not None or rates is not None):
        raise InputError("--nodes and --rates are for a simulation; give --gpus too")
    given = rates_from(rates, config) if rates is not None else None
    if gpus is not None or will_assume(config):
        facts, graph, folder = prepare(config, device_on_paper, may_assume=True)
        workers = 1
    else:
        backend = backend_for(config.execution)
        try:
            facts, graph, folder = prepare(config, backend.device)
            workers = backend.workers()
        finally:
            backend.close()
    facts = as_sized(facts)
    by_model = None if given is None else settled(given, facts)
    done = folder.committed() if folder.is_run else {}
    needed_graph = shortened(graph, done)
    tasks: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for task in needed_graph.tasks:
        before = tasks[task.kind]
        tasks[task.kind] = (before[0] + all(key in done for key in task.keys), before[1] + 1)
    needed = cost(config, facts, graph, done.keys() | beyond(graph, needed_graph))
    calls = list(model_calls(config, facts, needed_graph, done))
    reckoned = reckon(config, facts, calls, workers)
    left = reckoned.estimate
    told = reckoned if by_model is None else reckon(config, facts, calls, workers, by_model)
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
        options(config, facts, needed_graph, done),
        needed.identical,
        any(key not in done for task in graph.of_kind("stop") for key in task.keys),
        None if gpus is None else simulated(config, facts, needed_graph, done, gpus, nodes, by_model),
        facts.assumed,
        by_kind(config, facts, needed_graph, done, calls, told),
    )


def submit(
    config: Config | str | Path,
    address: str,
    overrides: Sequence[str] = (),
    *,
    working_dir: Path | None = None,
    python: str = "python",
    fresh: bool = False,
) -> Job:
    """Submit a run of a config to the Ray cluster whose dashboard is at `address`; see engine/ray_submit.py.

    Raises InputError where the config, the address, the token or the room that the cluster has will not do; no job is made then.
    """
    from raysweep.engine.ray_token import use_token

    use_token(starting=False)
    from raysweep.engine.ray_submit import submit as submit_job

    if isinstance(config, Config):
        config = parse_config(config.model_dump(), overrides=overrides)
    else:
        config = load_config(config, overrides)
    return submit_job(config, address, working_dir=working_dir, python=python, fresh=fresh)


def correlate_files(
    dynamics: str | Path, losses: str | Path, neighbourhood: int = 3, *, drop_ends: int = 0, diagonal: bool = True
) -> Correlated:
    """Correlate δ and losses measured elsewhere; see studies/measured.py for the files it reads."""
    from raysweep.studies.measured import correlate_measured, read_dynamics, read_losses

    _check_neighbourhood(neighbourhood, diagonal)
    curve = read_dynamics(dynamics, neighbourhood, diagonal=diagonal)
    return correlate_measured(curve, read_losses(losses), drop_ends=drop_ends)


def correlate_folders(
    dynamics: str | Path,
    losses: str | Path | None = None,
    neighbourhood: int = 3,
    *,
    drop_ends: int = 0,
    diagonal: bool = True,
) -> CorrelatedCells:
    """Correlate every cell of folders of such files, each as `correlate_files` does; see studies/measured_cells.py.

    Without `losses` both are in one folder, as `raysweep export --format paper` writes it.
    """
    from raysweep.studies.measured_cells import correlate_cells

    _check_neighbourhood(neighbourhood, diagonal)
    of_dynamics = Path(dynamics).expanduser()
    of_losses = of_dynamics if losses is None else Path(losses).expanduser()
    return correlate_cells(of_dynamics, of_losses, neighbourhood, drop_ends=drop_ends, diagonal=diagonal)


def _check_neighbourhood(neighbourhood: int, diagonal: bool) -> None:
    from raysweep.errors import InputError

    if neighbourhood < 1 or neighbourhood % 2 == 0:
        raise InputError(f"--neighbourhood {neighbourhood}: it has a layer in its middle, so it is odd")
    if neighbourhood == 1 and not diagonal:
        raise InputError("--neighbourhood 1 has no layer but its own; without the diagonal give 3 or more")


def critical(
    config: Config,
    *,
    top: int | None = None,
    resamples: int = 1000,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Critical:
    """The critical layers of a config's first model on its data sets, as its similarity study asks; writes nothing.

    The model is streamed from disk where it does not fit in memory. Raises InputError before anything is computed, and
    RunError where states cannot be compared.
    """
    from raysweep.engine.inspection import inspect
    from raysweep.engine.loading import batch_budget
    from raysweep.errors import InputError, RunError
    from raysweep.models.adapter import Adapter
    from raysweep.models.checkpoint import load_model
    from raysweep.models.stream import StreamedModel
    from raysweep.studies.critical import critical_layers

    asked = config.studies.similarity
    if asked is None:
        raise InputError("critical layers follow from similarity; give studies.similarity")
    facts = inspect(config)
    name, model = next(iter(facts.models.items()))
    if top is not None and not 1 <= top <= model.base.n_layers:
        raise InputError(
            f"--top {top}: '{model.base.source}' has {model.base.n_layers} decoder layers; give 1 to as many"
        )
    loaded: StreamedModel | Adapter
    if model.residency.mode == "stream":
        loaded = StreamedModel(model.base, dtype=model.dtype, device=facts.device)
    else:
        device_map = config.execution.device_map
        loaded = Adapter(load_model(model.base, dtype=model.dtype, device=facts.device, device_map=device_map))
    try:
        return critical_layers(
            loaded,
            {dataset: cell.examples for (of_model, dataset), cell in facts.cells.items() if of_model == name},
            top=top,
            metric=asked.metrics[0],
            pooling=asked.pooling,
            neighbourhood=asked.neighbourhood,
            diagonal=asked.diagonal,
            resamples=resamples,
            seed=seed,
            batch_tokens=batch_budget(config.execution.batch_tokens, facts.device),
            progress=progress,
        )
    except InputError as error:
        raise RunError(str(error)) from error


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
