"""The result tables: what is committed for the tasks of a run, joined, named and written as Parquet.

Only the tasks of the run's latest plan are shown; what an earlier config asked for is kept in the folder and not shown.
Columns and their order are the contract; columns.py declares them.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from raysweep.report.arms_in_part import with_arms_in_part, with_arms_that_lack, with_judged_in_part
from raysweep.report.columns import TABLES
from raysweep.store.artifacts import publish
from raysweep.store.owned_files import keep_only
from raysweep.studies.interventions import relabelled

if TYPE_CHECKING:
    from raysweep.engine.folder import RunFolder
    from raysweep.engine.graph import Graph, Task

COLUMNS: dict[str, tuple[str, ...]] = {name: tuple(table.columns) for name, table in TABLES.items()}


def keys_of(graph: Graph, table: str) -> list[tuple[str, Task]]:
    """The key of every part of one table with its task, in the order of the graph; equal tasks share their keys."""
    if table == "substitution":
        return [(key, task) for task in graph.tasks if task.kind in ("substitute", "estimate") for key in task.parts]
    return [(task.results[table], task) for task in graph.tasks if table in task.results]


def collect_tables(folder: RunFolder, graph: Graph) -> dict[str, pd.DataFrame]:
    """Every table of which something is committed; rows in the order of the graph, whatever the order of computation.

    Of adaptation also the cells that are trained in part, where it is not committed; of attack also the arms that failed.
    """
    done = folder.committed()
    graph = with_judged_in_part(graph, done)
    tables = {}
    for name in COLUMNS:
        owned = [(key, task) for key, task in keys_of(graph, name) if key in done]
        if owned:
            named = [(key, task.model, task.dataset) for key, task in owned]
            owners = pd.DataFrame(named, columns=["part", "model", "dataset"])
            rows = folder.chunks.read_parts(owners["part"].unique(), done).to_pandas()
            if name == "substitution":
                joined = relabelled(rows, owners, [task.window for _, task in owned if task.window is not None])
            else:
                joined = owners.merge(rows, on="part")
            tables[name] = joined[list(COLUMNS[name])]
    arms = with_arms_in_part(tables.get("adaptation"), folder, graph, done)
    if arms is not None:
        tables["adaptation"] = arms[list(COLUMNS["adaptation"])]
    if "attack" in tables:
        tables["attack"] = with_arms_that_lack(tables["attack"], folder, graph)
    return {name: tables[name] for name in COLUMNS if name in tables}


def write_tables(folder: RunFolder, tables: dict[str, pd.DataFrame]) -> None:
    """Publish results/<table>.parquet for each table, and remove those of tables that the run no longer has."""
    for name, rows in tables.items():
        table = pa.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata(None)
        publish(folder.results / f"{name}.parquet", partial(pq.write_table, table))
    keep_only(folder.results, [f"{name}.parquet" for name in tables])
