"""Chunk commits, checked with hashlib, json and pyarrow alone, and under kill -9."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysweep.errors import StoreError
from raysweep.store import artifacts, chunks
from raysweep.store.artifacts import FileEntry, sweep_temporaries
from raysweep.store.chunks import AlreadyCommittedError, ChunkStore, Manifest, NewChunk


def rows(*pairs: tuple[str, float]) -> pa.Table:
    return pa.table({"part": [part for part, _ in pairs], "loss": [loss for _, loss in pairs]})


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_commit_is_a_parquet_file_and_a_json_manifest(tmp_path: Path) -> None:
    folder = tmp_path / "chunks"
    table = rows(("b", 2.0), ("a", 1.0), ("b", 2.5))
    beside = FileEntry("activations/x.arrow", 3, 10, "00")
    manifest = ChunkStore(folder).commit("c-0", table, parts={"a": {"rows": 1}, "b": 2}, files=[beside], extra={"n": 1})

    (file,) = names(folder) - {"c-0.json"}
    writer = re.fullmatch(r"c-0\.([0-9a-f]{8})\.parquet", file)[1]
    content = (folder / file).read_bytes()
    assert pq.read_table(folder / file).equals(table)
    assert json.loads((folder / "c-0.json").read_text()) == {
        "name": "c-0",
        "writer": writer,
        "table": file,
        "rows": 3,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "files": [{"path": "activations/x.arrow", "rows": 3, "bytes": 10, "sha256": "00"}],
        "extra": {"n": 1},
        "parts": {"a": {"rows": 1}, "b": 2},
    }
    assert manifest == Manifest(
        name="c-0",
        parts={"a": {"rows": 1}, "b": 2},
        table=FileEntry(file, 3, len(content), hashlib.sha256(content).hexdigest()),
        files=(beside,),
        extra={"n": 1},
    )


def test_manifests_done_and_read_in_another_process_s_place(tmp_path: Path) -> None:
    writer, reader = ChunkStore(tmp_path), ChunkStore(tmp_path)
    second = writer.commit("c1", rows(("x", 3.0)), parts={"x": None, "empty": None})
    first = writer.commit("c0", None, parts={"captured": None})
    assert reader.manifests() == [first, second]
    assert reader.done() == {"captured": first, "x": second, "empty": second}
    assert reader.read(second).equals(rows(("x", 3.0)))
    assert first.table is None
    with pytest.raises(ValueError, match="chunk 'c0' has no table"):
        reader.read(first)


def test_a_folder_that_does_not_exist_holds_nothing(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path / "chunks")
    assert store.manifests() == []
    assert store.done() == {}
    assert sweep_temporaries(store.folder) == []
    assert store.read_parts([]).num_rows == 0


def test_read_parts_keeps_key_order_and_row_order(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path)
    store.commit("c0", rows(("a", 1.0), ("b", 10.0), ("a", 2.0), ("z", -1.0), ("a", 0.0)), parts=dict.fromkeys("abz"))
    store.commit("c1", rows(("d", 5.0), ("c", 7.0), ("d", 4.0)), parts=dict.fromkeys("cd"))
    store.commit("c2", None, parts={"e": None})
    result = store.read_parts(["d", "a", "e", "c", "b"])
    assert result["part"].to_pylist() == ["d", "d", "a", "a", "a", "c", "b"]
    assert result["loss"].to_pylist() == [5.0, 4.0, 1.0, 2.0, 0.0, 7.0, 10.0]


def test_read_parts_reads_thousands_of_parts_with_one_read_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, generator = ChunkStore(tmp_path), random.Random(0)
    expected = {}
    for chunk in range(5):
        keys = [f"{chunk}/{part}" for part in range(600)]
        pairs = [(key, generator.random()) for key in keys for _ in range(3)]
        generator.shuffle(pairs)
        expected.update({key: [loss for other, loss in pairs if other == key] for key in keys})
        store.commit(f"c{chunk}", rows(*pairs), parts=dict.fromkeys(keys))
    opened: list[Path] = []
    real = pq.ParquetFile
    monkeypatch.setattr(pq, "ParquetFile", lambda path: opened.append(path) or real(path))
    wanted = list(expected)
    generator.shuffle(wanted)
    result = store.read_parts(wanted)
    assert result["loss"].to_pylist() == [loss for key in wanted for loss in expected[key]]
    assert len(opened) == len(set(opened)) == 5


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the manifests that are read."""
    found: list[str] = []
    real = chunks.read_bytes
    monkeypatch.setattr(chunks, "read_bytes", lambda place: found.append(place.stem) or real(place))
    return found


