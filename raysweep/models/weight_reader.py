"""Reading the weight files of one or several checkpoints in a few threads: each file once, for its digests and values that
are not finite.

A safetensors file is read by tensors.py, a `.bin` file by bin_weights.py. With a cache, a file that has not changed since
an earlier plan is not read.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Any

from raysweep import limits
from raysweep.models.bin_weights import plain_tensors
from raysweep.models.digest_cache import DigestCache, remembered
from raysweep.models.digesting import PIECE
from raysweep.models.tensors import Shape, read_header, read_tensors

_FEWEST_THREADS, _MOST_THREADS = 4, 8  # each has a few MB of memory; network file systems are faster with several
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileContents:
    """A weight file's digest, its tensors' shapes and dtypes (as safetensors names them), and the digest of each tensor.

    A `.bin` file has no digests of tensors.
    """

    digest: str
    shapes: Mapping[str, Shape]
    dtypes: Mapping[str, str]
    digests: Mapping[str, str]


class WeightReader:
    """Reads files in threads, each once while it is open. `close` it, which stops the threads."""

    def __init__(self, cache: DigestCache | None = None) -> None:
        self.cache = cache
        self._pool = ThreadPoolExecutor(_n_threads(), thread_name_prefix="raysweep-weights")
        self._files: dict[Path, Future[FileContents]] = {}
        self._closed = Event()

    def begin(self, path: Path, source: str, *, adapter: bool) -> None:
        """Begin to read a file of the checkpoint `source`, unless it is being read or was read already."""
        if path not in self._files:
            self._files[path] = self._pool.submit(self._read, path, source, adapter=adapter)

    def contents(self, path: Path) -> FileContents:
        """Wait for a file that was begun.

        Raises InputError, naming the file and the tensor, for one that is torn, not finite, or holds pickled objects, and
        OSError for one that cannot be read.
        """
        return self._files[path].result()

    def close(self) -> None:
        """Stop the threads; what they have not read by then is not read."""
        self._closed.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> WeightReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, path: Path, source: str, *, adapter: bool) -> FileContents:
        if path.suffix == ".safetensors":
            return self._read_safetensors(path)
        read = partial(self._read_bin, path, source, adapter=adapter)
        found = remembered(self.cache, path, "bin", read, _bin_contents)
        limits.TENSORS.check(len(found.shapes), path)
        return found

    def _read_safetensors(self, path: Path) -> FileContents:
        tensors = read_header(path)
        names = {tensor.name for tensor in tensors}

        def accept(value: Any) -> tuple[str, dict[str, str]] | None:
            if not isinstance(value, list) or len(value) != 2 or not isinstance(value[1], dict):
                return None
            whole, digests = value
            right = digests.keys() == names and _are_digests([whole, *digests.values()])
            return (whole, digests) if right else None

        def read() -> list[Any]:
            return list(read_tensors(path, tensors, self._stop))

        whole, digests = remembered(self.cache, path, "safetensors", read, accept)
        shapes = {tensor.name: tensor.shape for tensor in tensors}
        return FileContents(whole, shapes, {tensor.name: tensor.dtype for tensor in tensors}, digests)

    def _read_bin(self, path: Path, source: str, *, adapter: bool) -> dict[str, Any]:
        shapes, dtypes = plain_tensors(path, source, adapter=adapter)
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                self._stop()
                digest.update(piece)
        return {"digest": digest.hexdigest(), "tensors": {name: [dtypes[name], *shapes[name]] for name in shapes}}

    def _stop(self) -> None:
        if self._closed.is_set():
            raise _ClosedError


class _ClosedError(Exception):
    """The reader was closed before a file was read to its end; nobody waits for it."""


def _bin_contents(value: Any) -> FileContents | None:
    tensors = value.get("tensors") if isinstance(value, dict) else None
    if not isinstance(tensors, dict) or not _are_digests([value.get("digest")]):
        return None
    dtypes = {name: dtype for name, (dtype, *_) in tensors.items()}
    return FileContents(value["digest"], {name: tuple(shape) for name, (_, *shape) in tensors.items()}, dtypes, {})


def _are_digests(values: list[Any]) -> bool:
    return all(isinstance(value, str) and _SHA256.fullmatch(value) for value in values)


def _n_threads() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MOST_THREADS, max(_FEWEST_THREADS, cores))
