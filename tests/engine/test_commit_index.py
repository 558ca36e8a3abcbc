"""Where a call's worker finds what it reads: the commits of its cell, and no other manifest."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from raysweep.engine.commit_index import CommitIndex
from raysweep.engine.driver import drive
from raysweep.engine.folder import RunFolder
from raysweep.engine.graph import Graph, Task
from raysweep.engine.result_calls import result_call
from raysweep.engine.work import Worker
from raysweep.store import chunks
from raysweep.store.chunks import Manifest


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each manifest is read."""
    found: Counter[str] = Counter()
    real = chunks.read_bytes

    def counted(place: Any) -> bytes:
        found[place.stem] += 1
        return real(place)

    monkeypatch.setattr(chunks, "read_bytes", counted)
    return found


def test_a_call_names_the_commits_of_its_cell_and_of_what_it_needs(small: Any) -> None:
    config, facts = small
    shared = Task("similarity", "m", "first", ("a", "b"), results={"similarity": "s1"})
    other = Task("similarity", "m", "second", ("b",), results={"similarity": "s2"})
    third = Task("spectrum", "m", "third", ("c",), results={"spectrum": "s3"})
    graph = Graph((shared, other, third))
    done = {key: Manifest(f"holds-{key}", {key: None}, None, (), {}) for key in "abc"}
    index = CommitIndex(graph, done)
    index.add("new", [other.name, "not a task"])
    call = result_call(config, facts, graph, shared)
    assert set(index.with_chunks(call).chunks) == {"holds-a", "holds-b"}
    assert set(index.with_chunks(call, [other.name]).chunks) == {"holds-a", "holds-b", "new"}
    assert index.with_chunks(result_call(config, facts, graph, other)).chunks == ("holds-b", "new")


def test_a_run_reads_no_manifest_that_it_wrote_and_its_tables_only_those_of_their_cells(
    make_config: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, read: Counter[str]
) -> None:
    config = make_config(tmp_path / "run", "datasets.0.limit=8", "datasets.1.limit=4")
    calls = {}
    real = Worker.attempt

    def attempt(worker: Worker, call: Any) -> Any:
        before = read.copy()
        outcome = real(worker, call)
        calls[call.name] = (call, read - before)
        return outcome

    monkeypatch.setattr(Worker, "attempt", attempt)
    assert not drive(config).failed
    assert max(read.values()) == 1
    tables = {name: found for name, found in calls.items() if name.startswith(("similarity", "correlate"))}
    assert len(tables) == 3
    for call, found in tables.values():
        assert found.keys() <= set(call.chunks)
        assert all(f"-{call.dataset}-" in name for name in found)

    read.clear()  # a second run reads each once more
    assert drive(config).n_calls == 0
    assert read.keys() == {manifest.name for manifest in RunFolder(tmp_path / "run").chunks.manifests()}
    assert max(read.values()) <= 2
