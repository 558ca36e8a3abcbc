"""A cache of what was found out about weight files, in the user's cache folder: a file that has not changed is not read again.

Only planning uses it. Whatever loads weights digests the bytes that it loads (digest_check.py), and `doctor --checksums`
reads all files, so a stale entry can stop a run but never change a result.

A file is unchanged if its real path, device, inode, size, and times of modification and of change (mtime and ctime, in
nanoseconds) are those of the entry. Programs can set mtime but not ctime. On a file system whose ctime is coarse or equals
mtime (some network and FUSE mounts), a change that restores size and mtime can go unnoticed. So can a change through a
memory map while the page has not been written back. A file in the hub's cache is named after its content: under another
path than before, its name and size are enough.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from raysweep.errors import InputError, shown
from raysweep.user_cache import user_cache

T = TypeVar("T")

VARIABLE = "RAYSWEEP_DIGEST_CACHE"
FOLDER = "digests"
MOST_BYTES = 50_000_000  # of all entries together
_FORMAT = 1  # of entries; a new release of raysweep starts over anyway
_SETTLED_SECONDS = 2.0  # a file changed later than this before it is read may change again without a new time
_MOST_PATHS = 16  # of one file of the hub
_HUB_NAME = re.compile(r"[0-9a-f]{64}")  # of a large file: its SHA-256
_NOT_MINE = stat.S_IWGRP | stat.S_IWOTH

Identity = list[int]  # device, inode, size, mtime and ctime in nanoseconds


class DigestCache:
    """Entries in a folder, each a small JSON file for one weight file. A damaged entry counts as none.

    Nothing is raised if the folder cannot be read or written, and a folder that others own or can write is not used. `now`
    gives the seconds since the epoch.
    """

    def __init__(self, folder: Path, *, now: Callable[[], float] = time.time) -> None:
        self._folder, self._now = folder, now

    def remember(self, path: Path, kind: str, compute: Callable[[], Any], accept: Callable[[Any], T | None]) -> T:
        """Return what `accept` makes of the value stored for a file, or of `compute()`, which is stored, if it has none.

        `kind` names what is stored, as a file may have several values. A value is made of JSON's types. `accept` returns None
        for a value of the wrong form. Raises what `compute` raises, and OSError if there is no such file.
        """
        real, before, started = os.path.realpath(path), identity(path), self._now()
        name = _entry_name(real, kind)
        entry = self._read(name, kind)
        if entry is not None and _is_same(real, before, entry):
            found = accept(entry["value"])
            if found is not None:
                if real not in entry["files"]:
                    self._write(name, {**entry, "files": {**entry["files"], real: before}})
                return found
        value = compute()
        settled = started - max(before[3:]) / 1e9 > _SETTLED_SECONDS
        if settled and identity(path) == before:
            by_name = _is_hub_file(Path(real)) and (entry is None or entry["value"] == value)
            self._write(name, {**_head(kind), "files": {real: before}, "by_name": by_name, "value": value})
        return _accepted(value, kind, accept)

    def _read(self, name: str, kind: str) -> dict[str, Any] | None:
        """Return an entry whose form and checksum are right, and mark it as used."""
        if not self._is_mine():
            return None
        path = self._folder / name
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with open(handle, "rb") as file:  # noqa: PTH123 - of the handle that was checked
                found = os.fstat(handle)
                if not stat.S_ISREG(found.st_mode) or not _owned_alone(found) or found.st_size > MOST_BYTES:
                    return None
                entry = json.loads(file.read())
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(entry, dict) or not _is_entry(entry, kind):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return entry

    def _write(self, name: str, entry: Mapping[str, Any]) -> None:
        entry = {**entry, "files": dict(list(entry["files"].items())[-_MOST_PATHS:])}
        data = json.dumps({**entry, "sha256": _checksum(entry)}).encode()
        if len(data) > MOST_BYTES // 2:
            return
        with contextlib.suppress(OSError):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._is_mine():
                return
            handle, temporary = tempfile.mkstemp(prefix=".tmp-", dir=self._folder)  # of mode 0600
            try:
                with open(handle, "wb") as file:  # noqa: PTH123
                    file.write(data)
                os.replace(temporary, self._folder / name)  # noqa: PTH105 - the name says that an existing file is replaced
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
            self._prune()

    def _prune(self) -> None:
        """Remove the entries that were not used for longest, if there are too many."""
        entries = sorted((found.st_mtime_ns, found.st_size, path) for path, found in self._entries())
        excess = sum(size for _, size, _ in entries) - MOST_BYTES
        for _, size, path in entries:
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= size

    def _entries(self) -> list[tuple[Path, os.stat_result]]:
        found = []
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process may prune as well
                found.append((path, path.lstat()))
        return found

    def _is_mine(self) -> bool:
        try:
            found = self._folder.stat()
        except OSError:
            return False
        return stat.S_ISDIR(found.st_mode) and _owned_alone(found)


def user_digest_cache() -> DigestCache | None:
    """Return this user's cache; None if `RAYSWEEP_DIGEST_CACHE` is off or there is no folder for caches.

    Raises InputError for a value other than on and off.
    """
    chosen = os.environ.get(VARIABLE) or "on"
    if chosen not in ("on", "off"):
        raise InputError(f"{VARIABLE} is {shown(chosen)}, but it must be on or off")
    if chosen == "off":
        return None
    try:
        return DigestCache(user_cache() / FOLDER)
    except InputError:
        return None


def remembered(
    cache: DigestCache | None, path: Path, kind: str, compute: Callable[[], Any], accept: Callable[[Any], T | None]
) -> T:
    """Do as `DigestCache.remember` does; without a cache, compute. Raises what `compute` raises."""
    if cache is not None:
        return cache.remember(path, kind, compute, accept)
    return _accepted(compute(), kind, accept)


def _accepted(value: Any, kind: str, accept: Callable[[Any], T | None]) -> T:
    found = accept(value)
    if found is None:
        raise ValueError(f"the value computed for {kind!r} has the wrong form: {shown(value)}")
    return found


def identity(path: Path) -> Identity:
    """Return what changes if a file is changed or replaced. Raises OSError."""
    found = path.stat()
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _is_same(real: str, now: Identity, entry: Mapping[str, Any]) -> bool:
    """Whether the file is one of those that an entry is known to hold for, or has the content by its name."""
    files: Mapping[str, Identity] = entry["files"]
    if real in files:
        return files[real] == now
    return bool(entry["by_name"]) and now[2] == next(iter(files.values()))[2]


def _is_hub_file(path: Path) -> bool:
    """Whether the hub's client has named a file after its content: `models--owner--name/blobs/<SHA-256>`."""
    repository = path.parent.parent.name
    return bool(_HUB_NAME.fullmatch(path.name)) and path.parent.name == "blobs" and repository.startswith("models--")


def _entry_name(real: str, kind: str) -> str:
    whose = f"blob {Path(real).name}" if _is_hub_file(Path(real)) else f"path {real}"
    return f"{hashlib.sha256(f'{kind} {whose}'.encode(errors='surrogateescape')).hexdigest()[:40]}.json"


def _head(kind: str) -> dict[str, Any]:
    return {"format": _FORMAT, "raysweep": version("raysweep"), "kind": kind}


def _checksum(entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()


def _is_entry(entry: dict[str, Any], kind: str) -> bool:
    """Whether an entry is complete, and one of this release for `kind`. Takes its checksum out of it."""
    if entry.pop("sha256", None) != _checksum(entry):
        return False
    return {key: entry.get(key) for key in _head(kind)} == _head(kind)


def _owned_alone(found: os.stat_result) -> bool:
    return found.st_uid == os.geteuid() and not found.st_mode & _NOT_MINE
