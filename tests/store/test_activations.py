"""The activation store: bits and layout, checked with plain pyarrow and numpy."""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import os
import resource
import stat
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from stored import ARROW, DTYPES, LABELS, bits_of, random_bits, read_plainly, write

from raysweep.errors import StoreError
from raysweep.store import activation_writing, artifacts
from raysweep.store.activation_writing import publish_manifest, write_part
from raysweep.store.activations import open_activations


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_16_bit_pattern_survives(tmp_path: Path, dtype: str) -> None:
    bits = np.arange(2**16, dtype=np.uint16).reshape(1, 512, 128)
    states = torch.from_numpy(bits.copy()).view(getattr(torch, dtype))
    assert torch.isnan(states).sum() > 100  # NaN payloads are among them
    write(tmp_path, states)
    result = open_activations(tmp_path).layer(0)
    assert result.dtype == states.dtype
    np.testing.assert_array_equal(bits_of(result), bits[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows_of", [[11], [4, 0, 6, 1]])
@pytest.mark.parametrize("batch_bytes", [1, 3 * (5 * 4 + 20), 2**26])
def test_round_trip_is_bit_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, rows_of: list[int], batch_bytes: int
) -> None:
    monkeypatch.setattr(activation_writing, "BATCH_BYTES", batch_bytes)
    bits_LND, states_LND = random_bits(dtype, (3, 11, 5))
    write(tmp_path, states_LND, rows_of)
    opened = open_activations(tmp_path)
    assert (opened.n_layers, opened.rows, opened.width, opened.dtype) == (3, 11, 5, states_LND.dtype)
    assert opened.states().shape == (3, 11, 5)
    assert opened.states().dtype == states_LND.dtype
    np.testing.assert_array_equal(bits_of(opened.states()), bits_LND)
    for layer in range(3):
        np.testing.assert_array_equal(bits_of(opened.layer(layer)), bits_LND[layer])
    np.testing.assert_array_equal(opened.example_ids, np.arange(11) + 100)
    np.testing.assert_array_equal(opened.token_pos, np.arange(11) % 7)
    np.testing.assert_array_equal(opened.token_ids, np.arange(11) * 2**33)
    assert [ids.dtype for ids in (opened.example_ids, opened.token_pos, opened.token_ids)] == ["i8", "i4", "i8"]
    opened.verify()


def test_only_views_of_the_states_are_needed(tmp_path: Path) -> None:
    """States come as slices, transposes and with gradients."""
    bits_NLD, states_NLD = random_bits("float32", (6, 2, 8))
    states_LND = states_NLD.transpose(0, 1).requires_grad_()[:, ::2, 1:5]
    write(tmp_path, states_LND)
    np.testing.assert_array_equal(bits_of(open_activations(tmp_path).states()), bits_NLD.swapaxes(0, 1)[:, ::2, 1:5])


def test_no_rows_at_all(tmp_path: Path) -> None:
    write(tmp_path, torch.zeros(2, 0, 4, dtype=torch.bfloat16))
    opened = open_activations(tmp_path)
    assert opened.layer(1).shape == (0, 4)
    assert opened.states().shape == (2, 0, 4)
    assert opened.token_ids.shape == (0,)


@pytest.mark.parametrize("dtype", DTYPES)
def test_files_are_as_documented_to_any_arrow_reader(tmp_path: Path, dtype: str) -> None:
    bits_LND, states_LND = random_bits(dtype, (2, 5, 3))
    entries = write(tmp_path, states_LND, [3, 2])
    on_disk = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert on_disk == {
        "layer=000/part-0000.arrow",
        "layer=000/part-0001.arrow",
        "layer=001/part-0000.arrow",
        "layer=001/part-0001.arrow",
        "manifest.json",
    }
    table = read_plainly(tmp_path / "layer=001/part-0001.arrow")
    assert [(field.name, field.type) for field in table.schema] == [
        ("example_id", pa.int64()),
        ("token_pos", pa.int32()),
        ("token_id", pa.int64()),
        ("vector", pa.fixed_shape_tensor(ARROW[dtype], [3])),
    ]
    assert table.schema.field("vector").metadata == {b"torch_dtype": dtype.encode()}
    assert table.drop(["vector"]).to_pylist() == [
        {"example_id": 103, "token_pos": 3, "token_id": 3 * 2**33},
        {"example_id": 104, "token_pos": 4, "token_id": 4 * 2**33},
    ]
    vectors = table["vector"].combine_chunks().storage.flatten().to_numpy().reshape(2, 3)
    np.testing.assert_array_equal(vectors.view(bits_LND.dtype), bits_LND[1, 3:])

    for entry in entries:
        content = (tmp_path / entry.path).read_bytes()
        assert (entry.bytes, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert [entry.rows for entry in entries] == [3, 3, 2, 2]


def test_manifest_says_what_the_store_is(tmp_path: Path) -> None:
    entries = write(tmp_path, torch.zeros(2, 5, 3, dtype=torch.bfloat16), extra={"fingerprint": "f00"})
    assert json.loads((tmp_path / "manifest.json").read_text()) == {
        "model": "tiny",
        "dataset": "sums",
        "pooling": "last",
        "torch_dtype": "bfloat16",
        "layers": 2,
        "rows": 5,
        "width": 3,
        "parts": ["0000"],
        "files": [{"path": e.path, "rows": e.rows, "bytes": e.bytes, "sha256": e.sha256} for e in entries],
        "extra": {"fingerprint": "f00"},
    }
    opened = open_activations(tmp_path)
    assert (opened.model, opened.dataset, opened.pooling, opened.torch_dtype) == ("tiny", "sums", "last", "bfloat16")
    assert (opened.parts, opened.files, opened.extra) == (("0000",), tuple(entries), {"fingerprint": "f00"})


def test_record_batches_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation_writing, "BATCH_BYTES", 1000)
    write(tmp_path, torch.zeros(1, 100, 16, dtype=torch.bfloat16))
    with pa.memory_map(str(tmp_path / "layer=000/part-0000.arrow")) as source:
        reader = pa.ipc.open_file(source)
        batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        assert [batch.num_rows for batch in batches] == [19] * 5 + [5]  # 16 * 2 + 8 + 4 + 8 = 52 bytes a row
        assert max(batch.nbytes for batch in batches) <= 1000


# --- reading without a copy ---------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_single_part_lies_in_the_memory_map(tmp_path: Path, dtype: str) -> None:
    def maps(path: Path) -> list[tuple[int, int]]:
        lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        ranges = [line[0].split("-") for line in lines if line[-1] == str(path)]
        return [(int(start, 16), int(stop, 16)) for start, stop in ranges]

    bits_LND, states_LND = random_bits(dtype, (2, 300, 16))
    write(tmp_path, states_LND)
    path = tmp_path / "layer=001/part-0000.arrow"
    opened = open_activations(tmp_path)
    assert maps(path) == []
    before = pa.total_allocated_bytes()
    states_ND = opened.layer(1)
    assert pa.total_allocated_bytes() - before < 1000  # 300 * 16 states are 9,600 bytes or more
    end = states_ND.data_ptr() + states_ND.nbytes
    assert any(start <= states_ND.data_ptr() and end <= stop for start, stop in maps(path))

    del opened
    gc.collect()
    np.testing.assert_array_equal(bits_of(states_ND), bits_LND[1])  # the tensor keeps the map alive
    del states_ND
    assert maps(path) == []


def test_writing_to_a_layer_changes_nothing_else(tmp_path: Path) -> None:
    bits_LND, states_LND = random_bits("bfloat16", (1, 4, 8))
    write(tmp_path, states_LND)
    opened = open_activations(tmp_path)
    changed, other = opened.layer(0), opened.layer(0)
    changed.zero_()
    assert not changed.any()
    for states_ND in (other, opened.layer(0)):
        np.testing.assert_array_equal(bits_of(states_ND), bits_LND[0])
    opened.verify()


@pytest.mark.skipif(sys.platform != "linux", reason="counts /proc/self/fd")
def test_more_parts_than_open_files_are_allowed(tmp_path: Path) -> None:
    bits_LND, states_LND = random_bits("float32", (1, 60, 2))
    write(tmp_path, states_LND, [1] * 60)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 20, hard))
    try:
        opened = open_activations(tmp_path)
        results = [opened.layer(0), opened.states()[0]]
        assert len(opened.example_ids) == 60
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for states_ND in results:
        np.testing.assert_array_equal(bits_of(states_ND), bits_LND[0])


