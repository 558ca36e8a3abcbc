"""Arms as far as they are there: the tables adaptation and attack of cells of which some trainings are not.

The run makes the table adaptation once all of a cell's trainings are done. Where one has failed, or is still to come, the others
are compared here. Answers of arms that are there are judged by the run where another arm failed (engine/judging_in_part.py), and
this module adds what is missing. The reasons say why it is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd

from raysweep.engine.events import latest_failures, read_events
from raysweep.engine.graph import Graph, Task
from raysweep.engine.judging_in_part import judged_in_part
from raysweep.studies.adaptation import adaptation_table
from raysweep.studies.attack import with_lacking

if TYPE_CHECKING:
    from raysweep.engine.folder import RunFolder
    from raysweep.store.chunks import Manifest


def with_arms_in_part(
    whole: pd.DataFrame | None, folder: RunFolder, graph: Graph, done: Mapping[str, Manifest]
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
            made[task.model, task.dataset] = _in_part(folder, curves, done, failed)
    order = dict.fromkeys((task.model, task.dataset) for task in graph.of_kind("adaptation"))
    found = [made[cell] for cell in order if cell in made]
    return pd.concat(found, ignore_index=True) if found else None


def with_judged_in_part(graph: Graph, done: Collection[str]) -> Graph:
    """The graph with each judge's task as it is done: on the answers that are there, where that is what is committed."""

    def as_done(task: Task) -> Task:
        if task.kind != "judge" or any(key in done for key in task.keys):
            return task
        part = judged_in_part(graph, task, done)
        return part if part and all(key in done for key in part.keys) else task

    return replace(graph, tasks=tuple(map(as_done, graph.tasks)))


def with_arms_that_lack(attack: pd.DataFrame, folder: RunFolder, graph: Graph) -> pd.DataFrame:
    """The table attack with NaN, and why, for the arms that are not there; `graph` as `with_judged_in_part` has it."""
    failed: Mapping[str, str] | None = None
    whole = []
    for of, rows in attack.groupby(["model", "dataset", "judge"], sort=False):
        model, dataset, judge = map(str, of)
        task = next(each for each in graph.cell("judge", model, dataset) if each.at == judge)
        arms = graph.cell("backdoor", model, dataset)
        missing = [arm for arm in arms if arm.name not in task.needs]
        if missing:
            failed = latest_failures(read_events(folder.events)) if failed is None else failed
            lacking = {_arm_and_seed(arm): _why(arm, failed) for arm in missing}
            rows = with_lacking(rows, list(map(_arm_and_seed, arms)), lacking).assign(model=model, dataset=dataset)
        whole.append(rows)
    return pd.concat(whole, ignore_index=True)[list(attack.columns)]


def _in_part(
    folder: RunFolder, curves: list[Task], done: Mapping[str, Manifest], failed: Mapping[str, str]
) -> pd.DataFrame:
    """A cell's rows of the curves that are there."""
    there = [curve.results["training"] for curve in curves if curve.results["training"] in done]
    missing = [curve for curve in curves if curve.results["training"] not in done]
    named = [(*_arm_and_seed(curve), _why(curve, failed)) for curve in missing]
    lacking = {(arm, seed): why for arm, seed, why in named if seed is not None}
    arms = list(dict.fromkeys(arm for arm, _ in map(_arm_and_seed, curves)))
    rows = adaptation_table(folder.chunks.read_parts(there, done).to_pandas(), arms, lacking=lacking)
    return rows.assign(model=curves[0].model, dataset=curves[0].dataset)


def _why(task: Task, failed: Mapping[str, str]) -> str:
    """Why an arm is not there."""
    trains = _arm_and_seed(task)[1] is not None
    if task.name not in failed:
        return "not trained" if trains else "not done"
    return f"{'training ' if trains else ''}failed ({failed[task.name].splitlines()[0]})"


def _arm_and_seed(task: Task) -> tuple[str, int | None]:
    """What a task trains and with which seed; None where nothing is trained."""
    arm, _, seed = task.at.rpartition(" seed ")
    return (arm, int(seed)) if arm else (seed, None)
