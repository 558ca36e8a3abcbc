"""A checkpoint's tensors for transformers to load, each read and digested when it is asked for, in the thread that asks.

They take the place of the slices of memory-mapped files that transformers would load from: what it gets is memory of
this process, which nobody who changes the file can change any more.
"""

from __future__ import annotations

import os
from pathlib import Path
from threading import local
from typing import TYPE_CHECKING, Any

import torch

from raysweep.errors import InputError
from raysweep.models.digest_check import compare_digests, compare_headers, planned_header
from raysweep.models.digesting import DigestThreads, ShortFileError, fill_digested
from raysweep.models.machine_errors import is_machine_error
from raysweep.models.tensors import AGAIN, Tensor, tensor_digest
from raysweep.models.weights import weight_files

if TYPE_CHECKING:
    from raysweep.models.checkpoint import Checkpoint

_TORCH = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}


def can_be_lazy(checkpoint: Checkpoint) -> bool:
    """Whether every tensor of the checkpoint has a digest, and a dtype that torch has as it is."""
    return bool(checkpoint.digests) and all(dtype in _TORCH for dtype in checkpoint.dtypes.values())


class LazyTensors:
    """The tensors in a checkpoint's safetensors files, which must be the planned ones. `close` it when all are loaded.

    Raises InputError for files that cannot be read, or whose headers are not the planned ones.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._entries: dict[str, tuple[Path, Tensor]] = {}
        for path in weight_files(checkpoint.folder, checkpoint.source):
            self._entries |= {tensor.name: (path, tensor) for tensor in planned_header(checkpoint, path)}
        compare_headers(checkpoint, self._entries)
        self._threads = DigestThreads()
        self._opened = local()  # each thread reads with handles of its own, so that the system reads ahead for each

    @property
    def by_name(self) -> dict[str, LazyTensor]:
        """Every tensor, unread."""
        return {name: LazyTensor(self, tensor) for name, (_, tensor) in self._entries.items()}

    def read(self, name: str) -> torch.Tensor:
        """Read a tensor into new memory. Raises InputError, naming file and tensor, if it fails or is not the planned one."""
        path, tensor = self._entries[name]
        where = f"{path}: tensor {name}"
        raw = torch.empty(tensor.stop - tensor.start, dtype=torch.uint8)
        digesting = self._threads.begin(tensor_digest(tensor.dtype, tensor.shape))
        try:
            fill_digested(self._handle(path), raw.numpy().data, tensor.start, digesting)
        except OSError as error:
            if is_machine_error(error):
                raise
            raise InputError(f"{where} cannot be read: {error.strerror or error}") from error
        except ShortFileError as error:
            raise InputError(f"{where} ends at byte {error.at} of the file, before its end; {AGAIN}") from error
        compare_digests(self._checkpoint, where, digesting.hexdigest(), self._checkpoint.digests[name])
        return raw.view(_TORCH[tensor.dtype]).reshape(tensor.shape)

    def _handle(self, path: Path) -> int:
        handles: dict[Path, _Handle] = self._opened.__dict__.setdefault("handles", {})
        if path not in handles:
            handles[path] = _Handle(path)
        return handles[path].number

    def close(self) -> None:
        """End the threads that digest. Files are closed when the threads that read them end."""
        self._threads.close()
        self._opened = local()


class LazyTensor:
    """One tensor, with what transformers asks of a slice of a safetensors file."""

    def __init__(self, tensors: LazyTensors, entry: Tensor) -> None:
        self._tensors, self._entry = tensors, entry

    def get_shape(self) -> list[int]:
        """Return its shape."""
        return list(self._entry.shape)

    def get_dtype(self) -> str:
        """Return its dtype as safetensors names it."""
        return self._entry.dtype

    def __getitem__(self, index: Any) -> torch.Tensor:
        """Read all of it and return a part."""
        return self._tensors.read(self._entry.name)[index]


class _Handle:
    """A file descriptor that is closed when nobody has it any more."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)
