"""Commits of calls that end at once: made together, each recorded once, and the same results as one by one."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from other_executors import On, commits

from raysweep.engine.calls import Call, Commit, Outcome
from raysweep.engine.committing import CommitsFirst, commit_outcomes
from raysweep.engine.driver import drive
from raysweep.engine.executor import LocalExecutor
from raysweep.engine.folder import RunFolder
from raysweep.engine.work import Worker
from raysweep.store import artifacts


def outcome(name: str, *keys: str, error: str | None = None) -> Outcome:
    """Of a call of this name that made a part under each key, a commit a part."""
    tables = [pa.table({"part": [key], "loss": [1.0]}) for key in keys]
    made = tuple(Commit(f"of-{key}", (key,), table) for key, table in zip(keys, tables, strict=True))
    return Outcome(Call(name, "m", "d", ("task",)), made, {"seconds": 1.0}, error=error)


@pytest.fixture
def facts() -> Any:
    return SimpleNamespace(models={})


def test_what_several_calls_made_is_committed_at_once(tmp_path: Path, facts: Any, monkeypatch: Any) -> None:
    flushed: Counter[str] = Counter()
    real = artifacts.flush
    monkeypatch.setattr(artifacts, "flush", lambda path: flushed.update([path.suffix or path.name]) or real(path))
    folder = RunFolder(tmp_path)
    ended = [outcome("one", "a", "b"), outcome("two", "c"), outcome("failed", "d", error="no"), outcome("again", "a")]
    found = commit_outcomes(folder, facts, ended, lambda key: key != "b")
    assert list(found) == ["of-a", "of-c"]
    assert folder.committed().keys() == {"a", "c"}
    assert found["of-a"].log == {"call": "one", "tasks": ["task"], "measured": {"seconds": 1.0}}
    assert flushed == {tmp_path.name: 1, ".parquet": 2, ".json": 2, "chunks": 2}
    flushed.clear()
    assert commit_outcomes(folder, facts, ended, lambda key: False) == {}
    assert not flushed


def test_what_another_driver_committed_under_a_name_is_kept_with_its_log(tmp_path: Path, facts: Any) -> None:
    (first,) = commit_outcomes(RunFolder(tmp_path), facts, [outcome("first", "a")], lambda key: True).values()
    other = outcome("second", "a", "b")
    other = replace(other, commits=(replace(other.commits[0], table=None), other.commits[1]))
    found = commit_outcomes(RunFolder(tmp_path), facts, [other], lambda key: True)
    assert found["of-a"].log["call"] == "first"
    assert found["of-a"].manifest == first.manifest
    assert found["of-a"].commit.table.to_pydict() == {"part": ["a"], "loss": [1.0]}
    assert found["of-b"].log["call"] == "second"


class AllAtOnce(LocalExecutor):
    """Gives the outcomes of all queued calls together."""

    slots = (replace(LocalExecutor.slots[0], depth=4),) * 2

    def collect(self) -> list[Outcome]:
        return [outcome for _ in range(len(self._calls)) for outcome in super(AllAtOnce, self).collect()]


def test_a_run_whose_calls_end_at_once_gives_the_same_tables_and_each_commit_once(
    make_config: Any, finished: Any, tmp_path: Path, events_of: Any, tables_of: Any, same_tables: Any, monkeypatch: Any
) -> None:
    sizes: list[int] = []
    real = RunFolder.commit_all

    def counted(folder: RunFolder, new: Any) -> Any:
        made = real(folder, new)
        sizes.append(len(made))
        return made

    monkeypatch.setattr(RunFolder, "commit_all", counted)
    done = drive(make_config(tmp_path / "run"), backend=On(lambda folder: AllAtOnce(Worker(folder))))
    assert not done.failed
    same_tables(tables_of(done), tables_of(finished), exactly=True)
    keys = {key for task in done.graph.tasks for key in task.keys}
    assert commits(events_of(done)) == dict.fromkeys(keys, 1)
    assert len(sizes) < sum(sizes) / 2


def test_an_executor_that_keeps_no_count_of_its_workers_retires_none() -> None:
    seen: list[Outcome] = []
    inner = SimpleNamespace(slots=("a",), about={"x": 1}, collect=lambda: [outcome("one")], close=lambda: None)
    executor = CommitsFirst(inner, seen.extend)  # type: ignore[arg-type]
    assert (executor.slots, executor.about, executor.retire(0)) == (("a",), {"x": 1}, {})
    assert executor.collect() == seen
    assert len(seen) == 1
