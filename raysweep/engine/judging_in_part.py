"""Judging the answers of the arms that are there, where another arm has failed. Pure.

A judge's task is on the answers of all arms of a cell. Where some of them will not come in this run, the others are judged all the
same, and committed under keys of their own: a later run that has all of them makes the task's tables as if nothing had failed.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from raysweep.engine.graph import Graph, Task
from raysweep.fingerprint import fingerprint


def judged_in_part(graph: Graph, task: Task, done: Collection[str]) -> Task | None:
    """The judge's task on the answers that are `done` alone; None where all of them are, and where none is."""
    arms = graph.cell("backdoor", task.model, task.dataset)
    there = [arm for arm in arms if arm.results["texts"] in done]
    if not there or len(there) == len(arms):
        return None
    texts = [arm.results["texts"] for arm in there]
    results = {table: fingerprint({"in part": key, "texts": texts}) for table, key in task.results.items()}
    return replace(task, results=results, needs=tuple(arm.name for arm in there))
