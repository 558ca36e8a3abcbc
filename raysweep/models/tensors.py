"""One safetensors file: its header checked, and its bytes read once, for the digest and for values that are not finite.

The header is untrusted: every field is checked before it is used, and every message names the file and the tensor. Which
files make up a checkpoint is weights.py's.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysweep import limits
from raysweep.errors import InputError, nearest, shortened, shown

Shape = tuple[int, ...]
AGAIN = "copy or save the checkpoint again"

_MOST_DIMENSIONS = 64  # that torch knows
_BLOCK = 4 * 2**20  # bytes read at a time: they are still in the cache when they are checked
_BITS = {
    "F4": 4,
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}

# For each floating dtype its bytes a value, and the bits of its first value that is not finite, positive and negative. All
# that follow it, read as integers of that sign, are not finite either, so that two maxima tell a whole block.
_FIRST_NOT_FINITE = {
    "BF16": (2, 0x7F80, 0xFF80),
    "F16": (2, 0x7C00, 0xFC00),
    "F32": (4, 0x7F800000, 0xFF800000),
    "C64": (4, 0x7F800000, 0xFF800000),
    "F64": (8, 0x7FF0000000000000, 0xFFF0000000000000),
    "F8_E5M2": (1, 0x7C, 0xFC),
    "F8_E4M3": (1, 0x7F, 0xFF),
    "F8_E8M0": (1, None, 0xFF),  # no sign: a scale's exponent alone
}
_ONLY_NAN = {"F8_E4M3FNUZ": 0x80, "F8_E5M2FNUZ": 0x80}  # of these one pattern is NaN, and none infinite

# Masks that old checkpoints keep beside their weights (-1e9, infinite in float16), and that no model reads.
_NOT_READ = re.compile(r"\.masked_bias$")
_IN_LAYER = re.compile(r"(?:^|\.)(\d+)\.")


@dataclass(frozen=True)
class Tensor:
    """A tensor's entry in the header; `start` and `stop` are places in the file, in bytes."""

    name: str
    dtype: str
    shape: Shape
    start: int
    stop: int


