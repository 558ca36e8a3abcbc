"""Calls: what a worker is handed, and what it hands back.

A call fuses the parts of all tasks that share checkpoints and a chunk. It carries names, paths, tokens and keys, never a
model. Which calls a graph still needs is decided here, by pure functions; running them is work.py's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from raysweep.config import Config
from raysweep.data.examples import Example
from raysweep.engine.graph import Graph, Task
from raysweep.engine.inspection import Cell, Facts, ModelFacts
from raysweep.engine.plan import VERIFIED, drawn, hidden_size, window_names
from raysweep.fingerprint import fingerprint
from raysweep.models.checkpoint import Checkpoint
from raysweep.models.same import NOTHING, Same
from raysweep.store.artifacts import FileEntry
from raysweep.studies.interventions import Change
from raysweep.studies.passes import group_passes, most_states
from raysweep.studies.windows import Window

if TYPE_CHECKING:
    import pyarrow as pa


Failure = Literal["refused", "raised", "lost", "unstarted"]


@dataclass(frozen=True)
class Loading:
    """How a call's models are loaded, and the padded tokens of one block call."""

    dtype: str
    device: str
    device_map: str | Mapping[str, Any] | None
    batch_tokens: int
    stream: bool = False
    memory: int | None = None


@dataclass(frozen=True)
class Call:
    """One unit for a worker. `tasks` are the names of the tasks it works on."""

    name: str
    model: str
    dataset: str
    tasks: tuple[str, ...]

    @property
    def affinity(self) -> tuple[str, ...]:
        """Fingerprints of the checkpoints that a worker must have loaded for it, the base's first."""
        return ()

    @property
    def kind(self) -> str:
        """What it does, in a word: the first of its name."""
        return self.name.partition(" ")[0]


@dataclass(frozen=True)
class ModelCall(Call):
    """A call that runs a model over examples."""

    base: Checkpoint
    loading: Loading
    examples: tuple[Example, ...]

    @property
    def affinity(self) -> tuple[str, ...]:
        """The base's fingerprint."""
        return (self.base.fingerprint,)


@dataclass(frozen=True)
class PairCall(ModelCall):
    """A call that runs a tuned model with `windows` of its layers put back to the base's; `keys` has one a window."""

    tuned: Checkpoint
    windows: tuple[Change, ...]
    keys: tuple[str, ...]

    @property
    def affinity(self) -> tuple[str, ...]:
        """The fingerprints of base and tuned."""
        return (self.base.fingerprint, self.tuned.fingerprint)


@dataclass(frozen=True)
class SubstituteCall(PairCall):
    """One pass over one chunk for all windows; over several where layers are streamed.

    `same` is what the plan took base and tuned to have in common. `sizes` are the examples of each chunk, and `keys` has one
    a window for the first chunk, then for the next, …
    """

    same: Same
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class VerifyCall(PairCall):
    """Losses of a few examples under a few changes, taken again; `parts` has the sweep's own for each. One key for all."""

    parts: tuple[str, ...]


@dataclass(frozen=True)
class GenerateCall(PairCall):
    """Text of a few examples under each of the windows."""

    new_tokens: int


@dataclass(frozen=True)
class CaptureCall(ModelCall):
    """Activations of one chunk, written to the store under the name `part`."""

    key: str
    part: str
    pooling: str


@dataclass(frozen=True)
class SimilarityCall(Call):
    """Similarity, dynamics and health of all captured chunks of a cell."""

    parts: tuple[str, ...]
    results: Mapping[str, str]
    metrics: tuple[str, ...]
    neighbourhood: int
    pooling: str
    resamples: int
    seed: int


@dataclass(frozen=True)
class CorrelateCall(Call):
    """Correlation of a cell's dynamics with its losses; both are read from what is committed."""

    key: str
    parts: tuple[str, ...]
    pooling: str
    losses: Mapping[Window, tuple[str, ...]]
    metrics: tuple[str, ...]
    neighbourhood: int
    resamples: int
    seed: int
    drop_ends: int


