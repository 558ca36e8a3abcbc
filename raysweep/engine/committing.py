"""Committing what calls made: that of all calls that have ended at once, so that the disk or the store is waited for once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raysweep.engine.calls import Call, Commit, Outcome
from raysweep.engine.dispatch import Slot
from raysweep.engine.executor import Executor
from raysweep.engine.facts import Facts
from raysweep.engine.folder import RunFolder
from raysweep.engine.inputs import with_inputs
from raysweep.engine.slot_health import RetiresWorkers
from raysweep.store.chunks import Manifest


@dataclass(frozen=True)
class Committed:
    """A commit with its manifest, and the log of how it was made."""

    commit: Commit
    manifest: Manifest
    log: Mapping[str, Any]


def commit_outcomes(
    folder: RunFolder, facts: Facts, outcomes: Iterable[Outcome], wanted: Callable[[str], bool]
) -> dict[str, Committed]:
    """Commit what these calls made, as far as it has keys that are `wanted`; by name.

    Of a name that a driver committed which had lost the folder to this one, the result has what is committed.
    """
    new: dict[str, tuple[Commit, dict[str, Any]]] = {}
    keys = set[str]()
    for outcome in outcomes:
        for commit in outcome.commits if outcome.error is None else ():
            if any(wanted(key) and key not in keys for key in commit.keys):  # a kill may have kept some of a call's
                keys.update(commit.keys)
                new[commit.name] = with_inputs(commit, outcome.call, facts), _log(outcome.call, outcome.measured)
    if not new:
        return {}
    folder.check_held()
    made = zip(new.values(), folder.commit_all(new.values()), strict=True)
    return {commit.name: _as_kept(folder, Committed(commit, manifest, log)) for (commit, log), manifest in made}


def _log(call: Call, measured: Mapping[str, Any]) -> dict[str, Any]:
    return {"call": call.name, "tasks": list(call.tasks), "measured": dict(measured)}


def _as_kept(folder: RunFolder, made: Committed) -> Committed:
    kept = made.manifest
    if kept.extra["log"] == made.log:
        return made
    table = folder.chunks.read(kept) if kept.table else None
    return Committed(replace(made.commit, table=table), kept, kept.extra["log"])


class CommitsFirst:
    """An executor whose outcomes pass `commit`, all that have come at once, before anybody else gets them."""

    def __init__(self, executor: Executor, commit: Callable[[Sequence[Outcome]], None]) -> None:
        self._executor, self._commit = executor, commit

    @property
    def slots(self) -> Sequence[Slot]:
        """The executor's workers."""
        return self._executor.slots

    @property
    def about(self) -> Mapping[str, Any]:
        """Where the work is done."""
        return self._executor.about

    def submit(self, index: int, call: Call) -> None:
        """Hand a call to a worker."""
        self._executor.submit(index, call)

    def collect(self) -> list[Outcome]:
        """Wait for calls, and commit what they made."""
        outcomes = self._executor.collect()
        self._commit(outcomes)
        return outcomes

    def retire(self, index: int) -> Mapping[str, str]:
        """Close a slot, if the executor keeps count of that, and return where it was."""
        return self._executor.retire(index) if isinstance(self._executor, RetiresWorkers) else {}

    def close(self) -> None:
        """Let go of everything."""
        self._executor.close()
