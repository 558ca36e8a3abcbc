"""Which chunks go through streamed layers together, and which of their states wait on disk. Pure, but for a look at the disk.

Chunks that share a pass share a call. The worker measures what its states really take and may wait on disk (streamed.py);
here the same arithmetic is done on the chunks' tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from raysweep.engine.calls import Loading
from raysweep.engine.facts import Cell, Facts, ModelFacts
from raysweep.engine.graph import Task
from raysweep.models.checkpoint import Checkpoint
from raysweep.models.same import NOTHING, layer_of
from raysweep.models.sizes import SIZES, hidden_size
from raysweep.studies.passes import Disk, Need, Pass, choose_passes, disk_trips, group_passes, most_states
from raysweep.studies.shelf import free_on_disk


def _state_bytes(base: Checkpoint, dtype: str) -> int:
    """Bytes of one token's state."""
    return hidden_size(base.config) * SIZES.get(dtype, 4)


def chunks_in_passes(
    cell: Cell,
    indices: Sequence[int],
    tasks: Sequence[Task],
    model: ModelFacts,
    loading: Loading,
    riding: Collection[int] = (),
) -> list[Pass]:
    """Passes over the chunks with these indices, by their places among them; the activations of those `riding` are
    captured on the way."""
    same = model.same.get(cell.dataset, NOTHING)
    windows = [task.window for task in tasks if task.window is not None]
    states, token = most_states(model.base.n_layers, windows, same), _state_bytes(model.base, loading.dtype)
    needs = [
        Need(
            sum(example.length for example in cell.swept[index]) * states * token,
            sum(e.n_prompt + model.base.n_layers for e in cell.swept[index]) * token if index in riding else 0,
        )
        for index in indices
    ]
    free = free_on_disk(Path(loading.spill)) if loading.spill is not None else None
    if free is None:
        return choose_passes(needs, model.residency.room)
    weights = sum(_layer_bytes(checkpoint) for checkpoint in (model.base, model.tuned[cell.dataset]))
    disk = Disk(free, weights, disk_trips(model.base.n_layers, windows, same))
    longest = max((example.length for index in indices for example in cell.swept[index]), default=0)
    return choose_passes(needs, model.residency.room, disk, max(loading.batch_tokens, longest) * states * token)


def captures_together(cell: Cell, indices: Sequence[int], model: ModelFacts, loading: Loading) -> list[list[int]]:
    """Runs of chunks whose activations are captured in one pass."""
    token = _state_bytes(model.base, loading.dtype)
    needs = [sum(e.n_prompt + model.base.n_layers for e in cell.chunks[index]) * token for index in indices]
    return [[indices[place] for place in places] for places in group_passes(needs, model.residency.room)]


def _layer_bytes(checkpoint: Checkpoint) -> int:
    """About how many bytes of the checkpoint's files are its layers'."""
    sizes = {name: _product(shape) for name, shape in checkpoint.shapes.items()}
    of_layers = sum(size for name, size in sizes.items() if layer_of(name) is not None)
    return checkpoint.bytes * of_layers // max(1, sum(sizes.values()))


def _product(shape: Sequence[int]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


def spill_words(
    facts: Facts, tasks_of: Callable[[str, str], list[Task]], loading: Callable[[str], Loading]
) -> dict[str, list[str]]:
    """For each model that is streamed with a spill folder, what of its states will wait there, in words for each data set."""
    told: dict[str, list[str]] = {}
    for (name, dataset), cell in facts.cells.items():
        model, how, tasks = facts.models[name], loading(name), tasks_of(name, dataset)
        if not (tasks and how.stream and how.spill):
            continue
        every = range(len(cell.chunks))
        passes = chunks_in_passes(cell, every, tasks, model, how)
        without = len(chunks_in_passes(cell, every, tasks, model, replace(how, spill=None)))
        waiting = sum(each.bytes_on_disk for each in passes)
        if waiting:
            words = (
                f"{waiting / 1e9:.2f} GB of states of {dataset} are kept in '{how.spill}', which takes {_passes(len(passes))} "
                f"over the weights instead of {_passes(without)}: fewer bytes in total"
            )
        elif without == 1:
            words = f"no states of {dataset} are kept on disk, because all of them fit in memory"
        else:
            words = (
                f"no states of {dataset} are kept on disk, because {_passes(without)} over the weights move fewer bytes"
            )
        told.setdefault(name, []).append(words)
    return told


def _passes(n: int) -> str:
    return "1 pass" if n == 1 else f"{n} passes"
