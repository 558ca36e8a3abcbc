"""A checkpoint's safetensors files read tensor by tensor, and every byte that is read counted.

Reads are positioned ones into memory that the caller owns, not through a memory map: what is in memory is then known, and
a file that became shorter is an error that names the tensor instead of a dead process. With the checkpoint that they belong
to, everything that is read is digested meanwhile and compared with what was planned. Conversion to parameters is
conversion.py's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import numpy as np
import torch

from raysweep.errors import InputError
from raysweep.models.digest_check import compare_digests, compare_headers
from raysweep.models.digesting import PIECE, Digesting, DigestThreads, PieceMemory, ShortFileError, fill
from raysweep.models.machine_errors import is_machine_error
from raysweep.models.tensors import AGAIN, Tensor, read_header, tensor_digest

if TYPE_CHECKING:
    from raysweep.models.checkpoint import Checkpoint

_AHEAD = 8  # tensors that are read before the first of them is digested: their memory is kept until then
_TORCH = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


class InterruptedReadError(Exception):
    """A read was given up because nobody waits for it any more."""


class TensorFiles:
    """The tensors of some safetensors files, by name; `bytes_read` counts the bytes of tensors that were read.

    Its headers are read and checked at once (InputError), nothing else is. One thread reads at a time. `close` it.

    With the `planned` checkpoint, headers are compared with it at once, and what `read_into` has read is digested by other
    threads: before it is used, `check` must be called, which compares the digests.
    """

    def __init__(self, files: Iterable[Path], planned: Checkpoint | None = None) -> None:
        self.bytes_read = 0
        self.stop = Event()  # set by another thread to end a read early
        self._at: dict[str, tuple[Path, Tensor]] = {}
        self._handles: dict[Path, int] = {}
        self._pieces = PieceMemory()  # of what is converted
        self._planned = planned if planned is not None and planned.digests else None
        self._threads: DigestThreads | None = None
        self._unchecked: list[tuple[str, Digesting]] = []
        for path in files:
            self._at |= {tensor.name: (path, tensor) for tensor in read_header(path)}
        if self._planned is not None:
            compare_headers(self._planned, self._at)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The headers' entries by name."""
        return {name: tensor for name, (_, tensor) in self._at.items()}

    def where(self, name: str) -> str:
        """The file and the tensor, as messages name them."""
        return f"{self._at[name][0]}: tensor {name}"

    def dtype(self, name: str) -> torch.dtype:
        """The dtype it is stored in. Raises InputError for one that is no plain number (float8, for example)."""
        stored = self._at[name][1].dtype
        if stored not in _TORCH:
            raise InputError(
                f"{self.where(name)} is stored as {stored}, which raysweep cannot stream; save the checkpoint in bfloat16, "
                "float16 or float32, or set execution.residency to resident"
            )
        return _TORCH[stored]

    def read_into(self, name: str, target: torch.Tensor) -> None:
        """Fill `target`, contiguous on the CPU and of the tensor's size, converting to its dtype where it has another.

        Raises InputError, naming file and tensor, where the file cannot be read or ends too early or an earlier tensor is not
        the planned one, and InterruptedReadError once `stop` is set.
        """
        path, tensor = self._at[name]
        stored = self.dtype(name)
        flat = target.reshape(-1)
        if flat.numel() * stored.itemsize != tensor.stop - tensor.start:
            raise InputError(
                f"{self.where(name)} has shape {list(tensor.shape)}, but the model has {list(target.shape)}; {AGAIN}"
            )
        digesting = self._digesting(tensor)
        try:
            handle = self._handle(path)
            if flat.dtype == stored:
                view = flat.view(torch.uint8).numpy().data
                for start in range(0, len(view), PIECE):
                    piece = view[start : start + PIECE]
                    self._fill(handle, piece, tensor.start + start, name)
                    if digesting is not None:
                        digesting.add(piece)
                return
            for start in range(0, tensor.stop - tensor.start, PIECE):
                piece = self._pieces.take(min(PIECE, tensor.stop - tensor.start - start))
                self._fill(handle, piece, tensor.start + start, name)
                if digesting is not None:
                    self._pieces.hold(digesting.add(piece))
                values = torch.from_numpy(np.frombuffer(piece, dtype=np.uint8)).view(stored)
                first = start // stored.itemsize
                flat[first : first + len(values)].copy_(values)
        except OSError as error:
            if is_machine_error(error):
                raise
            raise InputError(f"{self.where(name)} cannot be read: {error.strerror or error}") from error

    def _digesting(self, tensor: Tensor) -> Digesting | None:
        if self._planned is None:
            return None
        if self._threads is None:
            self._threads = DigestThreads()
        while len(self._unchecked) >= _AHEAD:
            self._check_first()
        digesting = self._threads.begin(tensor_digest(tensor.dtype, tensor.shape))
        self._unchecked.append((tensor.name, digesting))
        return digesting

    def check(self) -> None:
        """Wait for the digests of all that was read since the last check. Raises InputError for what was not planned so."""
        while self._unchecked:
            self._check_first()

    def _check_first(self) -> None:
        name, digesting = self._unchecked.pop(0)
        assert self._planned is not None
        compare_digests(self._planned, self.where(name), digesting.hexdigest(), self._planned.digests[name])

    def _fill(self, handle: int, view: memoryview, place: int, name: str) -> None:
        try:
            fill(handle, view, place, self._stop)
        except ShortFileError as error:
            raise InputError(
                f"{self.where(name)} ends at byte {error.at} of the file, before its end; the file became shorter "
                f"after it was checked; {AGAIN}"
            ) from error
        except InterruptedReadError:
            raise InterruptedReadError(self.where(name)) from None
        self.bytes_read += len(view)

    def _stop(self) -> None:
        if self.stop.is_set():
            raise InterruptedReadError

    def _handle(self, path: Path) -> int:
        if path not in self._handles:
            self._handles[path] = os.open(path, os.O_RDONLY)
        return self._handles[path]

    def close(self) -> None:
        """Close the files and end the threads; a later read opens them again. What was not checked stays unchecked."""
        if self._threads is not None:
            self._threads.close()
            self._threads, self._pieces = None, PieceMemory()
        self._unchecked.clear()
        while self._handles:
            os.close(self._handles.popitem()[1])
