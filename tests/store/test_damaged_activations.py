"""The activation store damaged or misused: each fault is named with what to do."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from stored import LABELS, random_bits, read_plainly, write

from raysweep.errors import StoreError
from raysweep.store.activation_writing import publish_manifest, write_part
from raysweep.store.activations import Activations, open_activations
from raysweep.store.artifacts import FileEntry


@pytest.fixture
def damaged(tmp_path: Path) -> tuple[Path, FileEntry, Path]:
    """A whole store, and the entry and path of the file to damage."""
    entries = write(tmp_path, random_bits("bfloat16", (2, 6, 4))[1], [4, 2])
    return tmp_path, entries[1], tmp_path / entries[1].path


def test_missing_and_cut_files_are_named_at_once(damaged: tuple[Path, FileEntry, Path]) -> None:
    folder, entry, path = damaged
    opened = open_activations(folder)
    remedy = f"delete {folder} to capture these activations again"

    def messages() -> set[str]:
        found = set()
        calls = (lambda: open_activations(folder), lambda: opened.layer(1), opened.states, opened.verify)
        for call in calls:
            with pytest.raises(StoreError) as caught:
                call()
            found.add(str(caught.value))
        return found

    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert messages() == {f"{path}: expected {entry.bytes} bytes, found {len(content) // 2}; {remedy}"}
    path.write_bytes(content + b"\0")
    assert messages() == {f"{path}: expected {entry.bytes} bytes, found {entry.bytes + 1}; {remedy}"}
    path.unlink()
    assert messages() == {f"{path}: expected {entry.bytes} bytes, found no file; {remedy}"}


def test_changed_bytes_are_named_by_verify_and_by_whatever_reads_them(damaged: tuple[Path, FileEntry, Path]) -> None:
    folder, entry, path = damaged
    whole = open_activations(folder).layer(1)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    opened = open_activations(folder)
    for read in (opened.verify, opened.states, lambda: opened.layer(1), lambda: list(opened), opened.stored_layers):
        with pytest.raises(StoreError) as caught:
            read()
        assert str(caught.value) == (
            f"{path}: expected sha256 {entry.sha256}, found {hashlib.sha256(content).hexdigest()}; "
            f"delete {folder} to capture these activations again"
        )
    assert opened.layer(0).shape == whole.shape, "what is not damaged is read"


def test_a_file_that_is_no_arrow_file_is_named(damaged: tuple[Path, FileEntry, Path]) -> None:
    folder, entry, path = damaged
    path.write_bytes(b"\0" * entry.bytes)
    rewrite(folder, lambda data: data["files"][1].update(sha256=hashlib.sha256(path.read_bytes()).hexdigest()))
    with pytest.raises(StoreError) as caught:
        open_activations(folder).layer(1)
    assert str(caught.value).startswith(f"{path}: not a readable Arrow file (")


def rewrite(folder: Path, change: Any) -> Path:
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return path


def test_a_file_of_another_dtype_is_not_taken_for_the_store_s(tmp_path: Path) -> None:
    write(tmp_path, torch.zeros(1, 2, 3, dtype=torch.bfloat16))
    rewrite(tmp_path, lambda data: data.update(torch_dtype="float16"))
    with pytest.raises(StoreError) as caught:
        open_activations(tmp_path).layer(0)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'layer=000/part-0000.arrow'}: expected columns example_id int64, token_pos")
    assert "(torch_dtype" not in message  # the values, not the keys
    assert message.index("(float16)") < message.index(", found ") < message.index("(bfloat16)")


def test_bits_without_the_name_of_their_dtype_are_not_read(tmp_path: Path) -> None:
    write(tmp_path, torch.zeros(1, 2, 3, dtype=torch.bfloat16))
    path = tmp_path / "layer=000/part-0000.arrow"
    table = read_plainly(path)
    unnamed = pa.schema([field.remove_metadata() for field in table.schema])
    with pa.ipc.new_file(str(path), unnamed) as writer:
        writer.write_table(table.cast(unnamed))
    found = {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    rewrite(tmp_path, lambda data: data["files"][0].update(found))
    with pytest.raises(
        StoreError, match=r"part-0000\.arrow: expected columns .*\(bfloat16\), found .*shape=\[3\]\]>; delete"
    ):
        open_activations(tmp_path).layer(0)


def test_a_file_of_other_rows_is_named(tmp_path: Path) -> None:
    write(tmp_path, torch.zeros(1, 2, 3))
    rewrite(tmp_path, lambda data: (data["files"][0].update(rows=3), data.update(rows=3)))
    with pytest.raises(StoreError, match=r"part-0000\.arrow: expected 3 rows, found 2; delete"):
        open_activations(tmp_path).layer(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("pooling"), "KeyError: 'pooling'"),
        (lambda data: data.update(torch_dtype="bfloat"), "cannot be stored as 'bfloat'; did you mean 'bfloat16'?"),
        (lambda data: data.update(rows=9), "it says 9 rows, its files have 2"),
        (lambda data: data["files"].pop(1), "the files lack layer=001/part-0000.arrow (1 of 2 are missing)"),
        (lambda data: data["files"][0].update(bytes=None), "does not describe a file"),
        (lambda data: data["files"][0].update(path="../part-0000.arrow"), "is a path outside the folder"),
        (lambda data: data.update(layers="2"), "TypeError"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path: Path, change: Any, message: str) -> None:
    write(tmp_path, torch.zeros(2, 2, 3))
    path = rewrite(tmp_path, change)
    with pytest.raises(StoreError) as caught:
        open_activations(tmp_path)
    assert str(caught.value).startswith(f"{path}: not a manifest of activations (")
    assert message in str(caught.value)
    assert str(caught.value).endswith(f"; delete {tmp_path} to capture these activations again")


def test_half_a_manifest_is_named(tmp_path: Path) -> None:
    write(tmp_path, torch.zeros(2, 2, 3))
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(StoreError) as caught:
        open_activations(tmp_path)
    assert str(caught.value).startswith(f"{path}: not a complete manifest (")


# --- misuse -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "states", "ids", "message"),
    [
        ("../x", torch.zeros(1, 2, 3), [2, 2, 2], "part '../x' is not a safe file name"),
        ("x", torch.zeros(2, 3), [2, 2, 2], r"states must be \[layers, rows, width\], found shape \(2, 3\)"),
        ("x", torch.zeros(1, 2, 3, dtype=torch.float64), [2, 2, 2], "cannot be stored as 'float64'; did you mean"),
        ("x", torch.zeros(1, 2, 3), [3, 2, 2], r"example_id must be \[2\], one for each row .*, found \[3\]"),
        ("x", torch.zeros(1, 2, 3), [2, 2, 1], r"token_id must be \[2\], one for each row .*, found \[1\]"),
    ],
)
def test_write_part_refuses_what_it_cannot_store(
    tmp_path: Path, part: str, states: torch.Tensor, ids: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_part(tmp_path, part, states, *(np.zeros(count, int) for count in ids))
    assert list(tmp_path.iterdir()) == []


def test_positions_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    one = np.ones(1, int)
    with pytest.raises(ValueError, match="2147483648 not in range"):
        write_part(tmp_path, "x", torch.zeros(1, 1, 3), one, one * 2**31, one)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": ["0000"]}, "layer=000/part-0001.arrow is a file of no layer below 2 and none of the 1 parts"),
        ({"parts": ["0000", "0001", "0002"]}, "the files lack layer=000/part-0002.arrow (2 of 6 are missing)"),
        ({"parts": ["0000", "0001", "0000"]}, "a part is named twice"),
        ({"layers": 3}, "the files lack layer=002/part-0000.arrow (2 of 6 are missing)"),
        ({"torch_dtype": "torch.bfloat16"}, "cannot be stored as 'torch.bfloat16'; did you mean 'bfloat16'?"),
    ],
)
def test_manifest_of_other_files_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below
        write(tmp_path, torch.zeros(2, 5, 3), [3, 2], **changes)
    assert message in str(caught.value)
    assert not (tmp_path / "manifest.json").exists()


def test_manifest_of_uneven_or_damaged_files_is_refused(tmp_path: Path) -> None:
    facts = {"layers": 2, "width": 3, "torch_dtype": "float32"} | LABELS
    ids = np.zeros(4, int)
    first, second = write_part(tmp_path, "x", torch.zeros(2, 4, 3), ids, ids, ids)
    uneven = FileEntry(second.path, 5, second.bytes, second.sha256)
    with pytest.raises(ValueError, match=r"layer=001/part-x\.arrow has 5 rows, layer=000/part-x\.arrow has 4"):
        publish_manifest(tmp_path, ["x"], [first, uneven], **facts)
    (tmp_path / second.path).unlink()
    with pytest.raises(StoreError, match=r"layer=001/part-x\.arrow: expected \d+ bytes, found no file"):
        publish_manifest(tmp_path, ["x"], [first, second], **facts)
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize("layer", [-1, 2])
def test_layers_count_from_0(tmp_path: Path, layer: int) -> None:
    write(tmp_path, torch.zeros(2, 1, 3))
    opened: Activations = open_activations(tmp_path)
    with pytest.raises(IndexError, match=rf"layer {layer} is not among the 2 layers \(0 to 1\)"):
        opened.layer(layer)