# --- the manifest alone is trusted --------------------------------------------------------------------------------


def test_parts_without_a_manifest_are_no_store(tmp_path: Path) -> None:
    write_part(tmp_path, "0000", torch.zeros(2, 1, 3), np.zeros(1, int), np.zeros(1, int), np.zeros(1, int))
    with pytest.raises(StoreError) as caught:
        open_activations(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'manifest.json'}: no such file, so no complete activations are stored here; finish the capture"
    )


def test_files_the_manifest_does_not_name_are_not_read(tmp_path: Path) -> None:
    bits_LND, states_LND = random_bits("bfloat16", (2, 3, 4))
    write(tmp_path, states_LND)
    write_part(tmp_path, "0001", states_LND, np.zeros(3, int), np.zeros(3, int), np.zeros(3, int))
    (tmp_path / "layer=000" / "part-0002.arrow").write_bytes(b"half")
    np.testing.assert_array_equal(bits_of(open_activations(tmp_path).states()), bits_LND)


def test_rows_follow_the_order_of_the_manifest_s_parts(tmp_path: Path) -> None:
    states_LND = torch.arange(8.0).reshape(2, 4, 1)
    write(tmp_path, states_LND, [1, 3], parts=["0001", "0000"])
    opened = open_activations(tmp_path)
    assert opened.states().squeeze(-1).tolist() == [[1, 2, 3, 0], [5, 6, 7, 4]]
    assert opened.example_ids.tolist() == [101, 102, 103, 100]


