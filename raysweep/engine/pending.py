"""Which calls a graph still needs: pure functions of config, facts, graph and what is committed.

Parts of all tasks that share checkpoints and a chunk become one call; where layers are streamed, so do as many chunks as
their states fit in memory together.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from raysweep.config import Config
from raysweep.engine.calls import (
    CaptureCall,
    CapturePart,
    EstimateCall,
    GenerateCall,
    Loading,
    ModelCall,
    PairCall,
    RemovalCall,
    SubstituteCall,
    TrainCall,
)
from raysweep.engine.facts import Cell, Facts, ModelFacts
from raysweep.engine.graph import Graph, Task
from raysweep.engine.loading import loading_of
from raysweep.engine.result_calls import removal_call
from raysweep.engine.together import captures_together, chunks_in_passes, spill_words
from raysweep.engine.training_calls import training_calls
from raysweep.models.same import NOTHING
from raysweep.models.sizes import SIZES, hidden_size
from raysweep.studies.interventions import Change
from raysweep.studies.passes import group_passes, states_of_a_way_back
from raysweep.studies.windows import Window


def model_calls(
    config: Config, facts: Facts, graph: Graph, done: Collection[str], only: str | None = None
) -> Iterator[ModelCall]:
    """The calls for all parts that are not done, those that share checkpoints one after the other; of one model `only`.

    Tasks of two models or data sets that are equal in everything but the name share their keys; one call is enough.
    """
    taken = set(done)
    for call in _lacking(config, facts, graph, taken, only):
        if isinstance(call, PairCall):
            taken.update(call.keys)  # _lacking looks here again for every call
        if isinstance(call, SubstituteCall):
            taken.update(part.key for part in call.captures)
        if isinstance(call, RemovalCall | TrainCall):
            taken.update(call.results.values())
        if isinstance(call, TrainCall):
            taken.update((call.key, *call.steps.values()))
        yield call


def _lacking(
    config: Config, facts: Facts, graph: Graph, done: Collection[str], only: str | None
) -> Iterator[ModelCall]:
    for model in config.models:
        if only not in (None, model.name):
            continue
        of_model = facts.models[model.name]
        loading = loading_of(config, facts, of_model)
        cells = [cell for (name, _), cell in facts.cells.items() if name == model.name]
        if not loading.stream:
            yield from _captures(config, cells, graph, of_model, loading, done)
        for cell in cells:
            yield from training_calls(config, facts, graph, cell, of_model, loading, done)
            if cell.dataset in of_model.tuned:
                yield from _substitutions(config, cell, graph, of_model, loading, done)
                yield from _estimates(config, cell, graph, of_model, loading, done)
                yield from _generations(config, cell, graph, of_model, loading, done)
        for task in (task for cell in cells for task in graph.cell("removal", cell.model, cell.dataset)):
            if not task.needs and any(key not in done for key in task.results.values()):
                yield removal_call(config, facts, graph, task)
        if loading.stream:  # what no sweep of the same chunk takes along
            yield from _captures(config, cells, graph, of_model, loading, done)


def _captures(
    config: Config, cells: list[Cell], graph: Graph, model: ModelFacts, loading: Loading, done: Collection[str]
) -> Iterator[CaptureCall]:
    for cell in cells:
        tasks = graph.captured(cell.model, cell.dataset)
        for task in tasks[:1]:
            assert config.studies.pooling is not None
            lacking = [index for index, key in enumerate(task.parts) if key not in done]
            runs = captures_together(cell, lacking, model, loading) if loading.stream else [[i] for i in lacking]
            for indices in runs:
                yield CaptureCall(
                    f"capture {cell.model}/{cell.dataset} {_which(indices)}",
                    cell.model,
                    cell.dataset,
                    tuple(each.name for each in tasks),
                    model.compared(cell.dataset),
                    loading,
                    tuple(example for index in indices for example in cell.chunks[index]),
                    _capture_parts(cell, task, indices, indices),
                    config.studies.pooling,
                )


def _capture_parts(cell: Cell, task: Task, indices: list[int], chosen: Collection[int]) -> tuple[CapturePart, ...]:
    """The `chosen` of the chunks whose examples a call has, one after the other."""
    parts, first = [], 0
    for index in indices:
        stop, key = first + len(cell.chunks[index]), task.parts[index]
        if index in chosen:
            parts.append(CapturePart(key, f"{index:05d}-{key[:12]}", first, stop))
        first = stop
    return tuple(parts)


def _which(indices: list[int]) -> str:
    first, last = indices[0], indices[-1]
    if len(indices) == 1:
        return f"chunk {first}"
    return f"chunks {first}-{last}" if len(indices) == last - first + 1 else f"chunks {', '.join(map(str, indices))}"


def window_names(changes: Collection[Change]) -> str:
    """A short text for the changes of one fused call: the range of layers they cover, or the only one's own."""
    if len(changes) == 1:
        return next(iter(changes)).text
    layers = [layer for c in changes for layer in (range(*c) if isinstance(c, Window) else c.chosen)]
    return Window(min(layers), max(layers) + 1).layers if layers else "none"


