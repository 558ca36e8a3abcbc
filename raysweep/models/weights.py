"""Weights on disk: which files a checkpoint's are, whether they are whole, and what makes them these and no others.

A safetensors file is read by tensors.py; of `.bin` files nothing but plain tensors is taken. Every byte is read once, for
the fingerprint and to find weights that are NaN or infinite before anything is computed with them.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysweep import limits
from raysweep.errors import InputError, shortened, shown
from raysweep.models.tensors import AGAIN, Shape, check_finite, read_header, read_tensors

# Names that transformers and PEFT load, in the order in which they look; a hub repository may keep the weights under others too.
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")
NOT_PLAIN = "has .bin weights that are not plain tensors, and raysweep runs no pickled code; save it as safetensors"
_TORCH_NAMES = {  # torch's dtypes of floating values under the names that safetensors gives them
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
}
_TORCH_INTEGERS = {"uint8": "U8", "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64", "bool": "BOOL"}


@dataclass(frozen=True)
class Weights:
    """A checkpoint's weights: tensor → shape, bytes on disk, the fingerprint of config and files together, each tensor's
    own digest (none of `.bin` files), and tensor → the dtype it is stored in, as safetensors names it.

    `files` has the SHA-256 of the config and of `.bin` files, by name.
    """

    shapes: Mapping[str, Shape]
    bytes: int
    fingerprint: str
    digests: Mapping[str, str]
    dtypes: Mapping[str, str]
    files: Mapping[str, str]


def read_weights(folder: Path, source: str, config_path: Path, *, adapter: bool) -> Weights:
    """Find, check and read the weights of the checkpoint in `folder`, whose name to the user is `source`.

    Raises InputError, naming the file and the tensor, for weights that are missing, torn, in two files, not what the index
    says, not finite, or pickled objects.
    """
    files, index = _files(folder, source, adapter=adapter)
    headers = {path: read_header(path) for path in files if path.suffix == ".safetensors"}
    limits.TENSORS.check(sum(map(len, headers.values())), folder)
    stored = {path: {tensor.name: tensor.shape for tensor in tensors} for path, tensors in headers.items()}
    dtypes = {tensor.name: tensor.dtype for tensors in headers.values() for tensor in tensors}

    digests: dict[Path, dict[str, str]] = {}

    def digest(path: Path) -> str:
        if path in headers:
            whole, digests[path] = read_tensors(path, headers[path])
            return whole
        if path.suffix == ".bin":
            stored[path], found_dtypes = _plain_tensors(path, source, adapter=adapter)
            dtypes.update(found_dtypes)
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    _check_index(index, stored)  # what headers tell is told before hours of reading
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(digest, [config_path, *files]))
    _check_index(index, stored)
    named = [[path.name, of_file] for path, of_file in zip([config_path, *files], found, strict=True)]
    return Weights(
        {name: shape for path in files for name, shape in stored[path].items()},
        sum(path.stat().st_size for path in files),
        hashlib.sha256(json.dumps(named).encode()).hexdigest(),
        {name: value for of_file in digests.values() for name, value in of_file.items()},
        dtypes,
        {path.name: value for path, value in zip([config_path, *files], found, strict=True) if path not in headers},
    )


@dataclass(frozen=True)
class _Index:
    """A `*.index.json`: where it says that each tensor is."""

    path: Path
    weight_map: Mapping[str, str]


def _files(folder: Path, source: str, *, adapter: bool) -> tuple[list[Path], _Index | None]:
    """The files that transformers (or PEFT) loads, and the index that names them where there are several."""
    for name in _ADAPTER if adapter else _WHOLE:
        if (folder / name).is_file():
            return [folder / name], None
        index = folder / f"{name}.index.json"
        if not adapter and index.is_file():
            found = _read_index(index)
            return sorted({folder / shard for shard in found.weight_map.values()}), found
    shards = sorted(path.name for path in folder.glob("model-*.safetensors"))
    if shards and not adapter:
        raise InputError(
            f"checkpoint '{source}' has {len(shards)} shards ({shards[0]}, …) and no model.safetensors.index.json to "
            f"list their tensors; {AGAIN}"
        )
    raise InputError(f"checkpoint '{source}' has no weights (*.safetensors) in {folder}")


def weight_files(folder: Path, source: str, *, adapter: bool = False) -> list[Path]:
    """The files that hold a checkpoint's weights. Raises InputError where there are none, or a shard is missing."""
    return _files(folder, source, adapter=adapter)[0]