def test_a_reader_that_knows_the_chunks_of_its_parts_reads_no_other_manifest(tmp_path: Path, read: list[str]) -> None:
    writer, reader = ChunkStore(tmp_path), ChunkStore(tmp_path)
    for n in range(20):
        writer.commit(f"c{n}", rows((f"part-{n}", float(n))), parts={f"part-{n}": None})
    assert read == []
    reader.expect(["c4", "c7"])
    for _ in range(3):
        assert reader.read_parts(["part-7", "part-4"])["loss"].to_pylist() == [7.0, 4.0]
    assert sorted(read) == ["c4", "c7"]
    reader.expect(["c7", "c9", "gone"])
    assert reader.find(["part-9", "part-7"]).keys() == {"part-9", "part-7"}
    assert sorted(read) == ["c4", "c7", "c9", "gone"]


def test_a_part_that_is_not_in_the_expected_chunks_is_found_all_the_same(tmp_path: Path) -> None:
    writer, reader = ChunkStore(tmp_path), ChunkStore(tmp_path)
    for n in range(3):
        writer.commit(f"c{n}", rows((f"part-{n}", float(n))), parts={f"part-{n}": None})
    reader.expect(["c0"])
    assert reader.read_parts(["part-2", "part-0"])["loss"].to_pylist() == [2.0, 0.0]
    writer.forget("c0")
    assert ChunkStore(tmp_path).find(["part-0", "part-1"]).keys() == {"part-1"}


def test_a_manifest_is_read_once_however_often_all_are_listed(tmp_path: Path, read: list[str]) -> None:
    writer, reader = ChunkStore(tmp_path), ChunkStore(tmp_path)
    for n in range(5):
        writer.commit(f"c{n}", rows((f"part-{n}", float(n))), parts={f"part-{n}": None})
        assert len(reader.manifests()) == n + 1
        assert len(reader.done()) == n + 1
    assert read == [f"c{n}" for n in range(5)]


def test_parts_are_read_from_chunks_that_the_caller_has_looked_up(tmp_path: Path, read: list[str]) -> None:
    store = ChunkStore(tmp_path)
    store.commit("c0", rows(("a", 1.0)), parts={"a": None})
    done = store.done()
    assert store.read_parts(["a"], done)["loss"].to_pylist() == [1.0]
    assert read == ["c0"]
    with pytest.raises(StoreError, match="1 of 1 parts are not committed"):
        store.read_parts(["b"], done)


