"""Shards written by hand from torch's own index classes: every tensor in parts along its first dimension, part i in file i."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)


def write_shards(
    folder: Path, tensors: Mapping[str, torch.Tensor], parts: int = 2, values: Mapping[str, Any] = {}
) -> Metadata:
    """The folder with its files and `.metadata`; what was pickled into that, to change and pickle again."""
    folder.mkdir(parents=True)
    files = [io.BytesIO() for _ in range(parts)]
    entries: dict[str, Any] = {}
    places: dict[MetadataIndex, _StorageInfo] = {}

    def put(part: int, value: Any, index: MetadataIndex) -> None:
        offset = files[part].tell()
        torch.save(value, files[part])
        places[index] = _StorageInfo(f"__{part}_0.distcp", offset, files[part].tell() - offset)

    for name, tensor in tensors.items():
        chunks, begin = [], 0
        for part, piece in enumerate(torch.tensor_split(tensor, parts) if tensor.ndim else [tensor]):
            at = torch.Size([begin, *([0] * (tensor.ndim - 1))]) if tensor.ndim else torch.Size([])
            chunks.append(ChunkStorageMetadata(at, piece.size()))
            put(part, piece.clone(), MetadataIndex(name, at))
            begin += piece.size(0) if tensor.ndim else 0
        entries[name] = TensorStorageMetadata(TensorProperties(dtype=tensor.dtype), tensor.size(), chunks)
    for name, value in values.items():
        entries[name] = BytesStorageMetadata()
        put(0, value, MetadataIndex(name))
    for part, file in enumerate(files):
        (folder / f"__{part}_0.distcp").write_bytes(file.getvalue())
    index = Metadata(entries, storage_data=places, storage_meta=StorageMeta(folder, "save"))
    write_index(folder, index)
    return index


def write_index(folder: Path, index: Any) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(index))
