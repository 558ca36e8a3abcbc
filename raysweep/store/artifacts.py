"""Publishing files whole, and telling whole ones from others.

A file is written under a temporary name in its own folder, flushed to the disk, and renamed: whatever the moment of a
kill, readers see the old content, the new content or no file, never a part of one. To an object store it is sent whole, under
its own name, which comes to the same there. What a file must look like is told by its entry in a manifest (`FileEntry`), and
compared where it is read. POSIX file systems (local disks and NFS) and the stores that places.py takes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import socket
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from raysweep.errors import StoreError
from raysweep.store.places import BLOCK_BYTES, create, for_each, put, read_bytes, read_range, sizes_below

if TYPE_CHECKING:
    from upath import UPath

    from raysweep.store.places import Location

_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_FLUSHES = 16  # at a time
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=-]{0,199}")
_TEMPORARY = re.compile(r"\.tmp-(?P<host>.+)-(?P<pid>\d+)-[0-9a-f]{16}(?:\..*)?")


def check_safe_name(name: str, what: str) -> None:
    """Raise ValueError unless `name` can be part of a file name on any file system and hides nothing."""
    if not _SAFE_NAME.fullmatch(name):
        raise ValueError(
            f"{what} {name!r} is not a safe file name: 1 to 200 letters, digits and . _ = -, a letter or digit first"
        )


# --- publishing ---------------------------------------------------------------------------------------------------


def publish(path: Location, write: Callable[[Path], object]) -> None:
    """Publish a complete file at `path`, replacing an existing one in one step.

    `write` gets a temporary path in the same folder (for an object store, in this machine's temporary folder) with the suffix
    of `path`, and must create that file. Missing parent folders are created. If anything is raised, KeyboardInterrupt
    included, the temporary file is removed, `path` is unchanged, and the exception propagates.
    """
    publish_all(path.parent, {path.name: write})


def publish_all(folder: Location, files: Mapping[str, Callable[[Path], object]]) -> None:
    """Publish several files in a folder, by name, as `publish` does each; they are flushed at the same time.

    If anything is raised, some of them may have been published.
    """
    if not isinstance(folder, Path):
        for_each(folder, lambda name: _send(folder / name, files[name]), files)
        return
    make_folder(folder)
    temporaries = {folder / name: _temporary(folder / name) for name in files}
    try:
        for path, temporary in temporaries.items():
            with _naming(path):
                files[path.name](temporary.absolute())  # pyarrow takes a relative `s3:x` or `a::b` for a URL
        flush_all(temporaries.values())
        for path, temporary in temporaries.items():
            os.replace(temporary, path)  # noqa: PTH105 - the name says that an existing file is replaced
    except BaseException:
        _remove(temporaries.values())
        raise
    flush(folder)  # the rename itself must survive a power cut before anything refers to the file


def _send(path: UPath, write: Callable[[Path], object]) -> None:
    with tempfile.TemporaryDirectory(prefix="raysweep-") as folder:
        local = Path(folder) / f"file{path.suffix}"
        write(local)
        put(local, path)


def publish_new(path: Location, data: bytes) -> bool:
    """Publish `data` at `path` unless a file is there; return whether this call created it.

    Of several writers that try at once, exactly one succeeds: a hard link in a folder, If-None-Match in an object store. A file
    system without hard links (FAT, some network mounts) cannot refuse a rename, so there the run's lock alone keeps writers
    apart. `data` must differ between writers: a store's answer can get lost, and the content then tells whose file it is.
    """
    return publish_all_new(path.parent, {path.name: data})[0]


def publish_all_new(folder: Location, files: Mapping[str, bytes]) -> list[bool]:
    """Publish several files in a folder, by name, as `publish_new` does each; they are flushed at the same time.

    If anything is raised, some of them may have been published.
    """
    if not isinstance(folder, Path):
        return for_each(folder, lambda name: _send_new(folder / name, files[name]), files)
    make_folder(folder)
    temporaries = {folder / name: _temporary(folder / name) for name in files}
    try:
        for path, temporary in temporaries.items():
            temporary.write_bytes(files[path.name])
        flush_all(temporaries.values())
        created = [_link(temporary, path) for path, temporary in temporaries.items()]
    finally:
        _remove(temporaries.values())
    if any(created):
        flush(folder)
    return created


def _send_new(path: UPath, data: bytes) -> bool:
    return create(path, data) or read_bytes(path) == data


def _link(temporary: Path, path: Path) -> bool:
    """Give a file its name unless that is taken; whether it was free."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        if path.exists():
            return False
        os.replace(temporary, path)  # noqa: PTH105
    return True


def _remove(temporaries: Iterable[Path]) -> None:
    """Remove each of these files; raise the first error once all were tried."""
    with contextlib.ExitStack() as stack:
        for temporary in temporaries:
            stack.callback(temporary.unlink, missing_ok=True)


def publish_bytes(path: Location, data: bytes) -> None:
    """Publish `data` as the content of `path`; see `publish`."""
    publish(path, lambda temporary: temporary.write_bytes(data))


def publish_json(path: Location, data: Any) -> None:
    """Publish `data` as UTF-8 JSON. Raises TypeError or ValueError, before writing, on what JSON has no word for (NaN)."""
    publish_bytes(path, json_bytes(data))


def sweep_temporaries(folder: Location) -> list[Path]:
    """Remove the temporary files that killed writers left in `folder` and below, and say which; an object store has none.

    Only those of processes of this host that are no longer alive: a temporary file of another host, or of a process
    number in use, may still be written to. Readers never look at temporary files, so sweeping only frees space.
    """
    if not isinstance(folder, Path):
        return []
    removed = [path for path in files_below(folder) if path.name.startswith(".tmp-") and is_left_over(path)]
    for path in removed:
        path.unlink(missing_ok=True)
    return removed


def is_left_over(path: Path) -> bool:
    """Whether a file is the temporary one of a process of this host that is no longer alive."""
    match = _TEMPORARY.fullmatch(path.name)
    return bool(match and match["host"] == socket.gethostname() and not is_alive(int(match["pid"])))


def json_bytes(data: Any) -> bytes:
    """`data` as UTF-8 JSON. Half a surrogate pair, which UTF-8 has no bytes for, is written as JSON's own escape."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False, indent=1).encode("utf-8", "backslashreplace") + b"\n"


def make_folder(folder: Path) -> None:
    """Create a folder and its missing parents, each flushed to the disk."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        flush(folder.parent)


def flush(path: Path) -> None:
    """Flush a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with _naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_all(paths: Collection[Path]) -> None:
    """Flush files, several at a time: a file system writes them together then, which takes it little longer than one."""
    if len(paths) == 1:
        flush(*paths)
        return
    list(_flushers(os.getpid()).map(flush, paths))


@cache
def _flushers(process: int) -> ThreadPoolExecutor:
    """The threads of this process that flush files; a forked process has none of its parent's."""
    return ThreadPoolExecutor(_FLUSHES, thread_name_prefix="raysweep flush")


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Give an OSError that names no file this one: fsync and pyarrow do not say what they wrote to."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise


def flush_below(folder: Path) -> None:
    """Flush every file and folder below `folder`, then `folder` itself."""
    for path in files_below(folder):
        flush(path)
    for below, _, _ in os.walk(folder, topdown=False, onerror=_raise):
        flush(Path(below))


def files_below(folder: Path) -> list[Path]:
    """List the files below a folder, sorted; none if there is no folder. Raises OSError for one that cannot be read.

    pathlib's glob would pass over a folder that it may not read, as if it were empty. Links to folders are not followed.
    """
    if not folder.is_dir():
        return []
    return sorted(Path(above, name) for above, _, names in os.walk(folder, onerror=_raise) for name in names)


def _raise(error: OSError) -> None:
    raise error


def _temporary(path: Path) -> Path:
    return path.parent / f".tmp-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(8)}{path.suffix}"


def is_alive(pid: int) -> bool:
    """Whether this host has a process of this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # alive, and someone else's
        return True
    return True


# --- describing and checking files --------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileEntry:
    """What a manifest says of a file: its POSIX path relative to a folder, its rows, its bytes and its checksum."""

    path: str
    rows: int
    bytes: int
    sha256: str

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FileEntry:
        """The entry that `dataclasses.asdict` made `data` of. Raises KeyError, TypeError or ValueError on anything else."""
        entry = cls(data["path"], data["rows"], data["bytes"], data["sha256"])
        if [type(value) for value in (entry.path, entry.rows, entry.bytes, entry.sha256)] != [str, int, int, str]:
            raise TypeError(f"{dict(data)} does not describe a file")
        if PurePosixPath(entry.path).is_absolute() or ".." in PurePosixPath(entry.path).parts:
            raise ValueError(f"{entry.path!r} is a path outside the folder")
        return entry


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def publish_file(root: Location, path: str, write: Callable[[Path], object], *, rows: int) -> FileEntry:
    """Publish `root / path` (see `publish`) and return its entry, measured before the file became visible."""
    parent, name = (root / path).parent, (root / path).name
    return replace(publish_files(parent, {name: (write, rows)})[0], path=path)


def publish_files(folder: Location, files: Mapping[str, tuple[Callable[[Path], object], int]]) -> list[FileEntry]:
    """Publish files in a folder, each written by a function and with so many rows (see `publish_all`); their entries."""
    measured: dict[str, FileEntry] = {}

    def write_and_measure(name: str, temporary: Path) -> None:
        write, rows = files[name]
        write(temporary)
        measured[name] = FileEntry(name, rows, temporary.stat().st_size, sha256_file(temporary))

    publish_all(folder, {name: partial(write_and_measure, name) for name in files})
    return [measured[name] for name in files]


def check_file(root: Location, entry: FileEntry, *, remedy: str, checksum: bool = False) -> None:
    """Raise StoreError, which ends with `remedy`, unless `root / entry.path` has the size its entry says.

    With `checksum` its content is read and compared as well.
    """
    path = root / entry.path
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        size = None
    _compare(path, entry, size, remedy)
    if checksum:
        digest = sha256_file(path) if isinstance(path, Path) else _sha256_object(path, entry.bytes)
        _compare_digests(path, entry, digest, remedy)


def check_files(
    root: Location, entries: Iterable[FileEntry], *, remedy: str, sizes: Callable[[str], int | None] | None = None
) -> None:
    """`check_file` of sizes for many files, which costs an object store one listing; `sizes` is one made before."""
    sizes = sizes or sizes_below(root)
    for entry in entries:
        _compare(root / entry.path, entry, sizes(entry.path), remedy)


def read_checked(root: Location, entry: FileEntry, *, remedy: str) -> bytes | bytearray:
    """The content of `root / entry.path`, once its size and checksum are those of its entry; else StoreError is raised."""
    path = root / entry.path
    try:
        content = path.read_bytes() if isinstance(path, Path) else read_range(path, 0, entry.bytes + 1)
    except FileNotFoundError:
        _compare(path, entry, None, remedy)
        raise
    if len(content) != entry.bytes:
        check_file(root, entry, remedy=remedy)  # it knows the size of all of it
    _compare_digests(path, entry, hashlib.sha256(content).hexdigest(), remedy)
    return content


def check_content(root: Location, entry: FileEntry, content: Any, *, remedy: str) -> None:
    """Raise StoreError unless `content`, of the file that `entry` tells of, has its checksum."""
    _compare_digests(root / entry.path, entry, hashlib.sha256(content).hexdigest(), remedy)


def _sha256_object(path: UPath, size: int) -> str:
    digest, start = hashlib.sha256(), 0
    while start < size and (block := read_range(path, start, min(size, start + BLOCK_BYTES))):
        digest.update(block)
        start += len(block)
    return digest.hexdigest()


def _compare(path: Location, entry: FileEntry, size: int | None, remedy: str) -> None:
    if size is None:
        raise StoreError(f"{path}: expected {entry.bytes} bytes, found no file; {remedy}") from None
    if size != entry.bytes:
        raise StoreError(f"{path}: expected {entry.bytes} bytes, found {size}; {remedy}")


def _compare_digests(path: Location, entry: FileEntry, digest: str, remedy: str) -> None:
    if digest != entry.sha256:
        raise StoreError(f"{path}: expected sha256 {entry.sha256}, found {digest}; {remedy}")
