"""Weights on disk: which files a checkpoint's are, whether they are whole, and what makes them these and no others.

Every byte is read once (weight_reader.py), for the fingerprint and to find weights that are NaN or infinite before anything
is computed with them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from raysweep import limits
from raysweep.errors import InputError, shortened, shown
from raysweep.models.tensors import AGAIN, Shape, read_header
from raysweep.models.weight_reader import WeightReader

# Names that transformers and PEFT load, in the order in which they look; a hub repository may keep the weights under others too.
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")


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


def read_weights(
    folder: Path, source: str, config_path: Path, *, adapter: bool, reader: WeightReader | None = None
) -> Weights:
    """Find, check and read the weights of the checkpoint in `folder`, whose name to the user is `source`.

    With a `reader`, which stays open, files that it is reading or has read are not read again. Raises InputError, naming the file and the tensor, for weights that are missing, torn, in two files, not what the index
    says, not finite, or pickled objects.
    """
    files, index = _files(folder, source, adapter=adapter)
    headers = {path: read_header(path) for path in files if path.suffix == ".safetensors"}
    limits.TENSORS.check(sum(map(len, headers.values())), folder)
    stored: dict[Path, Mapping[str, Shape]] = {
        path: {tensor.name: tensor.shape for tensor in tensors} for path, tensors in headers.items()
    }
    dtypes = {tensor.name: tensor.dtype for tensors in headers.values() for tensor in tensors}
    _check_index(index, stored)  # errors in headers are found before hours of reading
    with contextlib.nullcontext(reader) if reader else WeightReader() as reading:
        for path in files:
            reading.begin(path, source, adapter=adapter)
        config_digest = hashlib.sha256(config_path.read_bytes()).hexdigest()
        contents = {path: reading.contents(path) for path in files}
    for path, found in contents.items():
        if path not in headers:
            stored[path] = found.shapes
            dtypes.update(found.dtypes)
        elif found.shapes != stored[path] or any(dtypes[name] != dtype for name, dtype in found.dtypes.items()):
            raise InputError(f"{path} changed while it was read; is something still writing it?")
    _check_index(index, stored)
    named = [[config_path.name, config_digest], *([path.name, found.digest] for path, found in contents.items())]
    return Weights(
        {name: shape for path in files for name, shape in stored[path].items()},
        sum(path.stat().st_size for path in files),
        hashlib.sha256(json.dumps(named).encode()).hexdigest(),
        {name: digest for found in contents.values() for name, digest in found.digests.items()},
        dtypes,
        {config_path.name: config_digest} | {p.name: each.digest for p, each in contents.items() if p not in headers},
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
