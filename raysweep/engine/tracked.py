"""What of a run's results trackers are told: scalars, each at a place on an axis, from what is committed."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from raysweep.engine.graph import Graph, Task
from raysweep.studies.windows import Window

if TYPE_CHECKING:
    import pandas as pd

    from raysweep.engine.folder import RunFolder
    from raysweep.store.chunks import ChunkStore, Manifest

_UNUSUAL = re.compile(r"[^\w\-. /]")  # characters that MLflow takes in no name


class Scalars(NamedTuple):
    """Values by name at one place on an axis: a step of a training, a window's first layer, or 0 for what has no place."""

    axis: str
    place: int
    values: dict[str, float]


def training_keys(graph: Graph) -> dict[str, Task]:
    """The tasks that commit losses of trainings, by the keys of these."""
    return {task.results["training"]: task for task in graph.tasks if "training" in task.results}


def training_scalars(chunks: ChunkStore, tasks: Mapping[str, Task], keys: Collection[str]) -> Iterator[Scalars]:
    """The losses by step that were committed under those of `keys` that `tasks` has."""
    for key in keys:
        if key in tasks:
            rows = chunks.read_parts([key]).to_pandas()
            for row in _rows_of(rows.dropna(subset=["loss"])):
                name = _name("training", tasks[key], row.study, row.arm, f"seed {row.seed}", row.split)
                yield Scalars("training", int(row.step), {name: float(row.loss)})


def result_scalars(folder: RunFolder, graph: Graph) -> Iterator[Scalars]:
    """What the run found, as far as it is committed: ρ, differences of arms, and the mean cost of each window."""
    done = folder.committed()
    for task in graph.tasks:
        for table, figures in (("correlation", _correlations), ("adaptation", _differences)):
            if task.results.get(table) in done:
                rows = folder.chunks.read_parts([task.results[table]], done).to_pandas()
                if values := {name: value for name, value in figures(task, rows) if value == value}:  # no NaN
                    yield Scalars("result", 0, values)
    for model, dataset in dict.fromkeys((task.model, task.dataset) for task in graph.of_kind("substitute")):
        swept = graph.cell("estimate", model, dataset) or graph.cell("substitute", model, dataset)
        yield from _costs(folder.chunks, [task for task in swept if all(part in done for part in task.parts)], done)


def _costs(chunks: ChunkStore, swept: list[Task], done: Mapping[str, Manifest]) -> Iterator[Scalars]:
    """By window, the mean over examples of its loss less that of the tuned model untouched."""
    windows = {task.window: task for task in swept if isinstance(task.window, Window)}
    untouched = next((task for window, task in windows.items() if not window.width), None)
    if untouched is None:
        return
    rows = chunks.read_parts({part for task in windows.values() for part in task.parts}, done).to_pandas()
    by_part = {part: of.set_index("example_id")["loss"] for part, of in rows.groupby("part", sort=False)}
    tuned_E = _losses(by_part, untouched)
    for window, task in windows.items():
        if window.width:
            cost = float((_losses(by_part, task) - tuned_E).mean())
            if cost == cost:
                yield Scalars("window", window.start, {_name("window", task, f"width {window.width}", "cost"): cost})


def _losses(by_part: Mapping[str, pd.Series[float]], task: Task) -> pd.Series[float]:
    import pandas as pd

    return pd.concat([by_part[part] for part in task.parts])


def _correlations(task: Task, rows: pd.DataFrame) -> Iterator[tuple[str, float]]:
    for row in _rows_of(rows):
        yield _name("result", task, "rho", str(row.metric), f"width {row.width}"), float(row.spearman)


def _differences(task: Task, rows: pd.DataFrame) -> Iterator[tuple[str, float]]:
    for row in _rows_of(rows):
        yield _name("result", task, str(row.measure), f"{row.arm} against {row.versus}"), float(row.value)


def _rows_of(frame: pd.DataFrame) -> Iterator[Any]:
    """The rows as named tuples; a data frame does not tell the types of its columns."""
    return frame.itertuples(index=False)


def _name(axis: str, task: Task, *parts: Any) -> str:
    """A value's name, in levels: what it is placed on, model, data set, and the rest; a slash within one makes no level."""
    return "/".join(_UNUSUAL.sub("_", str(part)).replace("/", "_") for part in (axis, task.model, task.dataset, *parts))