def test_chunks_committed_together_are_flushed_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder is flushed once for all tables and once for all manifests."""
    flushed: list[str] = []
    real = artifacts.flush
    monkeypatch.setattr(artifacts, "flush", lambda path: flushed.append(path.suffix or path.name) or real(path))
    folder, checks = tmp_path / "chunks", []
    new = [NewChunk(f"c{n}", rows((f"part-{n}", float(n))), {f"part-{n}": None}) for n in range(5)]
    made = ChunkStore(folder).commit_all(
        [*new, NewChunk("c5", None, {"x": 1})], check=lambda: checks.append(flushed[:])
    )
    assert ChunkStore(folder).manifests() == made
    assert flushed == [tmp_path.name, *[".parquet"] * 5, "chunks", *[".json"] * 6, "chunks"]
    assert checks == [[tmp_path.name, *[".parquet"] * 5, "chunks"]]
    assert not [name for name in names(folder) if name.startswith(".tmp")]


def test_of_chunks_committed_together_those_whose_name_is_taken_are_left_alone(tmp_path: Path) -> None:
    ChunkStore(tmp_path).commit("c1", rows(("b", 9.0)), parts={"b": None})
    new = [NewChunk(f"c{n}", rows((part, 1.0)), {part: None}) for n, part in enumerate("abc")]
    made = ChunkStore(tmp_path).commit_all(new)
    assert [manifest and manifest.name for manifest in made] == ["c0", None, "c2"]
    assert ChunkStore(tmp_path).read_parts("abc")["loss"].to_pylist() == [1.0, 9.0, 1.0]
    assert len(names(tmp_path)) == 6
    with pytest.raises(ValueError, match="a chunk is to be committed twice"):
        ChunkStore(tmp_path).commit_all([new[0], new[0]])


def test_rows_of_a_part_committed_twice_are_counted_once(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path)
    store.commit("late", rows(("a", 1.0), ("b", 3.0)), parts=dict.fromkeys("ab"))
    store.commit("early", rows(("a", 1.0)), parts={"a": None})
    assert store.read_parts(["b", "a"]).to_pylist() == [{"part": "b", "loss": 3.0}, {"part": "a", "loss": 1.0}]
    assert store.done()["a"].name == "early"


def test_chunks_may_lack_columns_but_not_disagree(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path)
    store.commit("c0", rows(("a", 1.0)), parts={"a": None})
    store.commit("c1", pa.table({"part": ["b"], "value": [2]}), parts={"b": None})
    assert store.read_parts(["a", "b"]).to_pylist() == [
        {"part": "a", "loss": 1.0, "value": None},
        {"part": "b", "loss": None, "value": 2},
    ]
    store.commit("c2", pa.table({"part": ["c"], "loss": ["high"]}), parts={"c": None})
    with pytest.raises(StoreError, match=r"c2\.\w+\.parquet: its columns differ .*double.*string.*; delete .*c2\.json"):
        store.read_parts(["a", "c"])


def test_large_strings_from_pandas_are_parts_too(tmp_path: Path) -> None:
    import pandas as pd

    store = ChunkStore(tmp_path)
    table = pa.Table.from_pandas(pd.DataFrame({"part": ["b", "a"], "loss": [1.0, 2.0]}), preserve_index=False)
    store.commit("c0", table, parts=dict.fromkeys("ab"))
    assert store.read_parts(["a", "b"]).to_pandas()["loss"].tolist() == [2.0, 1.0]


def test_asking_for_an_uncommitted_part_or_twice_for_one(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path)
    store.commit("c0", rows(("a", 1.0)), parts={"a": None})
    with pytest.raises(StoreError, match=r"2 of 3 parts are not committed, the first is 'x'; run again"):
        store.read_parts(["a", "x", "y"])
    with pytest.raises(ValueError, match="twice"):
        store.read_parts(["a", "a"])


@pytest.mark.parametrize(
    ("name", "table", "options", "message"),
    [
        ("../c", None, {"parts": {}}, "chunk name '../c' is not a safe file name"),
        (".c", None, {"parts": {}}, "is not a safe file name"),
        ("", None, {"parts": {}}, "is not a safe file name"),
        ("c", rows(("a", 1.0)), {"parts": {"b": None}}, "chunk 'c': the table has rows of part 'a'"),
        ("c", pa.table({"part": [None, "b"]}), {"parts": {"b": None}}, "the table has rows of part None"),
        ("c", pa.table({"loss": [1.0]}), {"parts": {"b": None}}, "needs a column 'part' of strings, found None"),
        ("c", pa.table({"part": [1]}), {"parts": {"b": None}}, "needs a column 'part' of strings, found int64"),
        ("c", rows(("b", 1.0)), {"parts": {"b": {1}}}, "chunk 'c': parts and extra must be JSON"),
        ("c", rows(("b", 1.0)), {"parts": {"b": 1}, "extra": {"x": float("inf")}}, "parts and extra must be JSON"),
    ],
)
def test_commit_refuses_before_anything_is_written(
    tmp_path: Path, name: str, table: pa.Table | None, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ChunkStore(tmp_path).commit(name, table, **options)
    assert names(tmp_path) == set()


@pytest.mark.parametrize("hard_links", [True, False])
def test_a_second_writer_does_not_touch_what_the_first_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard_links: bool
) -> None:
    def refuse(*paths: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if not hard_links:
        monkeypatch.setattr(os, "link", refuse)
    first, second = ChunkStore(tmp_path), ChunkStore(tmp_path)
    kept = first.commit("c0", rows(("a", 1.0)), parts={"a": None})
    before = names(tmp_path)
    for store in (first, second):
        with pytest.raises(
            AlreadyCommittedError, match=r"c0\.json: this chunk is already committed; commit under anoth"
        ):
            store.commit("c0", None if store is first else rows(("a", 2.0)), parts={"a": None})
    assert names(tmp_path) == before, "the second writer's table is removed"
    assert second.read_parts(["a"])["loss"].to_pylist() == [1.0]
    assert second.load("c0") == kept


def test_a_manifest_that_names_no_table_file_has_the_chunk_s(tmp_path: Path) -> None:
    """As folders from before files were named after their writer."""
    pq.write_table(rows(("a", 1.0)), tmp_path / "c0.parquet")
    content = (tmp_path / "c0.parquet").read_bytes()
    described = {"name": "c0", "rows": 1, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (tmp_path / "c0.json").write_text(json.dumps({**described, "files": [], "extra": {}, "parts": {"a": None}}))
    assert ChunkStore(tmp_path).read_parts(["a"])["loss"].to_pylist() == [1.0]


@pytest.mark.parametrize("file", ["../c0.parquet", "/etc/passwd", ".hidden", "a/b.parquet", ""])
def test_a_table_outside_the_folder_is_refused(tmp_path: Path, file: str) -> None:
    ChunkStore(tmp_path).commit("c0", rows(("a", 1.0)), parts={"a": None})
    said = json.loads((tmp_path / "c0.json").read_text())
    (tmp_path / "c0.json").write_text(json.dumps(said | {"table": file}))
    with pytest.raises(StoreError, match=r"c0\.json: not a complete manifest .*is not a file name"):
        ChunkStore(tmp_path).manifests()


@pytest.mark.parametrize("failing", ["replace", "link"])
def test_exception_in_a_commit_leaves_no_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    store, calls = ChunkStore(tmp_path), []

    def watch(name: str) -> None:
        real = getattr(os, name)

        def call(source: Path, target: Path) -> None:
            calls.append(target.suffix)
            if name == failing:
                raise KeyboardInterrupt
            real(source, target)

        monkeypatch.setattr(os, name, call)

    watch("replace")
    watch("link")
    with pytest.raises(KeyboardInterrupt):
        store.commit("c0", rows(("a", 1.0)), parts={"a": None})
    assert calls == {"replace": [".parquet"], "link": [".parquet", ".json"]}[failing]  # the manifest appears last
    assert store.manifests() == []
    assert not [name for name in names(tmp_path) if name.startswith(".tmp")]
    monkeypatch.undo()
    store.commit("c0", rows(("a", 2.0)), parts={"a": None})  # a table without a manifest is in nobody's way
    assert store.read_parts(["a"])["loss"].to_pylist() == [2.0]


def damaged_store(folder: Path) -> tuple[ChunkStore, Manifest]:
    store = ChunkStore(folder)
    store.commit("c0", rows(("a", 1.0)), parts={"a": None})
    return store, store.commit("c1", rows(("b", 2.0), ("b", 3.0)), parts={"b": None})


def test_missing_and_cut_tables_are_named_with_what_to_do(tmp_path: Path) -> None:
    store, manifest = damaged_store(tmp_path)
    assert manifest.table is not None
    path, size = tmp_path / manifest.table.path, manifest.table.bytes
    remedy = f"delete {tmp_path / 'c1.json'} to recompute the chunk"

    path.write_bytes(path.read_bytes()[:-1])
    for call in (store.manifests, store.done, lambda: store.read(manifest), lambda: store.read_parts(["a"])):
        with pytest.raises(StoreError) as caught:
            call()
        assert str(caught.value) == f"{path}: expected {size} bytes, found {size - 1}; {remedy}"
    path.unlink()
    with pytest.raises(StoreError) as caught:
        store.manifests()
    assert str(caught.value) == f"{path}: expected {size} bytes, found no file; {remedy}"

    (tmp_path / "c1.json").unlink()  # the advice works
    assert [kept.name for kept in store.manifests()] == ["c0"]


def test_changed_byte_is_found_when_the_chunk_is_read(tmp_path: Path) -> None:
    store, manifest = damaged_store(tmp_path)
    assert manifest.table is not None
    path = tmp_path / manifest.table.path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert [kept.name for kept in store.manifests()] == ["c0", "c1"]
    with pytest.raises(StoreError) as caught:
        store.read(manifest)
    assert str(caught.value) == (
        f"{path}: expected sha256 {manifest.table.sha256}, found {hashlib.sha256(content).hexdigest()}; "
        f"delete {tmp_path / 'c1.json'} to recompute the chunk"
    )
    assert store.read_parts(["a"]).num_rows == 1  # other chunks are untouched
    with pytest.raises(StoreError, match="expected sha256"):
        store.read_parts(["b"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:20], "not a complete manifest (JSONDecodeError"),
        (lambda text: "", "not a complete manifest (JSONDecodeError"),
        (lambda text: "[]", "not a complete manifest (TypeError"),
        (lambda text: text.replace('"parts"', '"prats"'), "not a complete manifest (KeyError: 'parts')"),
        (lambda text: text.replace('"rows": 2', '"rows": "2"'), "not a complete manifest (TypeError"),
        (lambda text: text.replace('"c1"', '"c7"'), "expected the manifest of chunk 'c1', found 'c7'"),
    ],
)
def test_damaged_manifest_is_named_with_what_to_do(tmp_path: Path, change: Any, message: str) -> None:
    store, _ = damaged_store(tmp_path)
    path = tmp_path / "c1.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(StoreError) as caught:
        store.manifests()
    assert str(caught.value).startswith(f"{path}: {message}")
    assert str(caught.value).endswith(f"; delete {path} to recompute the chunk")


# --- kill -9 ------------------------------------------------------------------------------------------------------

WRITER = """
import os, signal, sys
from pathlib import Path
import pyarrow as pa
from raysweep.store.chunks import ChunkStore

