"""Folders of shards: read whole as torch reads them, and refused where they are torn, or hold more than tensors."""

from __future__ import annotations

import dataclasses
import os
import warnings

import pytest
import torch
from shard_files import write_index, write_shards
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

from raysweep.errors import InputError
from raysweep.models.shards import check_plain, find_shards, read_index, read_tensor


class Evil:
    """Unpickled, it would make a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    return {
        "even": torch.randn(4, 3),
        "uneven": torch.randn(5, 2, 2).bfloat16(),
        "fewer rows than parts": torch.randn(2, 7),
        "none": torch.empty(0, 3),
        "one value": torch.tensor(2.5, dtype=torch.float64),
        "whole numbers": torch.arange(6),
    }


def read(folder):
    return {name: read_tensor(tensor) for name, tensor in read_index(folder).tensors.items()}


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in ours
    )


def test_what_torch_wrote_is_read(tensors, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch tells that there is one process
        dcp.save({"model": tensors, "rate": 0.5}, checkpoint_id=tmp_path, no_dist=True)
    assert same(read(tmp_path), {f"model.{name}": tensor for name, tensor in tensors.items()})
    assert list(read_index(tmp_path).values) == ["rate"]
    check_plain(tmp_path)


@pytest.mark.parametrize("parts", [1, 3])
def test_parts_are_put_together(tensors, tmp_path, parts):
    write_shards(tmp_path / "shards", tensors, parts, {"betas": (0.9, 0.999)})
    assert same(read(tmp_path / "shards"), tensors)
    check_plain(tmp_path / "shards")


def test_shards_are_found_in_a_checkpoint_of_the_trainer(tensors, tmp_path):
    inside = tmp_path / "checkpoint-20" / "pytorch_model_fsdp_0"
    write_shards(inside, tensors)
    assert find_shards(tmp_path / "checkpoint-20") == find_shards(inside) == inside
    (inside / ".metadata").unlink()
    for folder, told in (
        (inside, "have no .metadata, which is written last, so they are incomplete"),
        (tmp_path / "checkpoint-20", "so they are incomplete"),
        (tmp_path, "has no shards of weights (.metadata and *.distcp, or pytorch_model_fsdp_0 with them)"),
        (tmp_path / "nowhere", "are not a folder; give a checkpoint-N of the trainer"),
    ):
        with pytest.raises(InputError) as caught:
            find_shards(folder)
        assert told in str(caught.value)


# --- nothing is run -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["the index", "inside the index"])
def test_an_index_that_would_run_code_is_refused(tensors, tmp_path, where):
    folder = tmp_path / "shards"
    index = write_shards(folder, tensors)
    evil = Evil(tmp_path / "was here")
    write_index(folder, evil if where == "the index" else dataclasses.replace(index, planner_data=evil))
    with pytest.raises(InputError) as caught:
        read_index(folder)
    assert str(caught.value) == (
        f"{folder}/.metadata asks for posix.mkdir, which no index of shards needs, and raysweep runs no pickled code; "
        "save the shards again with torch.distributed.checkpoint"
    )
    assert not (tmp_path / "was here").exists()


def test_a_value_that_would_run_code_is_refused(tensors, tmp_path):
    """torch itself would load an optimizer's settings with whatever is in them."""
    write_shards(tmp_path / "shards", tensors, values={"optimizer.lr": Evil(tmp_path / "was here")})
    with pytest.raises(
        InputError, match=r"__0_0\.distcp has no plain value of optimizer\.lr at byte \d+ \(UnpicklingError"
    ):
        check_plain(tmp_path / "shards")
    assert not (tmp_path / "was here").exists()


# --- torn ---------------------------------------------------------------------------------------------------------


def test_a_file_that_is_missing_or_cut(tensors, tmp_path):
    folder = tmp_path / "shards"
    write_shards(folder, tensors)
    file = folder / "__1_0.distcp"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=rf"__1_0\.distcp has {len(whole) - 1} bytes, and the index puts a part of"):
        read_index(folder)
    file.write_bytes(bytes(len(whole)))
    with pytest.raises(InputError, match=r"__1_0\.distcp has no plain value of even at byte 0"):
        read(folder)
    file.unlink()
    with pytest.raises(
        InputError, match=r"lack the file __1_0\.distcp, which has a part of even; copy the shards again"
    ):
        read_index(folder)


@pytest.mark.parametrize("size", [0, 10, 400])
def test_an_index_that_is_cut(tensors, tmp_path, size):
    write_shards(tmp_path / "shards", tensors)
    index = tmp_path / "shards" / ".metadata"
    index.write_bytes(index.read_bytes()[:size])
    with pytest.raises(InputError, match="is not a complete index of shards"):
        read_index(tmp_path / "shards")


@pytest.mark.parametrize(
    ("chunks", "values"),
    [
        ([((0, 0), (2, 3))], 6),  # rows are left out
        ([((0, 0), (2, 3)), ((1, 0), (2, 3))], 12),  # one is there twice, another not
        ([((0, 0), (2, 3)), ((3, 0), (2, 3))], 12),  # the last is beyond the end
    ],
)
def test_parts_that_do_not_make_a_tensor_whole(tmp_path, chunks, values):
    folder = tmp_path / "shards"
    index = write_shards(folder, {"t": torch.randn(4, 3)})
    index.state_dict_metadata["t"].chunks = [ChunkStorageMetadata(torch.Size(b), torch.Size(s)) for b, s in chunks]
    info = next(iter(index.storage_data.values()))
    index.storage_data = {MetadataIndex("t", begins): info for begins, _ in chunks}
    write_index(folder, index)
    with pytest.raises(InputError) as caught:
        read_index(folder)
    assert str(caught.value) == (
        f"{folder}/.metadata lists tensor t of shape [4, 3] in {len(chunks)} parts with {values} values, which do not "
        "add up; copy the shards again, all of them"
    )


def test_a_part_of_another_shape_than_told(tmp_path):
    folder = tmp_path / "shards"
    index = write_shards(folder, {"t": torch.randn(4, 3)})
    index.state_dict_metadata["t"].properties.dtype = torch.float16
    write_index(folder, index)
    with pytest.raises(
        InputError,
        match=r"tensor t has torch\.float32 of shape \[2, 3\] at byte 0, but the index has torch\.float16",
    ):
        read(folder)


@pytest.mark.parametrize("path", ["../other/__0_0.distcp", "/etc/hostname"])
def test_a_file_of_another_folder(tmp_path, path):
    folder = tmp_path / "shards"
    index = write_shards(folder, {"t": torch.randn(4, 3)})
    for info in index.storage_data.values():
        info.relative_path = path
    write_index(folder, index)
    with pytest.raises(InputError, match=r"puts tensor t into .*another folder's file"):
        read_index(folder)


@pytest.mark.parametrize("held", [{"t": 1}, 3, None])
def test_what_is_no_index(tmp_path, held):
    write_index(tmp_path, held)
    with pytest.raises(InputError, match="is not an index of shards"):
        read_index(tmp_path)
