"""A weight file that has not changed is not read again; one that has is, whatever was done to hide it."""

from __future__ import annotations

import json
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from raysweep.errors import InputError
from raysweep.models import digest_cache, weight_reader
from raysweep.models.checkpoint import Checkpoint, begin_reading, describe, fingerprint_of
from raysweep.models.digest_cache import DigestCache, user_digest_cache
from raysweep.models.idle_updates import idle_tensors
from raysweep.models.weight_reader import WeightReader

NAME = "model.layers.0.mlp.up_proj.weight"
LATER = 10.0  # seconds after which a file counts as settled


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The weight files that were read to their end, in order."""
    seen: list[Path] = []
    of_tensors, of_bin = weight_reader.read_tensors, weight_reader.plain_tensors

    def read_tensors(path: Path, *rest: Any) -> Any:
        seen.append(path)
        return of_tensors(path, *rest)

    def plain_tensors(path: Path, *rest: Any, **more: Any) -> Any:
        seen.append(path)
        return of_bin(path, *rest, **more)

    monkeypatch.setattr(weight_reader, "read_tensors", read_tensors)
    monkeypatch.setattr(weight_reader, "plain_tensors", plain_tensors)
    return seen


@pytest.fixture
def cache(tmp_path: Path) -> DigestCache:
    return DigestCache(tmp_path / "cache" / "digests", now=lambda: time.time() + LATER)


def save(folder: Path, seed: int = 0) -> Path:
    """A checkpoint's folder with one weight file of 4 kB; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 1}))
    torch.manual_seed(seed)
    save_file({NAME: torch.randn(32, 32)}, folder / "model.safetensors")
    return folder / "model.safetensors"


def described(folder: Path, cache: DigestCache | None) -> Checkpoint:
    with WeightReader(cache) as reader:
        return describe(str(folder), reader=reader)


def entries(cache: DigestCache) -> list[Path]:
    return sorted(cache._folder.iterdir())


# --- changed or not -----------------------------------------------------------------------------------------------


def test_an_unchanged_file_is_not_read_again(tmp_path: Path, cache: DigestCache, reads: list[Path]) -> None:
    path = save(tmp_path / "a")
    plain = describe(str(path.parent))
    reads.clear()
    assert described(path.parent, cache) == plain
    assert reads == [path]
    assert described(path.parent, cache) == described(path.parent, DigestCache(cache._folder)) == plain
    assert reads == [path]


def flip(path: Path) -> None:
    """Another last byte; the size, inode and time of modification as before."""
    before = path.stat()
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # clocks of file systems advance every few milliseconds
        with path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)[0]
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last ^ 1]))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def flip_in_a_copy(path: Path) -> None:
    other = path.with_name("other")
    shutil.copy2(path, other)
    flip(other)
    other.replace(path)


def save_again(path: Path) -> None:
    save(path.parent, seed=1)


def link_elsewhere(path: Path) -> None:
    other = save(path.parent.parent / "elsewhere", seed=1)
    path.unlink()
    path.symlink_to(other)


@pytest.mark.parametrize("change", [flip, flip_in_a_copy, save_again, link_elsewhere])
def test_a_changed_file_is_read_again(
    change: Callable[[Path], None], tmp_path: Path, cache: DigestCache, reads: list[Path]
) -> None:
    path = save(tmp_path / "a")
    before = described(path.parent, cache)
    change(path)
    plain = describe(str(path.parent))
    assert plain.digests != before.digests
    reads.clear()
    assert described(path.parent, cache) == plain
    assert reads == [path]
    assert described(path.parent, cache) == plain
    assert reads == [path]


def test_a_file_that_changed_just_now_is_not_cached(tmp_path: Path, reads: list[Path]) -> None:
    path, at_once = save(tmp_path / "a"), DigestCache(tmp_path / "cache")
    for n in (1, 2):
        described(path.parent, at_once)
        assert len(reads) == n
    assert not (tmp_path / "cache").exists()


