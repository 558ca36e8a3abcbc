"""The disk under a run folder: whether it can be written to, before a run, and words for when it cannot any more.

Nothing is written to find out. What is committed is whole whatever happens to the disk (store/artifacts.py), so that a run
that ends for want of room goes on once there is some.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep.errors import InputError, RunError

if TYPE_CHECKING:
    from raysweep.engine.calls import TrainCall
    from raysweep.engine.facts import Facts
    from raysweep.engine.graph import Graph
    from raysweep.store.places import Location

# After these no call can be committed: the run ends, and does not try the others.
_LASTING = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
# So too after these, where it is a file of the run folder that they are about.
_LASTING_THERE = {
    errno.EPERM,
    errno.EACCES,
    errno.EIO,
    errno.ENODEV,
    errno.ENXIO,
    errno.ESTALE,
    errno.ENOTCONN,
    errno.ECONNREFUSED,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ETIMEDOUT,
}
_LIBRARIES = {"botocore", "aiobotocore", "aiohttp", "s3fs", "gcsfs", "adlfs", "azure", "google"}
_ASIDE = 2**20  # bytes for tables, events and the page, at least


def check_writable(root: Location, what: str = "storage") -> None:
    """Raise InputError unless folders and files can be made in `root`, which need not exist yet; `what` it is in the config.

    The system is asked, so that a read-only file system is found although the user is root. An object store cannot be asked;
    reach.py tries it.
    """
    if not isinstance(root, Path):
        return
    try:
        there = root
        while not there.exists():
            there = there.parent
        if not there.is_dir():
            raise InputError(f"{what} '{root}' is inside '{there}', which is a file; give another folder")
        if not os.access(there, os.W_OK | os.X_OK):
            read_only = bool(os.statvfs(there).f_flag & os.ST_RDONLY)
            why = "its file system is read-only" if read_only else "you may not write there"
            raise InputError(f"{what} '{root}' cannot be written to ('{there}': {why}); give another folder")
    except OSError as error:
        raise InputError(f"{what} '{root}' cannot be used ({error.strerror or error}); give another folder") from error


def check_room(root: Location, needed: int) -> None:
    """Raise InputError where the file system of `root` has not `needed` bytes free; an object store has room."""
    if not isinstance(root, Path):
        return
    there = root
    while not there.exists():
        there = there.parent
    found = os.statvfs(there)
    if needed and found.f_files and not found.f_favail:
        raise InputError(
            f"storage '{root}' is on a file system that has no inodes free ({found.f_files:,} in all), so no file can be created; "
            "remove files there, or give another folder"
        )
    free = found.f_bavail * found.f_frsize
    if found.f_blocks and free < needed:  # some network file systems tell nothing: all zero
        raise InputError(
            f"storage '{root}' has {free / 1e6:.1f} MB free, and the run needs about {needed / 1e6:.1f} MB; free some "
            "space, or give another folder"
        )


def bytes_to_write(
    facts: Facts, graph: Graph, done: Collection[str], trainings: Iterable[TrainCall] = (), at_once: int = 1
) -> int:
    """About how many bytes a run needs: the states that are not captured yet, what `trainings` that are to be done write, and a
    little for everything else. What a training needs to go on is taken away as it ends, so that `at_once` of them count."""
    from raysweep.engine.training_estimate import written
    from raysweep.models.sizes import SIZES, hidden_size

    to_train = [written(call) for call in trainings if call.made is None]
    total = sum(kept for kept, _ in to_train) + sum(
        sorted((while_on for _, while_on in to_train), reverse=True)[:at_once]
    )
    for (model_name, dataset), cell in facts.cells.items():
        model = facts.models[model_name]
        for task in graph.captured(model_name, dataset)[:1]:
            n = sum(len(chunk) for chunk, key in zip(cell.chunks, task.parts, strict=True) if key not in done)
            total += n * model.base.n_layers * hidden_size(model.base.config) * SIZES.get(model.dtype, 4)
    lacking = any(key not in done for task in graph.tasks for key in task.keys)
    return total + _ASIDE if lacking else 0


def space(root: Location) -> tuple[int, int] | None:
    """Bytes free and bytes in all of the file system of `root`; None where that does not tell, or it is no folder here."""
    if not isinstance(root, Path):
        return None
    try:
        found = os.statvfs(root)
    except OSError:
        return None
    return (found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize) if found.f_blocks else None


class StorageFailedError(RunError):
    """The run folder's disk or store is full, gone, or refuses this user: no call can be committed any more."""


def is_lasting(error: BaseException, root: Location) -> bool:
    """Return whether the error is that of the run folder's disk or store, so that other calls would end in it as well."""
    if not isinstance(error, Exception) or not is_stores(error):
        return False
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:  # of the worker's memory
        return False
    if not isinstance(error, OSError):
        return True
    if not isinstance(root, Path):  # an error that names a file is about one of this machine
        return error.errno in _LASTING or not (error.filename or isinstance(error, FileNotFoundError))
    named = str(error.filename) if error.filename else ""
    there = Path(named).is_absolute() and Path(named).is_relative_to(root.absolute())
    return error.errno in _LASTING or (error.errno in _LASTING_THERE and there)


def is_stores(error: Exception) -> bool:
    """Return whether an error is the file system's, or that of a library that speaks to an object store."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _LIBRARIES


def storage_failed(root: Location, error: Exception) -> StorageFailedError:
    """Say in words what the system, or a store, did not do for a run folder."""
    number = error.errno if isinstance(error, OSError) and isinstance(root, Path) else None
    what = os.strerror(number) if number else " ".join(str(error).split()) or type(error).__name__
    where = f" (writing {error.filename})" if isinstance(error, OSError) and error.filename else ""
    remedy = "free some space there" if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "mend that"
    if number == errno.ENOSPC and (n := _inodes_used(root)):
        what, remedy = f"no inodes left on its file system, which holds {n:,} files at most", "remove files there"
    return StorageFailedError(
        f"the run folder '{root}' cannot be written to: {what}{where}; what is committed is kept; {remedy} and run "
        "again"
    )


def _inodes_used(root: Location) -> int:
    """The inodes of a full file system that has room for more bytes, but not for more files; else 0."""
    if not isinstance(root, Path):
        return 0
    try:
        found = os.statvfs(root)
    except OSError:
        return 0
    return found.f_files if found.f_files and not found.f_favail and found.f_bavail else 0


@contextlib.contextmanager
def failures_told(root: Location) -> Iterator[None]:
    """Raise what the system, or a store, refuses to write as StorageFailedError, in words."""
    try:
        yield
    except Exception as error:
        if not is_stores(error):
            raise
        raise storage_failed(root, error) from error
