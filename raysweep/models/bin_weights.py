"""Weights in a `.bin` file, of which nothing but plain tensors is taken."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raysweep import limits
from raysweep.errors import InputError, shortened, shown
from raysweep.models.tensors import AGAIN, Shape, check_finite

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


def plain_tensors(path: Path, source: str, *, adapter: bool) -> tuple[dict[str, Shape], dict[str, str]]:
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