def test_a_file_that_changes_while_it_is_read_is_not_cached(tmp_path: Path, cache: DigestCache) -> None:
    path = save(tmp_path / "a")

    def compute() -> int:
        flip(path)
        return 1

    assert cache.remember(path, "k", compute, lambda value: value) == 1
    assert not cache._folder.exists()


def test_weights_that_are_not_finite_are_found_every_time(tmp_path: Path, cache: DigestCache) -> None:
    path = save(tmp_path / "a")
    described(path.parent, cache)
    save_file({NAME: torch.full((32, 32), torch.nan)}, path)
    for _ in range(2):
        with pytest.raises(InputError, match="not finite"):
            described(path.parent, cache)


def test_bin_weights(tmp_path: Path, cache: DigestCache, reads: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path).unlink()
    torch.save(
        {NAME: torch.ones(2, 3, dtype=torch.bfloat16), "model.norm.weight": torch.ones(())},
        tmp_path / "pytorch_model.bin",
    )
    plain = describe(str(tmp_path))
    reads.clear()
    assert described(tmp_path, cache) == described(tmp_path, cache) == plain
    assert len(reads) == 1
    monkeypatch.setenv("RAYSWEEP_MAX_TENSORS", "1")
    with pytest.raises(InputError, match="RAYSWEEP_MAX_TENSORS"):
        described(tmp_path, cache)


def test_zeros_of_an_adapter(tmp_path: Path, cache: DigestCache, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"base_model.model.model.layers.{i}.q_proj.lora_{factor}.weight" for i in (0, 1) for factor in "AB"]
    values = {name: torch.ones(2, 2) for name in names} | {names[1]: -torch.zeros(2, 2)}
    save_file(values, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "init_lora_weights": True}
    adapter = Checkpoint("a", tmp_path, config, dict.fromkeys(names, (2, 2)), 64, True, "")
    assert idle_tensors(adapter) == idle_tensors(adapter, cache) == set(names[:2])
    monkeypatch.setattr("raysweep.models.idle_updates._read", None)
    assert idle_tensors(adapter, cache) == set(names[:2])


def test_only_a_reader_with_the_cache_uses_it(
    tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSWEEP_DIGEST_CACHE", "on")
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digest_cache, "_SETTLED_SECONDS", -LATER)
    path = save(tmp_path / "a")
    described(path.parent, user_digest_cache())
    assert (tmp_path / "cache" / "digests").is_dir()
    reads.clear()
    describe(str(path.parent))  # as workers do
    fingerprint_of(path.parent, "a")  # as `doctor --checksums` does
    assert reads == [path, path]


# --- entries that cannot be trusted -------------------------------------------------------------------------------


