"""Sharded checkpoints as torch.distributed.checkpoint writes them (`.metadata` and `*.distcp`): what is in them, and whole tensors.

FSDP in accelerate and in transformers' trainer writes its weights so, in `checkpoint-N/pytorch_model_fsdp_0`. The index is a
pickle, and torch reads it as one; here it is read by an unpickler that knows nothing but the index's own classes, and the
tensors as plain tensors, so that no code that a file brings is run.
"""

from __future__ import annotations

import io
import math
import pickle
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep import limits
from raysweep.errors import InputError, shown
from raysweep.models.tensors import Shape

if TYPE_CHECKING:
    import torch

INDEX = ".metadata"
WEIGHTS, OPTIMIZER = "pytorch_model_fsdp_0", "optimizer_0"  # where accelerate puts them
_PRIME = 2**127 - 1
_AGAIN = "copy the shards again, all of them"
_INDEX_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "pathlib": {"PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath"},
    "collections": {"OrderedDict"},
}
_PATHS = "pathlib"  # of a path only the text counts, and another system's cannot be made here


class PickledCodeError(InputError):
    """A name in a pickle that no index of shards needs; the message follows the file's name."""


@dataclass(frozen=True)
class Piece:
    """A part of a tensor: where it begins in it and its sizes, and its bytes in a file."""

    begins: Shape
    sizes: Shape
    file: Path
    offset: int
    length: int


@dataclass(frozen=True)
class Sharded:
    """A tensor in pieces that make it whole, none of its values twice."""

    name: str
    shape: Shape
    dtype: torch.dtype
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Shards:
    """What a folder of shards holds: tensors, and values of other kinds by name (an optimizer's settings)."""

    folder: Path
    tensors: Mapping[str, Sharded]
    values: Mapping[str, Piece]


def find_shards(folder: Path) -> Path:
    """The folder with the weights' shards: this one, or the one that the trainer made in this `checkpoint-N`.

    Raises InputError where there is none.
    """
    for found in (folder, folder / WEIGHTS):
        if (found / INDEX).is_file():
            return found
    if not folder.is_dir():
        raise InputError(
            f"shards '{folder}' are not a folder; give a checkpoint-N of the trainer, or the folder of *.distcp files"
        )
    if any(path.suffix == ".distcp" for inside in (folder, folder / WEIGHTS) for path in inside.glob("*")):
        raise InputError(f"shards '{folder}' have no {INDEX}, which is written last, so they are incomplete; {_AGAIN}")
    raise InputError(
        f"folder '{folder}' has no shards of weights ({INDEX} and *.distcp, or {WEIGHTS} with them); give a checkpoint-N of "
        "the trainer, or the folder of *.distcp files"
    )


def read_index(folder: Path) -> Shards:
    """What the folder's index tells, checked: every tensor's pieces make it whole, and lie in files of this folder.

    Raises InputError for an index that is torn or holds anything else, and for files that are missing or too short.
    """
    path = folder / INDEX
    try:
        found = _Index(io.BytesIO(limits.read_limited(path, limits.SHARD_INDEX_BYTES))).load()
    except FileNotFoundError as error:
        raise InputError(
            f"shards '{folder}' have no {INDEX}, which is written last, so they are incomplete; {_AGAIN}"
        ) from error
    except PickledCodeError as error:
        raise InputError(f"{path} {error}") from error
    except InputError:
        raise
    except Exception as error:  # a torn pickle raises whatever its reader stumbled over
        raise InputError(
            f"{path} is not a complete index of shards ({type(error).__name__}: {shown(str(error))}); {_AGAIN}"
        ) from error
    try:
        return _checked(folder, found)
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        raise InputError(
            f"{path} is not an index of shards ({type(error).__name__}: {shown(str(error))}); {_AGAIN}"
        ) from error


def check_plain(folder: Path) -> None:
    """Raise InputError unless the folder's shards are whole, and torch would load nothing of them but tensors and plain values."""
    shards = read_index(folder)
    for name, piece in shards.values.items():
        _read(name, piece)


def read_tensor(tensor: Sharded) -> torch.Tensor:
    """The tensor, put together in memory. Raises InputError where a piece is not what the index tells."""
    import torch

    whole = torch.empty(tensor.shape, dtype=tensor.dtype)
    for piece in tensor.pieces:
        value = _read(tensor.name, piece)
        if not isinstance(value, torch.Tensor) or value.shape != piece.sizes or value.dtype != tensor.dtype:
            raise InputError(
                f"{piece.file}: tensor {tensor.name} has {_kind(value)} at byte {piece.offset}, but the index has "
                f"{tensor.dtype} of shape {list(piece.sizes)}; {_AGAIN}"
            )
        region = tuple(slice(start, start + size) for start, size in zip(piece.begins, piece.sizes, strict=True))
        whole[region] = value
    return whole


