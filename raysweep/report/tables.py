"""The result tables: what is committed for the tasks of a run, joined, named and written as Parquet.

Only the tasks of the run's latest plan are shown; what an earlier config asked for is kept in the folder and not shown.
Columns and their order are the contract; see the README.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from raysweep.store.artifacts import publish

if TYPE_CHECKING:
    from raysweep.engine.folder import RunFolder
    from raysweep.engine.graph import Graph, Task

COLUMNS: dict[str, tuple[str, ...]] = {
    "substitution": (
        *("model", "dataset", "kind", "layers", "start", "stop", "width", "centre", "coefficient", "estimator"),
        *("example_id", "n_tokens", "loss"),
    ),
    "similarity": (
        *("model", "other", "dataset", "metric", "layer_i", "layer_j", "value", "ci_low", "ci_high", "reason"),
    ),
    "dynamics": ("model", "dataset", "metric", "neighbourhood", "layer", "delta", "ci_low", "ci_high", "rank"),
    "health": ("model", "dataset", "layer", "measure", "value", "warning"),
    "correlation": (
        *("model", "dataset", "metric", "width", "neighbourhood", "n_layers", "spearman", "ci_low", "ci_high"),
        *("p_shift", "partial_depth", "kendall", "precision_at_k"),
    ),
    "generation": ("model", "dataset", "example_id", "intervention", "prompt", "reference", "text"),
}


def keys_of(graph: Graph, table: str) -> dict[str, Task]:
    """The key of every part of one table, in the order of the graph, with its task."""
    if table == "substitution":
        return {key: task for task in graph.of_kind("substitute") for key in task.parts}
    return {task.results[table]: task for task in graph.tasks if table in task.results}


def collect_tables(folder: RunFolder, graph: Graph) -> dict[str, pd.DataFrame]:
    """Every table of which something is committed; rows in the order of the graph, whatever the order of computation."""
    done = folder.committed()
    tables = {}
    for name in COLUMNS:
        tasks = {key: task for key, task in keys_of(graph, name).items() if key in done}
        if tasks:
            tables[name] = _named(folder.chunks.read_parts(tasks).to_pandas(), tasks, name)
    return tables


def _named(rows: pd.DataFrame, tasks: dict[str, Task], table: str) -> pd.DataFrame:
    rows = rows.assign(
        model=rows["part"].map({key: task.model for key, task in tasks.items()}),
        dataset=rows["part"].map({key: task.dataset for key, task in tasks.items()}),
    )
    return rows[list(COLUMNS[table])].reset_index(drop=True)


def write_tables(folder: RunFolder, tables: dict[str, pd.DataFrame], *, keep: Collection[str] = ()) -> None:
    """Publish results/<table>.parquet for each table, and remove those of tables that the run does not have."""
    for name, rows in tables.items():
        table = pa.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata(None)
        publish(folder.results / f"{name}.parquet", partial(pq.write_table, table))
    for name in COLUMNS:
        if name not in tables and name not in keep:
            (folder.results / f"{name}.parquet").unlink(missing_ok=True)