def _read_index(path: Path) -> _Index:
    try:
        weight_map = json.loads(limits.read_limited(path, limits.VOCABULARY_BYTES))["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is not an index of shards ({type(error).__name__}: {error}); {AGAIN}") from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{path} has an empty weight_map; {AGAIN}")
    found: set[str] = set()
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard or "\0" in shard:
            raise InputError(
                f"{path} puts tensor {shortened(tensor, 200)} into {shown(shard)}, which is not a file name; {AGAIN}"
            )
        if shard not in found and not (path.parent / shard).is_file():
            n = sum(value == shard for value in weight_map.values())
            raise InputError(
                f"{path} names the shard {shard} for {n} tensors ({shortened(tensor, 200)} among them), and there is no such file; "
                "copy the checkpoint again, all of it"
            )
        found.add(shard)
    return _Index(path, weight_map)


def _check_index(index: _Index | None, stored: Mapping[Path, Mapping[str, Shape]]) -> None:
    """Refuse a tensor that two files hold, and one that is not where the index says."""
    seen: dict[str, Path] = {}
    for path, shapes in stored.items():
        for name in shapes:
            if name in seen:
                raise InputError(
                    f"tensor {name} is in two shards, {seen[name]} and {path.name}, so it is unclear which one counts; "
                    f"{AGAIN}"
                )
            seen[name] = path
    if index is None:
        return
    for name, shard in index.weight_map.items():
        path = index.path.parent / shard
        if path in stored and name not in stored[path]:
            found = f"{seen[name].name} has it" if name in seen else "no shard has it"
            raise InputError(f"{index.path} says that tensor {name} is in {shard}, and {found}; {AGAIN}")


def _plain_tensors(path: Path, source: str, *, adapter: bool) -> tuple[dict[str, Shape], dict[str, str]]:
    """Shapes and dtypes of a `.bin` file's tensors, which are all that may be in it; no pickled code is run."""
    import torch

    who = f"{'PEFT adapter' if adapter else 'checkpoint'} '{source}'"
    try:
        zipped = zipfile.ZipFile(path).infolist() if zipfile.is_zipfile(path) else []
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in zipped):
            raise InputError(f"{path} has compressed entries, which torch never writes; {AGAIN}")
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        raise InputError(f"{who} {NOT_PLAIN}") from error
    except Exception as error:  # a torn file raises whatever torch stumbled over
        first = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path} is not a complete file of tensors ({type(error).__name__}: {first}); {AGAIN}"
        ) from error
    if not isinstance(found, Mapping):
        raise InputError(f"{path} holds a {type(found).__name__}, but a mapping of names to tensors is needed")
    limits.TENSORS.check(len(found), path)
    shapes = {name: _plain(path, name, tensor) for name, tensor in found.items()}
    return shapes, {name: _dtype_name(tensor) for name, tensor in found.items()}


def _dtype_name(tensor: Any) -> str:
    name = str(tensor.dtype).removeprefix("torch.")
    return _TORCH_NAMES.get(name) or _TORCH_INTEGERS.get(name, name)


def _plain(path: Path, name: Any, tensor: Any) -> Shape:
    import torch

    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
        raise InputError(
            f"{path} holds {shown(name)}, which is not a tensor but a {type(tensor).__name__}; save only the model's weights, "
            "preferably as safetensors"
        )
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise InputError(f"{path}: tensor {name} is sparse or quantised, and raysweep needs a dense one")
    dtype = str(tensor.dtype).removeprefix("torch.")
    shape = tuple(tensor.shape)
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise InputError(
            f"{path}: tensor {shortened(name, 200)} of shape {list(shape)} repeats its values (strides {shown(tensor.stride())}); "
            "save it contiguous"
        )
    if dtype in _TORCH_NAMES:
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        check_finite(raw, _TORCH_NAMES[dtype], f"{path}: ", name, shape)
    return shape
