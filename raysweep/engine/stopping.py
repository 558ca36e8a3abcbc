"""Early stopping in a run: what each cell's sweep has measured so far, and the decision to stop as a commit.

The rule is studies/stopping.py's. It is asked about chunks in their order and nothing else, so that a run with many workers,
or one that was killed, stops where any other does. The decision is committed like a result, with its number of chunks;
graph.py's `shortened` leaves out what a stopped sweep does not need.
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa

from raysweep.engine.asked import stop_rule
from raysweep.engine.calls import Call, Commit, commit_name
from raysweep.engine.facts import Facts
from raysweep.engine.graph import STOPPED_AFTER, Graph, Task
from raysweep.studies.stopping import RESOLUTION, Decision, Rule, decide

if TYPE_CHECKING:
    from raysweep.config import Config


class Watch:
    """One cell whose sweep may stop early: its losses by key, and how many of its chunks were looked at."""

    def __init__(self, task: Task, swept: list[Task], sizes: list[int], rule: Rule, resolution: float) -> None:
        self.task, self.swept = task, swept
        self._sizes, self._rule, self._resolution = sizes, rule, resolution
        self._keys = {key for each in swept for key in each.parts}
        self._losses: dict[str, np.ndarray] = {}
        self._seen: list[np.ndarray] = []  # [changes, examples] of each chunk, in order

    @property
    def keys(self) -> AbstractSet[str]:
        """The keys of all its parts."""
        return self._keys

    def take(self, rows: pd.DataFrame) -> None:
        """Take note of committed rows (with columns `part` and `loss`); those of other cells are left out."""
        for part, losses in rows.groupby("part", sort=False)["loss"]:
            if part in self._keys:
                self._losses[str(part)] = losses.to_numpy(dtype=float)

    def decide(self) -> Decision | None:
        """The decision, once the chunks that are there in a row from the first allow one."""
        while len(self._seen) < len(self._sizes):
            keys = [task.parts[len(self._seen)] for task in self.swept]
            if any(key not in self._losses for key in keys):
                return None
            self._seen.append(np.stack([self._losses[key] for key in keys]))
            changes = [task.window for task in self.swept if task.window is not None]
            found = decide(np.concatenate(self._seen, axis=1), changes, self._sizes, self._rule, self._resolution)
            if found is not None:
                return found
        return None

    def committable(self, decision: Decision) -> tuple[Call, Commit]:
        """The decision as a commit, and the call that it is logged under."""
        (key,) = self.task.results.values()
        row = {
            "rule": self._rule.text,
            "confidence": self._rule.confidence,
            "examples": decision.examples,
            "of": decision.of,
            "share": decision.examples / decision.of,
            "settled": decision.settled,
            "set": None if self._rule.top is None else "; ".join(window.layers for window in decision.chosen),
            "reason": decision.reason,
            "part": key,
        }
        name = commit_name("stopping", self.task.model, self.task.dataset, [key])
        table = pa.Table.from_pandas(pd.DataFrame([row]), preserve_index=False)
        call = Call(self.task.name, self.task.model, self.task.dataset, (self.task.name,))
        return call, Commit(name, (key,), table, extra={STOPPED_AFTER: decision.chunks})


def watches(config: Config, facts: Facts, graph: Graph, done: Collection[str]) -> list[Watch]:
    """A watch for every cell that may stop early and is not decided."""
    asked = config.studies.substitution
    rule = stop_rule(asked) if asked else None
    return [
        Watch(
            task,
            graph.cell("substitute", task.model, task.dataset),
            [len(chunk) for chunk in facts.cells[task.model, task.dataset].swept],
            rule,
            RESOLUTION[facts.models[task.model].dtype],
        )
        for task in graph.of_kind("stop")
        if rule is not None and any(key not in done for key in task.keys)
    ]
