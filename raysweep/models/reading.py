"""A checkpoint's safetensors files read tensor by tensor, and every byte that is read counted.

Reads are positioned ones into memory that the caller owns, not through a memory map: what is in memory is then known, and
a file that became shorter is an error that names the tensor instead of a dead process. With the checkpoint that they belong
to, everything that is read is digested meanwhile and compared with what was planned. Conversion to parameters is
conversion.py's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event, Lock, local
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

READER = "raysweep-readers"
READERS = 4  # threads that read at once: one alone does not keep a fast disk or a parallel file system busy
_TOGETHER = PIECE  # bytes that one thread reads before others would have begun
_PIECES = 2  # of a reader that converts: one that it reads into, and one that is digested
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

    Its headers are read and checked at once (InputError), nothing else is. One thread calls its methods at a time. `close` it.

    With the `planned` checkpoint, headers are compared with it at once, and everything that is read is digested by other
    threads. `read_all` compares the digests; after `read_into`, `check` must be called before the values are used.
    """

    def __init__(self, files: Iterable[Path], planned: Checkpoint | None = None) -> None:
        self.bytes_read = 0
        self.stop = Event()  # set by another thread to end a read early
        self._at: dict[str, tuple[Path, Tensor]] = {}
        self._opened: list[int] = []
        self._own = (
            local()
        )  # a thread's own handles, so that the system reads ahead for each, and memory for conversion
        self._lock = Lock()
        self._readers: ThreadPoolExecutor | None = None
        self._failed = Event()  # set while the other readers end because one of them failed
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
        self._read(name, target, self._digesting(name))

    def read_all(self, targets: Sequence[tuple[str, torch.Tensor]]) -> None:
        """Fill several targets as `read_into` does, a few tensors at a time, and compare the digests as `check` does.

        No thread is at work when it returns or raises. Raises what `read_into` and `check` raise.
        """
        self.check()
        if len(targets) < 2 or sum(map(self._size, dict(targets))) <= _TOGETHER:
            for name, target in targets:
                self.read_into(name, target)
            self.check()
            return
        if self._readers is None:
            self._readers = ThreadPoolExecutor(READERS, thread_name_prefix=READER)
        largest_first = sorted(targets, key=lambda job: self._size(job[0]), reverse=True)
        jobs = [(name, target, self._begin(name)) for name, target in largest_first]
        futures = [self._readers.submit(self._read_or_fail, *job) for job in jobs]
        try:
            wait(futures)
        finally:  # an interrupt ends the readers too
            if not all(future.done() for future in futures):
                self._failed.set()
                wait(futures)
            self._failed.clear()
        errors = [error for future in futures if (error := future.exception()) is not None]
        if errors:
            raise min(errors, key=lambda error: isinstance(error, InterruptedReadError))
        self._unchecked += [(name, digesting) for name, _, digesting in jobs if digesting is not None]
        self.check()

    def _read_or_fail(self, name: str, target: torch.Tensor, digesting: Digesting | None) -> None:
        try:
            self._read(name, target, digesting)
        except BaseException:
            self._failed.set()
            raise

    def _read(self, name: str, target: torch.Tensor, digesting: Digesting | None) -> None:
        path, tensor = self._at[name]
        stored = self.dtype(name)
        flat = target.reshape(-1)
        if flat.numel() * stored.itemsize != tensor.stop - tensor.start:
            raise InputError(
                f"{self.where(name)} has shape {list(tensor.shape)}, but the model has {list(target.shape)}; {AGAIN}"
            )
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
            pieces = self._memory()
            for start in range(0, tensor.stop - tensor.start, PIECE):
                piece = pieces.take(min(PIECE, tensor.stop - tensor.start - start))
                self._fill(handle, piece, tensor.start + start, name)
                if digesting is not None:
                    pieces.hold(digesting.add(piece))
                values = torch.from_numpy(np.frombuffer(piece, dtype=np.uint8)).view(stored)
                first = start // stored.itemsize
                flat[first : first + len(values)].copy_(values)
        except OSError as error:
            if is_machine_error(error):
                raise
            raise InputError(f"{self.where(name)} cannot be read: {error.strerror or error}") from error

    def _memory(self) -> PieceMemory:
        """The calling thread's memory for what it converts."""
        if not hasattr(self._own, "pieces"):
            self._own.pieces = PieceMemory(_PIECES)
        pieces: PieceMemory = self._own.pieces
        return pieces

    def _size(self, name: str) -> int:
        return self._at[name][1].stop - self._at[name][1].start

    def _begin(self, name: str) -> Digesting | None:
        if self._planned is None:
            return None
        if self._threads is None:
            self._threads = DigestThreads()
        tensor = self._at[name][1]
        return self._threads.begin(tensor_digest(tensor.dtype, tensor.shape), self._size(name))

    def _digesting(self, name: str) -> Digesting | None:
        while len(self._unchecked) >= _AHEAD:
            self._check_first()
        digesting = self._begin(name)
        if digesting is not None:
            self._unchecked.append((name, digesting))
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
        with self._lock:
            self.bytes_read += len(view)

    def _stop(self) -> None:
        if self.stop.is_set() or self._failed.is_set():
            raise InterruptedReadError

    def _handle(self, path: Path) -> int:
        handles: dict[Path, int] = self._own.__dict__.setdefault("handles", {})
        if path not in handles:
            handles[path] = os.open(path, os.O_RDONLY)
            with self._lock:
                self._opened.append(handles[path])
        return handles[path]

    def close(self) -> None:
        """Close the files and end the threads; a later read opens them again. What was not checked stays unchecked."""
        if self._readers is not None:
            self._readers.shutdown()
            self._readers = None
        if self._threads is not None:
            self._threads.close()
            self._threads = None
        self._unchecked.clear()
        self._own = local()
        while self._opened:
            os.close(self._opened.pop())
