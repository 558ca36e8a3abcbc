"""Chunks and activations in a folder, in memory and on an S3 server: the same content, the same refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from stored import DTYPES, bits_of, random_bits, write

from raysweep.errors import StoreError
from raysweep.store.activations import open_activations
from raysweep.store.chunks import ChunkStore
from raysweep.store.places import listing, put_bytes, read_bytes


def rows(*pairs: tuple[str, float]) -> pa.Table:
    return pa.table({"part": [part for part, _ in pairs], "loss": [loss for _, loss in pairs]})


def test_commits_are_read_by_another_reader(place: Any) -> None:
    written, reader = ChunkStore(place / "chunks"), ChunkStore(place / "chunks")
    assert reader.manifests() == []
    first = written.commit("c-0", rows(("a", 1.0), ("b", 2.0)), parts={"a": 1, "b": 2}, extra={"n": 1})
    assert reader.manifests() == [first]
    second = written.commit("c-1", None, parts={"c": None})
    assert reader.manifests() == [first, second] == written.manifests()
    assert reader.read_parts(["b", "c", "a"]).to_pydict() == {"part": ["b", "a"], "loss": [2.0, 1.0]}
    with pytest.raises(StoreError, match="this chunk is already committed"):
        written.commit("c-0", None, parts={})


def test_a_commit_that_was_taken_back_and_made_anew_is_the_new_one(place: Any) -> None:
    written, reader = ChunkStore(place), ChunkStore(place)
    old = written.commit("c-0", rows(("a", 1.0)), parts={"a": 1})
    assert reader.read_parts(["a"])["loss"].to_pylist() == [1.0]
    written.forget(old.name)
    assert reader.manifests() == []
    written.commit("c-0", rows(("a", 5.0)), parts={"a": 1})
    assert reader.read_parts(["a"])["loss"].to_pylist() == [5.0]


def test_every_commit_is_taken_back_a_broken_one_too(place: Any) -> None:
    store = ChunkStore(place / "chunks")
    store.forget_all()
    for name in ("c-0", "c-1"):
        store.commit(name, rows(("a", 1.0)), parts={"a": 1})
    (place / "chunks" / store.load("c-0").table.path).unlink()
    store.forget_all()
    assert store.manifests() == []
    assert ChunkStore(place / "chunks").done() == {}


def test_an_uncommitted_table_does_not_exist(place: Any) -> None:
    store = ChunkStore(place)
    manifest = store.commit("c-0", rows(("a", 1.0)), parts={"a": 1})
    store.forget(manifest.name)
    assert read_bytes(place / manifest.table.path)[:4] == b"PAR1"
    assert (store.manifests(), store.done()) == ([], {})


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "half a manifest"])
def test_a_damaged_commit_is_named(place: Any, damage: str) -> None:
    manifest = ChunkStore(place).commit("c-0", rows(("a", 1.0)), parts={"a": 1})
    path = place / ("c-0.json" if damage == "half a manifest" else manifest.table.path)
    content = bytearray(read_bytes(path))
    if damage == "gone":
        path.unlink()
    elif damage == "changed":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(content[: len(content) // 2])
    expected = {
        "cut": "bytes, found",
        "changed": "expected sha256",
        "gone": "found no file",
        "half a manifest": "not a complete",
    }
    with pytest.raises(StoreError, match=expected[damage]) as caught:
        ChunkStore(place).read_parts(["a"])
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).endswith(f"; delete {place / 'c-0.json'} to recompute the chunk")


@pytest.mark.parametrize("dtype", DTYPES)
def test_states_come_back_to_the_bit(place: Any, dtype: str) -> None:
    bits, states = random_bits(dtype, (3, 7, 5))
    write(place, states, [4, 3])
    opened = open_activations(place)
    assert (bits_of(opened.states()) == bits).all()
    assert all((bits_of(layer) == bits[n]).all() for n, layer in enumerate(opened))
    assert opened.example_ids.tolist() == list(range(100, 107))
    for n, stored in enumerate(opened.stored_layers()):
        for rows_of in (slice(0, 7), slice(2, 5), slice(6, 7), slice(3, 3)):
            assert (bits_of(stored[rows_of]) == bits[n, rows_of]).all()
    opened.verify()


def test_writing_in_place_changes_no_object(remote: Any) -> None:
    write(remote, torch.zeros(1, 2, 3))
    open_activations(remote).layer(0).add_(1)
    assert open_activations(remote).layer(0).sum() == 0


def test_a_store_without_its_manifest_is_none(place: Any) -> None:
    write(place, torch.zeros(1, 2, 3))
    (place / "manifest.json").unlink()
    with pytest.raises(StoreError, match=r"manifest\.json: no such file, so no complete activations are stored here"):
        open_activations(place)


def test_damaged_states_in_a_store_are_named(remote: Any) -> None:
    entries = write(remote, random_bits("float32", (2, 6, 4))[1], [4, 2])
    path = remote / entries[1].path
    content = bytearray(read_bytes(path))
    opened = open_activations(remote)
    layer = opened.stored_layers()[1]
    content[len(content) // 2] ^= 1
    put_bytes(path, bytes(content))
    for read in (opened.states, opened.stored_layers, lambda: opened.layer(1), opened.verify):
        with pytest.raises(StoreError, match="expected sha256") as caught:
            read()
        assert str(caught.value).startswith(f"{path}: ")
    put_bytes(path, bytes(content[:40]))
    for read in (opened.states, lambda: open_activations(remote)):
        with pytest.raises(StoreError, match=f"expected {entries[1].bytes} bytes, found 40"):
            read()
    with pytest.raises(StoreError, match=r"ends \d+ bytes before the rows that it had when it was opened"):
        layer[0:4]


def test_opening_a_store_asks_for_its_files_together(s3: Any, bucket: Any) -> None:
    write(bucket, torch.zeros(8, 2, 3), [1, 1])
    assert len(listing(bucket)) == 17
    s3.fail(0)
    opened = open_activations(bucket)
    assert s3.counts()["requests"] <= 4, "the manifest and one listing"
    np.testing.assert_array_equal(opened.states().numpy(), 0)
    assert s3.counts()["requests"] <= 4 + 16