class _Index(pickle.Unpickler):
    """Knows the classes of an index, and refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        import torch

        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        if name not in _INDEX_CLASSES.get(module, ()):
            raise PickledCodeError(
                f"asks for {module}.{name}, which no index of shards needs, and raysweep runs no pickled code; save "
                "the shards again with torch.distributed.checkpoint"
            )
        return _as_text if module == _PATHS else super().find_class(module, name)


def _as_text(*parts: str) -> str:
    return "/".join(parts)


def _checked(folder: Path, found: Any) -> Shards:
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, TensorStorageMetadata

    if not isinstance(found, Metadata):
        raise TypeError(f"it holds a {type(found).__name__}")
    stored = {(index.fqn, tuple(index.offset or ())): info for index, info in found.storage_data.items()}
    tensors, values = {}, {}
    sizes: dict[Path, int] = {}
    for name, entry in found.state_dict_metadata.items():
        if isinstance(entry, BytesStorageMetadata):
            values[name] = _piece(folder, name, (), (), stored, sizes)
        elif isinstance(entry, TensorStorageMetadata):
            shape = tuple(entry.size)
            pieces = tuple(
                _piece(folder, name, tuple(chunk.offsets), tuple(chunk.sizes), stored, sizes) for chunk in entry.chunks
            )
            _check_whole(folder, name, shape, pieces)
            _check_bytes(name, entry.properties.dtype, pieces)
            tensors[name] = Sharded(name, shape, entry.properties.dtype, pieces)
        else:
            raise TypeError(f"{name} is a {type(entry).__name__}")
    return Shards(folder, tensors, values)


def _piece(
    folder: Path, name: str, begins: Shape, sizes: Shape, stored: Mapping[Any, Any], seen: dict[Path, int]
) -> Piece:
    if (name, begins) not in stored:
        raise InputError(f"{folder / INDEX} does not say where tensor {name} at {list(begins)} is; {_AGAIN}")
    info = stored[name, begins]
    if Path(info.relative_path).name != info.relative_path or info.transform_descriptors:
        what = (
            "another folder's file" if not info.transform_descriptors else f"transformed ({info.transform_descriptors})"
        )
        raise InputError(f"{folder / INDEX} puts tensor {name} into {info.relative_path!r}, {what}; {_AGAIN}")
    file = folder / info.relative_path
    if file not in seen:
        if not file.is_file():
            raise InputError(f"shards '{folder}' lack the file {file.name}, which has a part of {name}; {_AGAIN}")
        seen[file] = file.stat().st_size
    offset, length = int(info.offset), int(info.length)
    if offset < 0 or length < 0 or offset + length > seen[file]:
        raise InputError(
            f"{file} has {seen[file]} bytes, and the index puts a part of {name} at bytes {offset} to {offset + length}; {_AGAIN}"
        )
    return Piece(begins, sizes, file, offset, length)


def _check_whole(folder: Path, name: str, shape: Shape, pieces: tuple[Piece, ...]) -> None:
    """Refuse pieces that leave a value of the tensor out, hold one twice, or lie outside it."""
    full = [piece for piece in pieces if math.prod(piece.sizes)]
    inside = all(
        len(piece.begins) == len(piece.sizes) == len(shape)
        and all(b >= 0 and s >= 0 and b + s <= n for b, s, n in zip(piece.begins, piece.sizes, shape, strict=True))
        for piece in pieces
    )
    values = sum(math.prod(piece.sizes) for piece in full)
    if not inside or values != math.prod(shape) or not _covers_once(shape, full):
        raise InputError(
            f"{folder / INDEX} lists tensor {name} of shape {list(shape)} in {len(pieces)} parts with {values} values, "
            f"which do not add up; {_AGAIN}"
        )


def _check_bytes(name: str, dtype: torch.dtype, pieces: tuple[Piece, ...]) -> None:
    """Refuse a piece with more values than its bytes can hold, before memory is asked for."""
    for piece in pieces:
        needed = math.prod(piece.sizes) * dtype.itemsize
        if needed > piece.length:
            raise InputError(
                f"{piece.file}: tensor {name} has {piece.length} bytes at byte {piece.offset}, but a part of shape "
                f"{list(piece.sizes)} in {dtype} needs {needed}; {_AGAIN}"
            )


def _covers_once(shape: Shape, pieces: Iterable[Piece]) -> bool:
    """Whether each value of a tensor is in exactly one of the pieces, which lie inside it; linear in their number.

    A value at (i, j, …) stands for the monomial x^i y^j …, a piece for the sum of its values. The pieces cover the tensor once
    if and only if their sums add up to the tensor's, as polynomials. Those are compared at one random point modulo a prime: if
    they differ, they agree there with a probability of at most (sum of sizes) / prime (Schwartz and Zippel).
    """
    point = [2 + secrets.randbelow(_PRIME - 2) for _ in shape]

    def value(begins: Shape, sizes: Shape) -> int:  # times the product of (1 - x), which all have in common
        product = 1
        for x, begin, size in zip(point, begins, sizes, strict=True):
            product = product * (pow(x, begin, _PRIME) - pow(x, begin + size, _PRIME)) % _PRIME
        return product

    return sum(value(piece.begins, piece.sizes) for piece in pieces) % _PRIME == value((0,) * len(shape), shape)


def _read(name: str, piece: Piece) -> Any:
    import torch

    with piece.file.open("rb") as file:
        file.seek(piece.offset)
        raw = io.BytesIO(file.read(piece.length))
    try:
        return torch.load(raw, map_location="cpu", weights_only=True)
    except Exception as error:  # torn bytes raise whatever torch stumbled over
        first = " ".join(str(error).split())[:200]
        raise InputError(
            f"{piece.file} has no plain value of {name} at byte {piece.offset} ({type(error).__name__}: {first}); {_AGAIN}"
        ) from error


def _kind(value: Any) -> str:
    import torch

    return (
        f"{value.dtype} of shape {list(value.shape)}"
        if isinstance(value, torch.Tensor)
        else f"a {type(value).__name__}"
    )