@pytest.mark.parametrize("failing_rename", [1, 2, 3])
def test_exception_while_writing_leaves_the_earlier_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_rename: int
) -> None:
    old_bits, old_states = random_bits("bfloat16", (2, 3, 4))
    write(tmp_path, old_states)
    _, states = random_bits("bfloat16", (2, 3, 4), seed=1)
    calls, real, lock = [], os.replace, threading.Lock()

    def replace(source: Path, target: Path) -> None:
        with lock:  # layers are written by several threads
            calls.append(target.name)
            failing = len(calls) == failing_rename
        if failing:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)

    def capture() -> None:
        ids = np.zeros(3, int)
        files = write_part(tmp_path, "new", states, ids, ids, ids)
        publish_manifest(tmp_path, ["new"], files, layers=2, width=4, torch_dtype="bfloat16", **LABELS)

    with pytest.raises(KeyboardInterrupt):
        capture()
    assert ("manifest.json" in calls) == (failing_rename == 3), "no manifest after a layer that failed"
    assert not list(tmp_path.rglob(".tmp*"))
    opened = open_activations(tmp_path)
    opened.verify()
    np.testing.assert_array_equal(bits_of(opened.states()), old_bits)


def test_layers_are_flushed_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flush, together = os.fsync, threading.Barrier(activation_writing.WRITERS, timeout=20)
    met = threading.Event()

    def meeting(descriptor: int) -> None:
        if not met.is_set() and stat.S_ISREG(os.fstat(descriptor).st_mode):
            together.wait()  # fails unless so many files are being flushed at once
            met.set()
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", meeting)
    ids = np.zeros(2, int)
    files = write_part(tmp_path, "x", torch.ones(activation_writing.WRITERS, 2, 3), ids, ids, ids)
    assert met.is_set()
    assert [entry.path for entry in files] == [f"layer={i:03d}/part-x.arrow" for i in range(activation_writing.WRITERS)]


def test_a_layer_that_cannot_be_flushed_is_the_call_s_error_and_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush = artifacts.flush

    def failing(path: Path) -> None:
        if path.parent.name == "layer=003":
            raise OSError(errno.ENOSPC, "no room", str(path))
        flush(path)

    monkeypatch.setattr(artifacts, "flush", failing)
    ids = np.zeros(2, int)
    with pytest.raises(OSError, match=r"layer=003") as raised:
        write_part(tmp_path, "x", torch.ones(40, 2, 3), ids, ids, ids)
    assert raised.value.errno == errno.ENOSPC
    assert not list(tmp_path.rglob(".tmp-*"))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("raysweep-writers")]
