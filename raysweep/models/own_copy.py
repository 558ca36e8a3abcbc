"""Whole weight files copied to where nobody else can change them, digested on the way, for code that takes a folder's name.

That is for `.bin` files, quantised weights and PEFT adapters, and for what a run made, whose manifest has digests of whole
files. The copy is in memory where the system can keep files there (Linux), else in a temporary folder.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep.errors import InputError
from raysweep.models.digest_check import compare_digests, compare_headers, other_content, planned_header
from raysweep.models.digesting import PIECE, DigestThreads, PieceMemory, ShortFileError, fill, fill_digested
from raysweep.models.machine_errors import is_machine_error
from raysweep.models.tensors import AGAIN, Tensor, read_header, tensor_digest
from raysweep.models.weights import weight_files

if TYPE_CHECKING:
    from raysweep.models.checkpoint import Checkpoint

_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


@contextmanager
def own_copy(checkpoint: Checkpoint) -> Iterator[Path]:
    """Give a folder with a copy of the checkpoint's weight files and of its config, while the context lasts.

    What has mapped or read the files by then keeps them. Raises InputError, naming the file and the tensor, for what is
    not as planned.
    """
    files = weight_files(checkpoint.folder, checkpoint.source, adapter=checkpoint.adapter)
    settings = ["adapter_config.json"] if checkpoint.adapter else ["config.json", *_INDICES]
    with ExitStack() as held:
        own = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="raysweep-")))
        threads = DigestThreads()
        held.callback(threads.close)
        entries: dict[str, tuple[Path, Tensor]] = {}
        for path in [*(checkpoint.folder / name for name in settings), *files]:
            if path in files or path.is_file():
                entries |= _copied(checkpoint, path, own, threads, held)
        compare_headers(checkpoint, entries)
        yield own


def _copied(
    checkpoint: Checkpoint, path: Path, own: Path, threads: DigestThreads, held: ExitStack
) -> dict[str, tuple[Path, Tensor]]:
    """Copy a file and compare it with the plan; the tensors in it, if it has digests of tensors."""
    try:
        tensors = planned_header(checkpoint, path) if checkpoint.digests and path.suffix == ".safetensors" else []
        with _readable(path) as (handle, size), _writable(own / path.name, size, held) as memory:
            if not tensors:
                digesting = threads.begin(hashlib.sha256())
                fill_digested(handle, memory, 0, digesting)
                planned = checkpoint.files.get(path.name)
                if path.name not in _INDICES or planned:  # which tensor is in which file is found out by reading them
                    compare_digests(checkpoint, str(path), digesting.hexdigest(), planned)
                return {}
            fill(handle, memory[: tensors[0].start], 0)
            digests = []
            for tensor in tensors:
                digests.append(threads.begin(tensor_digest(tensor.dtype, tensor.shape)))
                fill_digested(handle, memory[tensor.start : tensor.stop], tensor.start, digests[-1])
            for tensor, digesting in zip(tensors, digests, strict=True):
                planned = checkpoint.digests.get(tensor.name)
                compare_digests(checkpoint, f"{path}: tensor {tensor.name}", digesting.hexdigest(), planned)
    except ShortFileError as error:
        raise InputError(f"{path} ends at byte {error.at}: it became shorter while it was read; {AGAIN}") from error
    except OSError as error:
        if is_machine_error(error):
            raise
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    if read_header(own / path.name) != tensors:
        raise other_content(checkpoint, str(path), "another header", "the header that was read before its tensors")
    return {tensor.name: (path, tensor) for tensor in tensors}


@contextmanager
def _readable(path: Path) -> Iterator[tuple[int, int]]:
    handle = os.open(path, os.O_RDONLY)
    try:
        yield handle, os.fstat(handle).st_size
    finally:
        os.close(handle)


@contextmanager
def _writable(path: Path, size: int, held: ExitStack) -> Iterator[memoryview]:
    """Make a file of this size, and give its memory to be filled; it lasts as long as `held`."""
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create(path.name)
        held.callback(os.close, handle)
        path.symlink_to(f"/proc/self/fd/{handle}")
    else:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        held.callback(os.close, handle)
    if not size:
        yield memoryview(b"")
        return
    os.ftruncate(handle, size)
    yield memoryview(mmap.mmap(handle, size))


def with_tensor_digests(checkpoint: Checkpoint) -> Checkpoint:
    """Give a checkpoint that has digests of whole files those of its tensors, from one pass over the files.

    For weights that are read tensor by tensor, again and again. Any other checkpoint is returned as it is. Raises
    InputError, naming the file, if it is not as planned.
    """
    if checkpoint.digests or not checkpoint.files or checkpoint.adapter:
        return checkpoint
    digests: dict[str, str] = {}
    entries: dict[str, Tensor] = {}
    for path in weight_files(checkpoint.folder, checkpoint.source):
        if path.suffix != ".safetensors":
            return checkpoint
        tensors = planned_header(checkpoint, path)
        try:
            whole, found = _digest_parts(path, tensors)
        except OSError as error:
            if is_machine_error(error):
                raise
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
        except ShortFileError as error:
            raise InputError(f"{path} ends at byte {error.at}: it became shorter while it was read; {AGAIN}") from error
        compare_digests(checkpoint, str(path), whole, checkpoint.files.get(path.name))
        digests |= found
        entries |= {tensor.name: tensor for tensor in tensors}
    return replace(
        checkpoint,
        digests=digests,
        shapes={name: tensor.shape for name, tensor in entries.items()},
        dtypes={name: tensor.dtype for name, tensor in entries.items()},
    )


def _digest_parts(path: Path, tensors: list[Tensor]) -> tuple[str, dict[str, str]]:
    """The SHA-256 of a safetensors file, and its tensors' digests by name."""
    threads, pieces = DigestThreads(), PieceMemory()
    try:
        with _readable(path) as (handle, size):
            whole = threads.begin(hashlib.sha256())
            digests = {each.name: threads.begin(tensor_digest(each.dtype, each.shape)) for each in tensors}
            header = tensors[0].start if tensors else size
            for part, begin, end in [(None, 0, header), *((digests[t.name], t.start, t.stop) for t in tensors)]:
                for place in range(begin, end, PIECE):
                    piece = pieces.take(min(PIECE, end - place))
                    fill(handle, piece, place)
                    pieces.hold(whole.add(piece))
                    if part is not None:
                        pieces.hold(part.add(piece))
            return whole.hexdigest(), {name: digest.hexdigest() for name, digest in digests.items()}
    finally:
        threads.close()