def read_header(path: Path) -> list[Tensor]:
    """The tensors of a safetensors file in the order of their bytes, which cover the file to its end.

    Raises InputError for a file that is cut or longer than its header tells, and for a header that is no JSON, names a
    tensor twice, has an unknown dtype, or gives a tensor bytes that are not its own.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size + 1
        if length > size - 8:
            raise InputError(f"{path} is not a complete safetensors file ({size} bytes); {AGAIN}")
        limits.HEADER_BYTES.check(length, path)
        try:
            header = json.loads(file.read(length), object_pairs_hook=_without_doubles)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path} has an unreadable safetensors header: {error}; copy the checkpoint again"
            ) from error
    if not isinstance(header, dict):
        raise InputError(f"{path} has a safetensors header that is not a JSON object; {AGAIN}")
    header.pop("__metadata__", None)
    limits.TENSORS.check(len(header), path)
    tensors = [_tensor(path, name, entry, 8 + length) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.stop))
    end = max((tensor.stop for tensor in tensors), default=8 + length)
    if end != size:
        raise InputError(f"{path} has {size} bytes, but its header says {end}; copy the checkpoint again")
    before, place = None, 8 + length
    for tensor in tensors:
        if tensor.start != place:
            told = "overlaps" if tensor.start < place else "leaves a gap after"
            other = f"tensor {before}" if before else "the header"
            raise InputError(
                f"{path}: tensor {tensor.name} begins at byte {tensor.start} and {told} {other}, which ends at byte "
                f"{place}; {AGAIN}"
            )
        before, place = tensor.name, tensor.stop
    return tensors


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"'{shortened(name)}' appears in it twice")
        values[name] = value
    return values


def _tensor(path: Path, name: str, entry: Any, data: int) -> Tensor:
    """The entry of one tensor; `data` is where the file's data begin."""
    where = f"{path}: tensor {shortened(name, 200)}"
    entry = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in _BITS:
        hint = nearest(dtype, _BITS) if isinstance(dtype, str) else "its header has none"
        raise InputError(f"{where} has the unknown dtype {shown(dtype)} ({hint}); {AGAIN}")
    if not _are_counts(shape):
        raise InputError(f"{where} has the shape {shown(shape)}, which is not a list of sizes; {AGAIN}")
    if len(shape) > _MOST_DIMENSIONS:
        raise InputError(
            f"{where} has {len(shape)} dimensions, and torch has tensors of at most {_MOST_DIMENSIONS}; {AGAIN}"
        )
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise InputError(f"{where} has the data_offsets {shown(offsets)}, which are not [begin, end]; {AGAIN}")
    needed = -(-math.prod(shape) * _BITS[dtype] // 8)
    if offsets[1] - offsets[0] != needed:
        raise InputError(
            f"{where} has {offsets[1] - offsets[0]} bytes, but {dtype} of shape {shown(shape)} needs {shown(needed)}; {AGAIN}"
        )
    return Tensor(name, dtype, tuple(shape), data + offsets[0], data + offsets[1])


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def read_tensors(
    path: Path, tensors: Iterable[Tensor], stop: Callable[[], None] | None = None
) -> tuple[str, dict[str, str]]:
    """Digests in hexadecimal, the file's and each tensor's, from one pass that also looks for values that are not finite.

    The file's is made of its header and the tensors' digests, so that no byte is digested twice; a tensor's of its dtype,
    shape and bytes. `stop`, which may raise, is called before every read.

    Raises InputError naming the first tensor with such a value, its layer, and the value's place.
    """
    whole, digest, block = hashlib.sha256(), hashlib.sha256(), memoryview(bytearray(_BLOCK))
    digests: dict[str, str] = {}
    values_of = np.frombuffer(block, dtype=np.uint8)
    with path.open("rb", buffering=0) as file:

        def read(n: int) -> NDArray[np.uint8]:
            got = 0
            while got < n:
                if stop is not None:
                    stop()
                more = file.readinto(block[got:n])
                if not more:
                    raise InputError(f"{path} became shorter while it was read; is something still writing it?")
                got += more
            digest.update(block[:n])
            return values_of[:n]

        place = 0
        for tensor in tensors:
            while place < tensor.start:  # the header, before the first
                place += len(read(min(_BLOCK, tensor.start - place)))
            whole.update(digest.digest())
            digest = tensor_digest(tensor.dtype, tensor.shape)
            while place < tensor.stop:
                before = place - tensor.start
                values = read(min(_BLOCK, tensor.stop - place))
                place += len(values)
                check_finite(values, tensor.dtype, f"{path}: ", tensor.name, tensor.shape, before)
            digests[tensor.name] = digest.hexdigest()
        while more := file.readinto(block):  # a file without tensors is all header
            digest.update(block[:more])
    whole.update(digest.digest())
    return whole.hexdigest(), digests


def tensor_digest(dtype: str, shape: Shape) -> hashlib._Hash:
    """The SHA-256 to go on with for a tensor's bytes, so that equal bytes under another dtype or shape are another tensor."""
    return hashlib.sha256(f"{dtype}{list(shape)}".encode())


def check_finite(
    raw: NDArray[np.uint8], dtype: str, where: str, name: str, shape: Shape, bytes_before: int = 0
) -> None:
    """Raise InputError where the values of `raw`, whole ones of a safetensors dtype, are not all finite.

    `raw` is a part of tensor `name` that begins `bytes_before` into it. Works on bits, without a copy: numpy knows
    neither bfloat16 nor float8.
    """
    if _NOT_READ.search(name) or not len(raw):
        return
    if dtype in _FIRST_NOT_FINITE:
        width, positive, negative = _FIRST_NOT_FINITE[dtype]
        unsigned = raw.view(f"u{width}")
        signed = unsigned.view(f"i{width}")
        if not (unsigned.max() >= negative or (positive is not None and signed.max() >= positive)):
            return
        bad = unsigned >= negative
        if positive is not None:
            bad |= signed >= positive
    elif dtype in _ONLY_NAN:
        width, bad = 1, raw == _ONLY_NAN[dtype]
        if not bad.any():
            return
    else:
        return
    at = int(bad.argmax())
    place = bytes_before // width + at
    if dtype == "C64":
        place //= 2
    bits = int(raw.view(f"u{width}")[at])
    value = _value_words(dtype, bits)
    raise InputError(
        f"{where}tensor {name}{_layer_words(name)} has a weight that is not finite ({value} at {_index_words(place, shape)}); "
        "every loss through it would be NaN. Save the checkpoint again from undamaged weights"
    )


def _value_words(dtype: str, bits: int) -> str:
    first = _FIRST_NOT_FINITE.get(dtype)
    if first is None or dtype in ("F8_E4M3", "F8_E8M0"):
        return "NaN"
    return {first[1]: "infinity", first[2]: "minus infinity"}.get(bits, "NaN")


def _layer_words(name: str) -> str:
    found = _IN_LAYER.search(name)
    return f" of layer {found[1]}" if found else ""


def _index_words(place: int, shape: Shape) -> str:
    return str([int(i) for i in np.unravel_index(place, shape)]) if shape else "its only place"
