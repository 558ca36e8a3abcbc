"""Arms compared as far as they are trained: the table adaptation of cells of which some trainings are not there.

The run makes that table once all of a cell's trainings are done. Where one has failed, or is still to come, the others are
compared here, and the reasons say what is missing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import pandas as pd

from raysweep.engine.events import latest_failures, read_events
from raysweep.studies.adaptation import adaptation_table

if TYPE_CHECKING:
    from raysweep.engine.folder import RunFolder
    from raysweep.engine.graph import Graph, Task


def with_arms_in_part(
    whole: pd.DataFrame | None, folder: RunFolder, graph: Graph, done: Collection[str]
) -> pd.DataFrame | None:
    """The table adaptation, `whole` as far as it is made, with the cells that have some of their curves; in the graph's order."""
    tables = [] if whole is None else [(cell, rows) for cell, rows in whole.groupby(["model", "dataset"], sort=False)]
    made = dict(tables)
    failed: Mapping[str, str] | None = None
    for task in graph.of_kind("adaptation"):
        curves = graph.cell("adapt", task.model, task.dataset)
        missing = [curve for curve in curves if curve.results["training"] not in done]
        if task.results["adaptation"] not in done and len(missing) < len(curves):
            failed = latest_failures(read_events(folder.events)) if failed is None else failed
            made[task.model, task.dataset] = _in_part(folder, curves, missing, failed)
    order = dict.fromkeys((task.model, task.dataset) for task in graph.of_kind("adaptation"))
    found = [made[cell] for cell in order if cell in made]
    return pd.concat(found, ignore_index=True) if found else None


def _in_part(folder: RunFolder, curves: list[Task], missing: list[Task], failed: Mapping[str, str]) -> pd.DataFrame:
    """A cell's rows of the curves that are there."""
    there = [curve.results["training"] for curve in curves if curve not in missing]
    lacking = {
        _arm_and_seed(curve): f"training failed ({failed[curve.name].splitlines()[0]})"
        if curve.name in failed
        else "not trained"
        for curve in missing
    }
    arms = list(dict.fromkeys(arm for arm, _ in map(_arm_and_seed, curves)))
    rows = adaptation_table(folder.chunks.read_parts(there).to_pandas(), arms, lacking=lacking)
    return rows.assign(model=curves[0].model, dataset=curves[0].dataset)


def _arm_and_seed(curve: Task) -> tuple[str, int]:
    arm, _, seed = curve.at.rpartition(" seed ")
    return arm, int(seed)