def write(folder, kill_at=None):
    count = 0

    def counted(call):  # kills this process just before its kill_at-th flush, rename or link
        def run(*arguments):
            nonlocal count
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments)
        return run

    os.fsync, os.replace, os.link = counted(os.fsync), counted(os.replace), counted(os.link)
    first = len(list(folder.glob("c*.json")))
    for number in range(first, first + 2000):  # an end, should nobody kill it
        table = pa.table({"part": [f"p{number}"] * 1000, "value": list(range(number, number + 1000))})
        ChunkStore(folder).commit(f"c{number:06d}", table, parts={f"p{number}": {"chunk": number}})

folder, *steps = sys.argv[1:]
if not steps:
    write(Path(folder))
for step in steps:
    if os.fork() == 0:
        write(Path(folder, step), int(step))
    assert os.waitstatus_to_exitcode(os.wait()[1]) == -signal.SIGKILL
"""


def whole_commits(folder: Path) -> int:
    """How many commits there are, having checked each against what the writer was to write."""
    store = ChunkStore(folder)
    for number, manifest in enumerate(store.manifests()):
        assert manifest.name == f"c{number:06d}"
        assert dict(manifest.parts) == {f"p{number}": {"chunk": number}}
        table = store.read(manifest)
        assert table["value"].to_pylist() == list(range(number, number + 1000))
    return len(store.manifests())


@pytest.mark.soak  # likewise, and test_kill.py has a whole run
def test_killed_at_random_moments_only_whole_commits_remain(tmp_path: Path) -> None:
    generator, before = random.Random(), 0
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)]) as writer:
            while not (tmp_path / f"c{before:06d}.json").exists() and writer.poll() is None:
                time.sleep(0.002)
            time.sleep(generator.uniform(0, 0.05))
            writer.send_signal(signal.SIGKILL)
        assert writer.returncode == -signal.SIGKILL
        after = whole_commits(tmp_path)
        assert after > before  # each writer goes on where the last one was killed
        before = after
    sweep_temporaries(tmp_path)
    assert not list(tmp_path.glob(".tmp*"))


@pytest.mark.soak  # test_crash_points.py has every step of a run, without processes
def test_killed_before_each_step_of_a_commit(tmp_path: Path) -> None:
    """A commit has six steps (flush, rename or link, flush of the folder; twice): its chunk exists once the fifth is done."""
    steps = range(7, 13)  # those of the second commit
    folders = {step: tmp_path / str(step) for step in steps}
    for folder in folders.values():
        folder.mkdir()
    subprocess.run([sys.executable, "-c", WRITER, str(tmp_path), *map(str, steps)], check=True)
    assert {step: whole_commits(folder) for step, folder in folders.items()} == {7: 1, 8: 1, 9: 1, 10: 1, 11: 1, 12: 2}
    swept = {step: len(sweep_temporaries(folder)) for step, folder in folders.items()}
    assert swept == {7: 1, 8: 1, 9: 0, 10: 1, 11: 1, 12: 0}
    assert not list(tmp_path.rglob(".tmp*"))
