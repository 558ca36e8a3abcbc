"""Publishing: one file, one JSON, what killed writers leave; checked with hashlib and json alone."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from raysweep.errors import StoreError
from raysweep.store.artifacts import (
    FileEntry,
    check_file,
    publish,
    publish_bytes,
    publish_file,
    publish_json,
    sha256_file,
    sweep_temporaries,
)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_publish_makes_folders_and_replaces_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "x.txt"
    publish_bytes(path, b"old")
    seen_while_writing = []

    def write(temporary: Path) -> None:
        temporary.write_bytes(b"new")
        seen_while_writing.append((temporary.parent, temporary.suffix, path.read_bytes()))

    publish(path, write)
    assert seen_while_writing == [(path.parent, ".txt", b"old")]
    assert path.read_bytes() == b"new"
    assert names(path.parent) == {"x.txt"}


def test_file_is_on_the_disk_before_its_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        calls.append("folder" if Path(f"/dev/fd/{descriptor}").is_dir() else "file")
        real_fsync(descriptor)

    def replace(source: Path, target: Path) -> None:
        calls.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    publish_bytes(tmp_path / "x", b"1")
    assert calls == ["file", "rename", "folder"]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("before", [None, b"old"])
def test_exception_while_writing_leaves_what_was_there(
    tmp_path: Path, kind: type[BaseException], before: bytes | None
) -> None:
    path = tmp_path / "x.bin"
    if before is not None:
        path.write_bytes(before)

    def write(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise kind("stop")

    with pytest.raises(kind, match="stop"):
        publish(path, write)
    assert names(tmp_path) == (set() if before is None else {"x.bin"})
    assert before is None or path.read_bytes() == before


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failing_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="no space left"):
        publish_bytes(tmp_path / "x", b"1")
    assert names(tmp_path) == set()


def test_concurrent_publishers_never_mix(tmp_path: Path) -> None:
    path = tmp_path / "x"
    contents = [bytes([letter]) * 100_000 for letter in b"abc"]
    publish_bytes(path, contents[0])

    def write(content: bytes) -> None:
        for _ in range(20):
            publish_bytes(path, content)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    seen = set()
    while any(thread.is_alive() for thread in threads):
        seen.add(path.read_bytes())
    assert seen <= set(contents)
    assert names(tmp_path) == {"x"}


def test_publish_json_is_plain_utf8_json(tmp_path: Path) -> None:
    data = {"name": "Zürich", "n": [1, 2.5, None, True]}
    publish_json(tmp_path / "x.json", data)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == data
    assert "Zürich" in text
    for bad in (float("nan"), {1, 2}):
        with pytest.raises((TypeError, ValueError)):
            publish_json(tmp_path / "bad.json", {"value": bad})
    assert names(tmp_path) == {"x.json"}


def test_sha256_of_the_empty_file_and_of_a_large_one(tmp_path: Path) -> None:
    empty, large = tmp_path / "empty", tmp_path / "large"
    empty.write_bytes(b"")
    large.write_bytes(b"0123456789" * 100_000)
    assert sha256_file(empty) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # FIPS 180-4
    assert sha256_file(large) == hashlib.sha256(b"0123456789" * 100_000).hexdigest()


def test_publish_file_measures_what_it_published(tmp_path: Path) -> None:
    entry = publish_file(tmp_path, "layer=000/x.bin", lambda path: path.write_bytes(b"abc"), rows=7)
    assert entry == FileEntry("layer=000/x.bin", 7, 3, hashlib.sha256(b"abc").hexdigest())
    assert (tmp_path / entry.path).read_bytes() == b"abc"


def test_check_file_names_the_file_and_both_values(tmp_path: Path) -> None:
    entry = publish_file(tmp_path, "x.bin", lambda path: path.write_bytes(b"abc"), rows=1)
    path = tmp_path / "x.bin"

    def message(**options: Any) -> str:
        with pytest.raises(StoreError) as caught:
            check_file(tmp_path, entry, remedy="do this", **options)
        return str(caught.value)

    check_file(tmp_path, entry, remedy="", checksum=True)
    path.write_bytes(b"abd")
    check_file(tmp_path, entry, remedy="")  # the size is right
    found = hashlib.sha256(b"abd").hexdigest()
    assert message(checksum=True) == f"{path}: expected sha256 {entry.sha256}, found {found}; do this"
    path.write_bytes(b"ab")
    assert message() == f"{path}: expected 3 bytes, found 2; do this"
    path.unlink()
    assert message() == f"{path}: expected 3 bytes, found no file; do this"


# --- temporary files of killed writers ----------------------------------------------------------------------------


def test_sweep_removes_only_what_dead_processes_of_this_host_left(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as process:
        dead = process.pid
    here, token = socket.gethostname(), "0123456789abcdef"
    folder = tmp_path / "layer=000"
    folder.mkdir()
    gone = [tmp_path / f".tmp-{here}-{dead}-{token}.json", folder / f".tmp-{here}-{dead}-{token}"]
    kept = [
        tmp_path / f".tmp-{here}-{os.getpid()}-{token}.json",  # alive
        tmp_path / f".tmp-other-{here}-{dead}-{token}.json",  # another host's
        tmp_path / f".tmp-{here}-{dead}-short.json",  # not ours
        tmp_path / "x.json",
    ]
    for path in gone + kept:
        path.write_bytes(b"half")
    assert set(sweep_temporaries(tmp_path)) == set(gone)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(kept)
