"""Which calls a graph still needs: pure functions of config, facts, graph and what is committed.

Parts of all tasks that share checkpoints and a chunk become one call; where layers are streamed, so do as many chunks as
their states fit in memory together.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Literal

from raysweep.config import Config
from raysweep.engine.calls import (
    CaptureCall,
    CorrelateCall,
    EstimateCall,
    GenerateCall,
    Loading,
    ModelCall,
    PairCall,
    SimilarityCall,
    SubstituteCall,
    VerifyCall,
)
from raysweep.engine.graph import Graph, Task
from raysweep.engine.inspection import Cell, Facts, ModelFacts
from raysweep.engine.plan import VERIFIED, drawn, hidden_size, window_names
from raysweep.models.checkpoint import Checkpoint
from raysweep.models.same import NOTHING, Same
from raysweep.studies.passes import group_passes, most_states, states_of_a_way_back
from raysweep.studies.windows import Window


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
        cell.swept[0][:VERIFIED],
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
                yield from _estimates(config, cell, graph, of_model, loading, done)
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
    for index in range(len(cell.swept)):
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
    needs = [sum(example.length for example in cell.swept[index]) * per_token for index in indices]
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
    chunks = [cell.swept[index] for index in indices]
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


def _estimates(
    config: Config, cell: Cell, graph: Graph, model: ModelFacts, loading: Loading, done: Collection[str]
) -> Iterator[EstimateCall]:
    """One call a chunk; where layers are streamed, as many chunks as their states at all layers fit."""
    tasks = graph.cell("estimate", cell.model, cell.dataset)
    if not tasks:
        return
    assert config.studies.substitution is not None
    chosen = list({task.parts[0]: task for task in reversed(tasks)}.values())[::-1]  # of tasks that are one part
    lacking = [i for i in range(len(cell.swept)) if any(task.parts[i] not in done for task in chosen)]
    per_token = (
        states_of_a_way_back(model.base.n_layers)
        * hidden_size(model.base.config)
        * (4 if loading.dtype == "float32" else 2)
    )
    needs = [sum(e.length for e in cell.swept[i]) * per_token for i in lacking]
    together = (
        group_passes(needs, model.residency.room) if loading.stream else [[place] for place in range(len(lacking))]
    )
    for indices in ([lacking[place] for place in places] for places in together):
        windows = tuple(task.window for task in chosen if task.window is not None)
        which = f"chunk {indices[0]}" if len(indices) == 1 else f"chunks {indices[0]}-{indices[-1]}"
        chunks = [cell.swept[index] for index in indices]
        yield EstimateCall(
            f"estimate {cell.model}/{cell.dataset} {window_names(windows)} {which}",
            cell.model,
            cell.dataset,
            tuple(task.name for task in tasks),
            model.base,
            loading,
            tuple(example for chunk in chunks for example in chunk),
            model.tuned[cell.dataset],
            windows,
            tuple(task.parts[index] for index in indices for task in chosen),
            tuple(map(len, chunks)),
            config.studies.substitution.points,
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
    cell = (task.model, task.dataset)
    swept = graph.cell("estimate", *cell) or graph.cell("substitute", *cell)
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
