"""The failed attempts of a run's calls, and the tasks that failed for good."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from raysweep.engine.calls import Call, Outcome
from raysweep.engine.graph import Graph
from raysweep.engine.ledger import Ledger

_IN_PART = {"adaptation": "compared", "judge": "judged"}  # what is made of the arms that are there


class Failures:
    """Attempts by call, and in `tasks` the error that ended each failed task."""

    def __init__(self) -> None:
        self.tasks: dict[str, str] = {}
        self._attempts: Counter[str] = Counter()
        self._final: dict[str, dict[str, str]] = {}  # by call that failed for good: its tasks, and why

    def charge(self, call: str) -> int:
        """Count a failed attempt; how many there are."""
        self._attempts[call] += 1
        return self._attempts[call]

    def forget(self, call: str) -> None:
        """Forget the attempts of a call that succeeded."""
        self._attempts.pop(call, None)

    def end(self, call: str, tasks: Iterable[str], error: str) -> None:
        """Fail the tasks of a call that is not tried again."""
        self._final[call] = dict.fromkeys(tasks, error)
        self.tasks |= self._final[call]

    def take_back(self, outcomes: Sequence[Outcome]) -> tuple[list[Call], list[str]]:
        """Undo the charges for these; the calls among them that are to run again after all, and tasks that have not failed now."""
        self._attempts -= Counter(outcome.call.name for outcome in outcomes)
        again = [outcome.call for outcome in outcomes if outcome.call.name in self._final]
        tasks = {task for call in again for task in self._final.pop(call.name)}
        tasks -= {task for final in self._final.values() for task in final}
        self.tasks = {task: error for task, error in self.tasks.items() if task not in tasks}
        return again, sorted(tasks)

    def spread(self, graph: Graph, ledger: Ledger) -> None:
        """Fail the tasks that need a failed one."""
        failed = -1
        while failed != len(self.tasks):  # what failed may be needed by tasks before it
            failed = len(self.tasks)
            for task in graph.tasks:
                cause = next((name for name in (task.name, *task.needs) if name in self.tasks), None)
                if cause is not None:
                    in_part = _IN_PART.get(task.kind) if any(map(ledger.is_done, task.needs)) else None
                    what = f"{in_part} only in part" if in_part else "not made"
                    self.tasks.setdefault(task.name, f"{what}, because '{cause}' failed")