def _distinct(tasks: list[Task], index: int) -> list[Task]:
    """The first of all tasks that are one part of a chunk."""
    first = {task.parts[index]: task for task in reversed(tasks)}
    return [task for task in tasks if first[task.parts[index]] is task]


def _groups(tasks: list[Task], fuse: bool) -> list[list[Task]]:
    return [tasks] if fuse else [[task] for task in tasks]


def _substitutions(
    config: Config, cell: Cell, graph: Graph, model: ModelFacts, loading: Loading, done: Collection[str]
) -> Iterator[SubstituteCall]:
    tasks = graph.cell("substitute", cell.model, cell.dataset)
    runs: list[tuple[list[Task], list[int]]] = []
    for index in range(len(tasks[0].parts) if tasks else 0):  # a sweep that stopped has fewer than the cell
        missing = [task for task in tasks if task.parts[index] not in done]
        if missing and loading.stream and runs and runs[-1][0] == missing:
            runs[-1][1].append(index)
        elif missing:
            runs.append((missing, [index]))
    rides = loading.stream and config.execution.fuse and cell.swept == cell.chunks  # else other examples are together
    rides = rides and not model.measured  # their states are another checkpoint's
    along = graph.captured(cell.model, cell.dataset) if rides else []
    for missing, whole in runs:
        riding = [index for task in along[:1] for index in whole if task.parts[index] not in done]
        if loading.stream:
            passes = chunks_in_passes(cell, whole, missing, model, loading, riding)
            together = [[whole[place] for place in each.batches] for each in passes]
        else:
            together = [[index] for index in whole]
        for indices in together:
            for group in _groups(missing, config.execution.fuse):
                lacking = [index for index in indices if any(task.parts[index] not in done for task in group)]
                if lacking:  # without fusing, an equal one may be taken by now
                    yield _substitution(config, cell, group, lacking, model, loading, along, riding)


def _substitution(
    config: Config,
    cell: Cell,
    tasks: list[Task],
    indices: list[int],
    model: ModelFacts,
    loading: Loading,
    along: list[Task],
    riding: list[int],
) -> SubstituteCall:
    """The call for these tasks and chunks, with the captures `along` of those `riding`."""
    chosen = _distinct(tasks, indices[0])
    windows = tuple(task.window for task in chosen if task.window is not None)
    chunks = [cell.swept[index] for index in indices]
    captures = tuple(part for task in along[:1] for part in _capture_parts(cell, task, indices, riding))
    return SubstituteCall(
        f"substitute {cell.model}/{cell.dataset} {window_names(windows)} {_which(indices)}",
        cell.model,
        cell.dataset,
        (*(task.name for task in tasks), *(task.name for task in along if captures)),
        model.base,
        loading,
        tuple(example for chunk in chunks for example in chunk),
        model.tuned[cell.dataset],
        windows,
        tuple(task.parts[index] for index in indices for task in chosen),
        model.same.get(cell.dataset, NOTHING),
        tuple(map(len, chunks)),
        captures,
        config.studies.pooling or "last",
    )


def _estimates(
    config: Config, cell: Cell, graph: Graph, model: ModelFacts, loading: Loading, done: Collection[str]
) -> Iterator[EstimateCall]:
    """One call a chunk; where layers are streamed, as many chunks as their states at all layers fit."""
    tasks = graph.cell("estimate", cell.model, cell.dataset)
    if not tasks:
        return
    assert config.studies.substitution is not None
    chosen = _distinct(tasks, 0)
    lacking = [i for i in range(len(cell.swept)) if any(task.parts[i] not in done for task in chosen)]
    per_token = states_of_a_way_back(model.base.n_layers) * hidden_size(model.base.config) * SIZES[loading.dtype]
    needs = [sum(e.length for e in cell.swept[i]) * per_token for i in lacking]
    together = (
        group_passes(needs, model.residency.room) if loading.stream else [[place] for place in range(len(lacking))]
    )
    for indices in ([lacking[place] for place in places] for places in together):
        windows = tuple(task.window for task in chosen if task.window is not None)
        chunks = [cell.swept[index] for index in indices]
        yield EstimateCall(
            f"estimate {cell.model}/{cell.dataset} {window_names(windows)} {_which(indices)}",
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
    model: ModelFacts,
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
            model.base,
            loading,
            tuple(cell.examples[: asked.examples]),
            model.tuned[cell.dataset],
            windows,
            tuple(task.results["generation"] for task in group),
            asked.tokens,
            model.texts.ends(cell.dataset),
        )


def spilled(config: Config, facts: Facts, graph: Graph) -> dict[str, list[str]]:
    """For each model that is streamed with a spill folder, what of its states will wait there, in words for each data set."""
    return spill_words(
        facts,
        lambda model, dataset: graph.cell("substitute", model, dataset),
        lambda model: loading_of(config, facts, facts.models[model]),
    )