def altered(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def alter(path: Path) -> None:
        entry = json.loads(path.read_text())
        change(entry)
        path.write_text(json.dumps(entry))

    return alter


def with_checksum(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def all_of_it(entry: dict[str, Any]) -> None:
        del entry["sha256"]
        change(entry)
        entry["sha256"] = digest_cache._checksum(entry)

    return altered(all_of_it)


def as_link(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "no object": lambda path: path.write_text("[1]"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "another digest": altered(lambda entry: entry["value"].__setitem__(0, "0" * 64)),
    "no digest": with_checksum(lambda entry: entry["value"].__setitem__(0, "x")),
    "other tensors": with_checksum(lambda entry: entry["value"].__setitem__(1, {})),
    "another form": with_checksum(lambda entry: entry.update(value="x")),
    "another release": with_checksum(lambda entry: entry.update(raysweep="0.0.1")),
    "another kind": with_checksum(lambda entry: entry.update(kind="other")),
    "a link": as_link,
    "a pipe": as_pipe,
    "writable for others": lambda path: path.chmod(0o660),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_ignored_and_replaced(
    damage: str, tmp_path: Path, cache: DigestCache, reads: list[Path]
) -> None:
    path = save(tmp_path / "a")
    plain = described(path.parent, cache)
    (entry,) = entries(cache)
    whole = entry.read_bytes()
    DAMAGES[damage](entry)
    reads.clear()
    assert described(path.parent, cache) == plain
    assert reads == [path]
    assert entry.read_bytes() == whole
    assert stat.S_IMODE(entry.lstat().st_mode) == 0o600
    assert described(path.parent, cache) == plain
    assert reads == [path]


def test_entries_are_for_this_user_alone(tmp_path: Path, cache: DigestCache) -> None:
    before = os.umask(0)
    try:
        described(save(tmp_path / "a").parent, cache)
    finally:
        os.umask(before)
    assert stat.S_IMODE(cache._folder.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in entries(cache)] == [0o600]


def opened_to_others(folder: Path, patch: pytest.MonkeyPatch) -> None:
    folder.chmod(0o770)


def owned_by_another(folder: Path, patch: pytest.MonkeyPatch) -> None:
    own = os.geteuid()
    patch.setattr(os, "geteuid", lambda: own + 1)


def in_place_of_a_file(folder: Path, patch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(folder)
    folder.write_text("")


@pytest.mark.parametrize("spoil", [opened_to_others, owned_by_another, in_place_of_a_file])
def test_a_folder_that_cannot_be_trusted_is_not_used(
    spoil: Any, tmp_path: Path, cache: DigestCache, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "a")
    plain = described(path.parent, cache)
    spoil(cache._folder, monkeypatch)
    for n in (2, 3):
        assert described(path.parent, cache) == plain
        assert len(reads) == n


def test_a_full_disk_is_no_error(tmp_path: Path, cache: DigestCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    path = save(tmp_path / "a")
    monkeypatch.setattr(digest_cache.os, "replace", full)
    described(path.parent, cache)
    assert entries(cache) == []


def test_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSWEEP_DIGEST_CACHE", "off")
    assert user_digest_cache() is None
    monkeypatch.setenv("RAYSWEEP_DIGEST_CACHE", "no")
    with pytest.raises(InputError) as caught:
        user_digest_cache()
    assert str(caught.value) == "RAYSWEEP_DIGEST_CACHE is 'no', but it must be on or off"
    monkeypatch.delenv("RAYSWEEP_DIGEST_CACHE")
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path))
    found = user_digest_cache()
    assert found is not None
    assert found._folder == tmp_path / "digests"


def test_the_entries_unused_for_longest_go(tmp_path: Path, cache: DigestCache, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [save(tmp_path / str(i), seed=i) for i in range(4)]
    first, second = (described(path.parent, cache) and set(entries(cache)) for path in paths[:2])
    (oldest,), (newer,) = first, second - first
    monkeypatch.setattr(digest_cache, "MOST_BYTES", 3 * oldest.stat().st_size + 20)
    os.utime(oldest, (1, 1))
    os.utime(newer, (2, 2))
    described(paths[0].parent, cache)  # which marks it as used
    for path in paths[2:]:
        described(path.parent, cache)
    left = entries(cache)
    assert len(left) == 3
    assert oldest in left
    assert newer not in left


def test_several_plans_at_once(tmp_path: Path, cache: DigestCache) -> None:
    folders = [save(tmp_path / str(i), seed=i).parent for i in range(3)]
    plain = [describe(str(folder)) for folder in folders]
    wrong: list[object] = []

    def plan() -> None:
        for _ in range(10):
            wrong.extend(one for one, folder in zip(plain, folders, strict=True) if described(folder, cache) != one)

    threads = [threading.Thread(target=plan) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(entries(cache)) == 3


# --- the hub's files ----------------------------------------------------------------------------------------------

BLOB = "ab" * 32


def hub(root: Path, blob: str = BLOB, seed: int = 0) -> Path:
    """A snapshot's folder in a hub cache, whose weight file is a link to a blob."""
    snapshot = root / "models--owner--name" / "snapshots" / "1"
    path = save(snapshot, seed)
    target = root / "models--owner--name" / "blobs" / blob
    target.parent.mkdir()
    path.rename(target)
    path.symlink_to(f"../../blobs/{blob}")
    return snapshot


def test_a_file_that_the_hub_names_is_known_in_another_cache(
    tmp_path: Path, cache: DigestCache, reads: list[Path]
) -> None:
    here, there = hub(tmp_path / "here"), hub(tmp_path / "there")
    assert described(here, cache).digests == described(there, cache).digests
    assert len(reads) == 1
    blob = (there / "model.safetensors").resolve()
    flip(blob)
    assert described(there, cache).digests == describe(str(there)).digests != described(here, cache).digests


def test_a_name_whose_files_differ_is_not_trusted_again(tmp_path: Path, cache: DigestCache) -> None:
    here = hub(tmp_path / "here")
    described(here, cache)
    flip((here / "model.safetensors").resolve())
    assert described(here, cache) == describe(str(here))
    there = hub(tmp_path / "there")
    assert described(there, cache) == describe(str(there))


@pytest.mark.parametrize("blob", ["ab" * 20, "AB" * 32, f"{BLOB}.incomplete"])
def test_other_names_say_nothing(blob: str, tmp_path: Path, cache: DigestCache, reads: list[Path]) -> None:
    for name in ("here", "there"):
        described(hub(tmp_path / name, blob), cache)
    assert len(reads) == 2


def test_a_file_of_another_size_is_not_the_one_that_its_name_says(tmp_path: Path, cache: DigestCache) -> None:
    described(hub(tmp_path / "here"), cache)
    there = hub(tmp_path / "there")
    save_file({NAME: torch.ones(3, 3)}, (there / "model.safetensors").resolve())
    assert described(there, cache) == describe(str(there))


# --- several at once ----------------------------------------------------------------------------------------------


@pytest.fixture
def open_reader() -> Iterator[WeightReader]:
    with WeightReader() as reader:
        yield reader


def test_checkpoints_are_read_at_the_same_time(
    tmp_path: Path, open_reader: WeightReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, read = threading.Barrier(2, timeout=20), weight_reader.read_tensors

    def together(*args: Any) -> Any:
        both.wait()
        return read(*args)

    monkeypatch.setattr(weight_reader, "read_tensors", together)
    folders = [save(tmp_path / str(i), seed=i).parent for i in range(2)]
    for folder in folders:
        begin_reading(str(folder), open_reader)
    found = [describe(str(folder), reader=open_reader) for folder in folders]
    monkeypatch.undo()
    assert found == [describe(str(folder)) for folder in folders]


def test_a_checkpoint_in_the_hubs_cache_is_read_ahead(
    tmp_path: Path, open_reader: WeightReader, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = hub(tmp_path)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda source, name: str(folder / name))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda source, **_: str(folder))
    begin_reading("owner/name", open_reader)
    open_reader.contents(folder / "model.safetensors")
    assert describe("owner/name", reader=open_reader).digests == describe(str(folder)).digests
    assert len(reads) == 2, "one ahead, one of the plain description"


def test_what_is_wrong_is_reported_when_a_checkpoint_is_described(tmp_path: Path, open_reader: WeightReader) -> None:
    path = save(tmp_path / "a")
    path.write_bytes(path.read_bytes()[:-1])
    for source in (str(tmp_path / "a"), str(tmp_path / "none"), "lab://unknown", "owner/name", "--/..", str(path)):
        begin_reading(source, open_reader)
    with pytest.raises(InputError, match=r"model\.safetensors has"):
        describe(str(tmp_path / "a"), reader=open_reader)


def test_closing_stops_a_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raysweep.models.tensors._BLOCK", 64)
    path, reader, begun, go_on = save(tmp_path / "a"), WeightReader(), threading.Event(), threading.Event()
    stop = reader._stop

    def noting() -> None:
        begun.set()
        go_on.wait(20)
        stop()

    monkeypatch.setattr(reader, "_stop", noting)
    begin_reading(str(path.parent), reader)
    assert begun.wait(20)
    reader._closed.set()
    go_on.set()
    reader.close()
    with pytest.raises(weight_reader._ClosedError):
        reader.contents(path)
