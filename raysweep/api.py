"""The calls behind the command line and `import raysweep`: run a config, open a run, write its report."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep import lab, signals
from raysweep.collector import collection_paused
from raysweep.config import Config, load_config, parse_config
from raysweep.config_beside import beside_told

if TYPE_CHECKING:
    import pandas as pd

    from raysweep.engine.accuracy import Accuracy
    from raysweep.engine.doctor import Examined
    from raysweep.engine.events import Listener
    from raysweep.engine.folder import RunFolder
    from raysweep.engine.ray_submit import Job
    from raysweep.engine.standing import Standing
    from raysweep.report.export import Exported
    from raysweep.store.places import Location
    from raysweep.studies.consolidate import Consolidated
    from raysweep.studies.critical import Critical
    from raysweep.studies.measured import Correlated
    from raysweep.studies.measured_cells import CorrelatedCells


@dataclass(frozen=True, repr=False)
class Run:
    """The results of a run: its folder, its tables and its report.

    Attributes:
        folder: The run folder. In an object store this, like `report`, is a path of universal-pathlib, used like pathlib's.
        tables: Data frames by name. A table is also an attribute: `run.substitution`.
        report: The report page.
        failed: The tasks that failed, each with its reason.
        accuracy: How well the run's estimate matched what it took; None if it had nothing to sweep or capture.
        warnings: What to know about the records, such as how many were cut or skipped.
        about: What the run's plan says about models, data sets and versions.
    """

    folder: Location
    tables: Mapping[str, pd.DataFrame]
    report: Location
    failed: Mapping[str, str] = field(default_factory=dict)
    accuracy: Accuracy | None = None
    warnings: Sequence[str] = ()
    about: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __getattr__(self, name: str) -> pd.DataFrame:
        if name.startswith("__"):  # copy and pickle look for their methods before there are tables
            raise AttributeError(name)
        try:
            return self.tables[name]
        except KeyError:
            raise AttributeError(f"this run has no table '{name}'; it has {', '.join(self.tables)}") from None

    @property
    def failure(self) -> str:
        """How many tasks are not done, and where the tracebacks are, in one line. Empty if all are done."""
        from raysweep.engine.folder import RunFolder

        n = len(self.failed)
        what = "1 task failed" if n == 1 else f"{n} tasks failed or depend on one that failed"
        return f"error: {what}; tracebacks are in {RunFolder(self.folder).events}" if n else ""

    def __repr__(self) -> str:
        rows = ", ".join(f"{name} {len(table):,}" for name, table in self.tables.items() if len(table))
        failed = f"; {len(self.failed)} tasks failed" if self.failed else ""
        return f"Run('{self.folder}', rows: {rows or 'none'}{failed})"

    def summary(self) -> list[str]:
        """Return the answer in a few lines.

        First comes what makes a sweep void, such as a tuned model that is the same as its base or no better. Then the costliest layers
        of every model and data set, their cost, how sure that is, and whether δ predicts them.
        """
        from raysweep.report.summary import summary_lines

        return summary_lines(self.tables, self.about)


def run(
    config: Config | Mapping[str, Any] | str | Path,
    overrides: str | Sequence[str] = (),
    *,
    fresh: bool = False,
    wait: bool | float = False,
    listener: Listener | None = None,
) -> Run:
    """Run a config to its end and draw the report; completed work is not repeated.

    Args:
        config: A config file, plain values as in YAML (paths, tuples and numpy's numbers are fine), or a `Config`.
        overrides: Keys to change, such as `"execution.chunk=16"`; one or several.
        fresh: Forget what the run folder has and compute everything again.
        wait: If another raysweep uses the run folder, wait until it ends: True for as long as that takes, a number to wait at
            most that many seconds.
        listener: Called with each event of the run, a mapping.

    Returns:
        The run folder's tables and report. `Run.failed` names the tasks that failed.

    Raises:
        InputError: The config, a checkpoint or a record is invalid; nothing was run. It is a FolderInUseError if another
            raysweep uses the run folder.
        RunError: The run folder can no longer be written to.
        Interrupted: SIGTERM or SIGHUP ended the run, if it runs in the main thread. It is a KeyboardInterrupt; uncaught, it ends
            the process with exit code 143 or 129. Handlers of the application are kept.
    """
    from raysweep.engine.disk import failures_told

    with collection_paused():
        from raysweep.engine.driver import drive
    from raysweep.store.places import location

    given, texts = config, [overrides] if isinstance(overrides, str) else list(overrides)
    if isinstance(config, (str, Path)):
        config = load_config(config, texts)
    else:
        try:
            values = config.model_dump() if isinstance(config, Config) else _plain_values(config)
        except RecursionError:  # values nested in themselves, which parse_config refuses
            values = config
        config = parse_config(values, overrides=texts)
    place = location(config.storage, config.storage_options)
    with signals.handled(), failures_told(place), beside_told(given, config):
        done = drive(config, fresh=fresh, wait=wait, listener=listener)
        return _reported(done.folder, done.failed)


def _plain_values(given: Any) -> Any:
    """A config's values as YAML gives them: texts for paths, lists for tuples and arrays, Python's numbers for numpy's."""
    if isinstance(given, os.PathLike):
        return lab.as_text(given)
    given = given.tolist() if hasattr(given, "tolist") else given
    if isinstance(given, Mapping):
        return {key: _plain_values(value) for key, value in given.items()}
    if isinstance(given, list | tuple | range):
        return [_plain_values(value) for value in given]
    return given


def open_run(folder: str | Location, storage_options: Mapping[str, Any] | None = None) -> Run:
    """Open a run folder: join its tables from what is committed, and draw its report again.

    Args:
        folder: The run folder, or its URL.
        storage_options: For a URL: options for fsspec's file system, as in a config.

    Returns:
        The run folder's tables and report.

    Raises:
        InputError: This is not a run folder.
    """
    from raysweep.engine.disk import failures_told
    from raysweep.engine.folder import RunFolder
    from raysweep.engine.reach import reach
    from raysweep.store.links import refuse_links

    found = RunFolder(reach(folder, storage_options))
    found.require_run()
    with failures_told(found.root):
        if isinstance(found.root, Path):
            refuse_links(found.root)
        return _reported(found, {})


def _reported(folder: RunFolder, failed: Mapping[str, str]) -> Run:
    import pandas as pd

    from raysweep.engine.accuracy import compare
    from raysweep.engine.events import read_events
    from raysweep.report.provenance import provenance
    from raysweep.report.records_words import records_warnings
    from raysweep.report.stored import write_stored_report
    from raysweep.report.tables import collect_tables, write_tables

    graph, about = folder.read_plan()
    tables = collect_tables(folder, graph)
    write_tables(folder, tables)
    if about.get("along"):
        tables["along"] = pd.DataFrame(about["along"])
    page = write_stored_report(tables, provenance(folder, graph, about, tables), folder.report)
    accuracy = compare(about.get("estimate"), read_events(folder.events))
    warnings = records_warnings(about["datasets"], about.get("warnings", ()))
    return Run(folder.root, tables, page, failed, accuracy, warnings, about)


def export_run(
    folder: str | Location,
    out: str | Path | None = None,
    format: str = "paper",
    storage_options: Mapping[str, Any] | None = None,
) -> Exported:
    """Export the committed work of a run as files of another program, into a local folder that is new or empty.

    Without `out` the folder is `<run folder>-<format>` in the current folder. The report is not written again. Raises InputError,
    with nothing written, if the folder is not a run folder, the format is unknown, `out` cannot be used, or no window was swept.
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
    """Write a sharded FSDP checkpoint as a Hugging Face folder, with its base's config and tokenizer."""
    from raysweep.studies.consolidate import consolidate as write

    return write(shards, base, out, dtype=dtype)


def status(folder: str | Location, storage_options: Mapping[str, Any] | None = None) -> Standing:
    """Return the status of the run in this folder, from its plan, its commits and its events."""
    from raysweep.engine.folder import RunFolder
    from raysweep.engine.reach import reach
    from raysweep.engine.standing import standing_of

    found = RunFolder(reach(folder, storage_options))
    found.require_run()
    return standing_of(found)


def examine(
    folder: str | Location,
    storage_options: Mapping[str, Any] | None = None,
    *,
    remove: bool = False,
    checksums: bool = False,
) -> Examined:
    """Find what killed runs and damaged files have left in a run folder; with `remove`, delete it.

    Raises InputError if the folder is not a run folder, or a run is using it.
    """
    from raysweep.engine.disk import failures_told
    from raysweep.engine.doctor import examine as examine_folder
    from raysweep.engine.folder import RunFolder
    from raysweep.engine.reach import reach

    found = RunFolder(reach(folder, storage_options, write=remove))
    with failures_told(found.root):
        return examine_folder(found, remove=remove, checksums=checksums)


def submit(
    config: Config | str | Path,
    address: str,
    overrides: Sequence[str] = (),
    *,
    working_dir: Path | None = None,
    python: str = "python",
    fresh: bool = False,
    wait_for_folder: bool = False,
) -> Job:
    """Submit a run of a config to the Ray cluster whose dashboard is at `address`.

    With `wait_for_folder` the job waits until another raysweep in the run folder ends. Raises InputError, and creates no job, if
    the config, the address or the token cannot be used, or the cluster is too small.
    """
    from raysweep.engine.ray_token import use_token

    use_token(starting=False)
    from raysweep.engine.ray_submit import submit as submit_job

    if isinstance(config, Config):
        config = parse_config(config.model_dump(), overrides=overrides)
    else:
        config = load_config(config, overrides)
    return submit_job(
        config, address, working_dir=working_dir, python=python, fresh=fresh, wait_for_folder=wait_for_folder
    )


def correlate_files(
    dynamics: str | Path, losses: str | Path, neighbourhood: int = 3, *, drop_ends: int = 0, diagonal: bool = True
) -> Correlated:
    """Correlate δ and losses that were measured elsewhere, from files."""
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
    """Correlate every cell of folders of such files, each as `correlate_files` does.

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
        raise InputError(f"--neighbourhood {neighbourhood}: it must be odd, because it is centred on a layer")
    if neighbourhood == 1 and not diagonal:
        raise InputError("--neighbourhood 1 contains only the layer itself; without the diagonal give 3 or more")


def critical(
    config: Config,
    *,
    top: int | None = None,
    resamples: int = 1000,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> Critical:
    """Find the critical layers of a config's first model on its data sets, with the settings of its similarity study.

    Writes nothing. The model is streamed from disk if it does not fit in memory. `warn` is called with each problem of the records,
    and with the date if the chat template reads the clock. Raises InputError before anything is computed, and RunError if states
    cannot be compared.
    """
    from raysweep.engine.inspection import inspect
    from raysweep.engine.loading import batch_budget
    from raysweep.engine.template_dates import date_texts
    from raysweep.errors import InputError, RunError
    from raysweep.models.adapter import Adapter
    from raysweep.models.loading import load_model
    from raysweep.models.stream import StreamedModel
    from raysweep.studies.critical import critical_layers

    asked = config.studies.similarity
    if asked is None:
        raise InputError("critical layers are computed from similarity; add studies.similarity")
    facts = inspect(config)
    name, model = next(iter(facts.models.items()))
    if top is not None and not 1 <= top <= model.base.n_layers:
        raise InputError(
            f"--top {top}: '{model.base.source}' has {model.base.n_layers} decoder layers; give a number from 1 to {model.base.n_layers}"
        )
    if warn:
        for text in (*facts.warnings, *date_texts(facts.template_dates, recorded=False)):
            warn(text)
    loaded: StreamedModel | Adapter
    if model.residency.mode == "stream":
        loaded = StreamedModel(model.base, dtype=model.dtype, device=facts.device)
    else:
        device_map = config.execution.device_map
        loaded = Adapter(load_model(model.base, dtype=model.dtype, device=facts.device, device_map=device_map))
    try:
        found = critical_layers(
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
    return replace(found, note=model.base.note)
