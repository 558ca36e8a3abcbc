"""The layers of one or two streamed checkpoints in order, each read once, the next ones on their way meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing

from torch import nn

from raysweep.models.prefetch import one_ahead
from raysweep.models.stream import SLOTS, StreamedModel

Wanted = Sequence[tuple[StreamedModel, int]]  # the layers that are needed at the same time


def streamed_layers(steps: Sequence[Wanted]) -> Generator[list[nn.Module]]:
    """The modules that each step wants, filled; they are empty again when the next step's are asked for.

    A step wants at most one layer of a checkpoint. Raises InputError where a read fails. Close the iterator where it may
    not be run to its end: no thread is left then.
    """
    models = list({id(model): model for wanted in steps for model, _ in wanted}.values())
    for model in models:
        model.files.stop.clear()

    def stop() -> None:
        for model in models:
            model.files.stop.set()

    turns = dict.fromkeys(map(id, models), 0)
    placed: list[list[tuple[StreamedModel, int, int]]] = []
    for wanted in steps:
        placed.append([(model, layer, turns[id(model)] % SLOTS) for model, layer in wanted])
        for model, _ in wanted:
            turns[id(model)] += 1

    def job(step: list[tuple[StreamedModel, int, int]]) -> Callable[[], list[tuple[StreamedModel, int, int]]]:
        def fetch() -> list[tuple[StreamedModel, int, int]]:
            for model, layer, slot in step:
                model.fetch(layer, slot)
            return step

        return fetch

    try:
        with closing(one_ahead([job(step) for step in placed], stop)) as fetched:
            for step in fetched:
                try:
                    yield [model.bind(layer, slot) for model, layer, slot in step]
                finally:
                    for model, layer, slot in step:
                        model.release(layer, slot)
    finally:
        for model in models:
            model.close()