@dataclass(frozen=True)
class Commit:
    """Rows (with a column `part`) and files to commit together, and the keys that this makes done."""

    name: str
    keys: tuple[str, ...]
    table: pa.Table | None
    files: tuple[FileEntry, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What came of a call: commits, or an error with its traceback; `measured` has seconds and counts.

    Of a call with an error `failure` says what kind: `refused` for one of raysweep's own errors, which would come again;
    `raised` for any other exception; `lost` where the worker died while it ran the call; `unstarted` where the worker died
    before, so that the call is not to blame.
    """

    call: Call
    commits: tuple[Commit, ...] = ()
    measured: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    traceback: str | None = None
    failure: Failure = "raised"


def commit_name(kind: str, model: str, dataset: str, keys: Sequence[str]) -> str:
    """A file name for a commit: readable, and unique for the set of keys."""
    return f"{kind}-{model[:40]}-{dataset[:40]}-{fingerprint(sorted(keys))[:16]}"


def batch_budget(asked: int | Literal["auto"], device: str) -> int:
    """Padded tokens of one block call.

    `auto` is 8192 on an accelerator; on a CPU 1024, where products are as fast as they get and states stay in its caches.
    """
    if asked == "auto":
        return 1024 if device == "cpu" else 8192
    return asked


def model_calls(config: Config, facts: Facts, graph: Graph, done: Collection[str]) -> Iterator[ModelCall]:
    """The calls for all parts that are not done, those that share checkpoints one after the other.

    Tasks of two models or data sets that are equal in everything but the name share their keys; one call is enough.
    """
    taken = set(done)
    for call in _lacking(config, facts, graph, taken):
        if isinstance(call, PairCall):
            taken.update(call.keys)  # _lacking looks here again for every call
        yield call


def _loading(config: Config, facts: Facts, model: ModelFacts) -> Loading:
    budget = batch_budget(config.execution.batch_tokens, facts.device)
    at = model.residency
    return Loading(model.dtype, facts.device, config.execution.device_map, budget, at.mode == "stream", at.memory)


def _verification(config: Config, facts: Facts, graph: Graph, task: Task) -> VerifyCall:
    model, cell = facts.models[task.model], facts.cells[task.model, task.dataset]
    chosen = drawn(config, graph.cell("substitute", task.model, task.dataset))
    return VerifyCall(
        task.name,
        task.model,
        task.dataset,
        (task.name,),
        model.base,
        _loading(config, facts, model),
        cell.chunks[0][:VERIFIED],
        model.tuned[task.dataset],
        tuple(t.window for t in chosen if t.window is not None),
        (task.results["verification"],),
        tuple(t.parts[0] for t in chosen),
    )


def _lacking(config: Config, facts: Facts, graph: Graph, done: Collection[str]) -> Iterator[ModelCall]:
    for model in config.models:
        of_model = facts.models[model.name]
        loading = _loading(config, facts, of_model)
        cells = [cell for (name, _), cell in facts.cells.items() if name == model.name]
        for cell in cells:
            for task in graph.cell("similarity", model.name, cell.dataset):
                yield from _captures(config, cell, task, of_model.base, loading, done)
        for cell in cells:
            if cell.dataset in of_model.tuned:
                pair = (of_model.base, of_model.tuned[cell.dataset])
                same = of_model.same.get(cell.dataset, NOTHING)
                yield from _substitutions(config, cell, graph, pair, loading, of_model.residency.room, done, same)
                yield from _generations(config, cell, graph, pair, loading, done)


def _captures(
    config: Config, cell: Cell, task: Task, base: Checkpoint, loading: Loading, done: Collection[str]
) -> Iterator[CaptureCall]:
    assert config.studies.similarity is not None
    for index, (chunk, key) in enumerate(zip(cell.chunks, task.parts, strict=True)):
        if key not in done:
            yield CaptureCall(
                f"capture {cell.model}/{cell.dataset} chunk {index}",
                cell.model,
                cell.dataset,
                (task.name,),
                base,
                loading,
                chunk,
                key,
                f"{index:05d}-{key[:12]}",
                config.studies.similarity.pooling,
            )


def _groups(tasks: list[Task], fuse: bool) -> list[list[Task]]:
    return [tasks] if fuse else [[task] for task in tasks]


def _substitutions(
    config: Config,
    cell: Cell,
    graph: Graph,
    pair: tuple[Checkpoint, Checkpoint],
    loading: Loading,
    room: int,
    done: Collection[str],
    same: Same,
) -> Iterator[SubstituteCall]:
    tasks = graph.cell("substitute", cell.model, cell.dataset)
    runs: list[tuple[list[Task], list[int]]] = []
    for index in range(len(cell.chunks)):
        missing = [task for task in tasks if task.parts[index] not in done]
        if missing and loading.stream and runs and runs[-1][0] == missing:
            runs[-1][1].append(index)
        elif missing:
            runs.append((missing, [index]))
    for missing, whole in runs:
        for indices in _together(cell, whole, missing, pair[0], loading, room, same):
            for group in _groups(missing, config.execution.fuse):
                lacking = [index for index in indices if any(task.parts[index] not in done for task in group)]
                if lacking:  # without fusing, an equal one may be taken by now
                    yield _substitution(cell, group, lacking, pair, loading, same)


def _together(
    cell: Cell, indices: list[int], tasks: list[Task], base: Checkpoint, loading: Loading, room: int, same: Same
) -> list[list[int]]:
    """Runs of chunks whose states fit in memory together, so that each layer is read once for all of a run."""
    if not loading.stream:
        return [[index] for index in indices]
    windows = [task.window for task in tasks if task.window is not None]
    size = 4 if loading.dtype == "float32" else 2
    per_token = most_states(base.n_layers, windows, same) * hidden_size(base.config) * size
    needs = [sum(example.length for example in cell.chunks[index]) * per_token for index in indices]
    return [[indices[place] for place in places] for places in group_passes(needs, room)]


def _substitution(
    cell: Cell,
    tasks: list[Task],
    indices: list[int],
    pair: tuple[Checkpoint, Checkpoint],
    loading: Loading,
    same: Same,
) -> SubstituteCall:
    first = {task.parts[indices[0]]: task for task in reversed(tasks)}  # of tasks that are one part
    chosen = [task for task in tasks if first[task.parts[indices[0]]] is task]
    windows = tuple(task.window for task in chosen if task.window is not None)
    chunks = [cell.chunks[index] for index in indices]
    which = f"chunk {indices[0]}" if len(indices) == 1 else f"chunks {indices[0]}-{indices[-1]}"
    return SubstituteCall(
        f"substitute {cell.model}/{cell.dataset} {window_names(windows)} {which}",
        cell.model,
        cell.dataset,
        tuple(task.name for task in tasks),
        pair[0],
        loading,
        tuple(example for chunk in chunks for example in chunk),
        pair[1],
        windows,
        tuple(task.parts[index] for index in indices for task in chosen),
        same,
        tuple(map(len, chunks)),
    )


def _generations(
    config: Config,
    cell: Cell,
    graph: Graph,
    pair: tuple[Checkpoint, Checkpoint],
    loading: Loading,
    done: Collection[str],
) -> Iterator[GenerateCall]:
    tasks = [t for t in graph.cell("generate", cell.model, cell.dataset) if t.results["generation"] not in done]
    if not tasks:
        return
    assert config.studies.substitution is not None
    asked = config.studies.substitution.generate
    assert asked is not None
    for group in _groups(tasks, config.execution.fuse):
        windows = tuple(task.window for task in group if task.window is not None)
        yield GenerateCall(
            f"generate {cell.model}/{cell.dataset} {window_names(windows)}",
            cell.model,
            cell.dataset,
            tuple(task.name for task in group),
            pair[0],
            loading,
            tuple(cell.examples[: asked.examples]),
            pair[1],
            windows,
            tuple(task.results["generation"] for task in group),
            asked.tokens,
        )


def result_call(config: Config, facts: Facts, graph: Graph, task: Task) -> SimilarityCall | CorrelateCall | VerifyCall:
    """The call that makes a task's tables out of what is committed."""
    if task.kind == "verify":
        return _verification(config, facts, graph, task)
    similarity = config.studies.similarity
    assert similarity is not None
    correlation = config.studies.correlation
    resamples, seed = (correlation.resamples, correlation.seed) if correlation else (1000, 0)
    if task.kind == "similarity":
        return SimilarityCall(
            task.name,
            task.model,
            task.dataset,
            (task.name,),
            task.parts,
            task.results,
            tuple(similarity.metrics),
            similarity.neighbourhood,
            similarity.pooling,
            resamples,
            seed,
        )
    assert correlation is not None
    swept = graph.cell("substitute", task.model, task.dataset)
    losses = {t.window: t.parts for t in swept if isinstance(t.window, Window)}
    return CorrelateCall(
        task.name,
        task.model,
        task.dataset,
        (task.name,),
        task.results["correlation"],
        graph.cell("similarity", task.model, task.dataset)[0].parts,
        similarity.pooling,
        losses,
        tuple(similarity.metrics),
        similarity.neighbourhood,
        resamples,
        seed,
        correlation.drop_ends,
    )
