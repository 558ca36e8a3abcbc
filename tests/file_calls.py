"""The calls that a program makes on paths below a folder: recorded, with what a kill or a power cut would leave after each, or failed.

Python's own calls are seen (`os`, and `open`); what C++ writes into a file is seen when the file is flushed or renamed.

After a power cut a file has what it had when it was last flushed, and a folder has the names that it had when it was last
flushed. Names and contents that were not flushed may be there all the same: `Cut` says which.
"""

from __future__ import annotations

import errno
import io
import json
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

CHANGING = ("open", "fsync", "replace", "rename", "link", "unlink", "rmdir", "mkdir", "ftruncate")
READING = ("stat", "lstat", "scandir", "listdir")
# A kill leaves everything. A power cut leaves what was flushed; or every name, with content that was not flushed gone; or of
# each name and content that were not flushed, at random, the new or the old.
Cut = Literal["kill", "flushed", "names", "random"]


Entries = dict[int, dict[str, int]]  # of each folder, the names in it and what they are: files and folders by number


@dataclass(frozen=True)
class Moment:
    """A folder, number 0, after a call: its files and folders, and what of them was flushed."""

    call: str
    names: Entries
    flushed_names: Entries
    contents: dict[int, bytes]
    flushed: dict[int, bytes]
    folders: set[int]  # that there ever were

    def leave(self, target: Path, cut: Cut, generator: random.Random) -> None:
        """Make `target` a folder as it would be found again."""
        self._leave(0, target, cut, generator)

    def _leave(self, folder: int, target: Path, cut: Cut, generator: random.Random) -> None:
        target.mkdir(parents=True)
        now, flushed = self.names.get(folder, {}), self.flushed_names.get(folder, {})
        for name in sorted(now.keys() | flushed.keys()):
            new, old = now.get(name), flushed.get(name)
            number = old if cut == "flushed" else generator.choice([new, old]) if cut == "random" else new
            if number is None:
                continue
            if number in self.folders:
                self._leave(number, target / name, cut, generator)
            else:
                (target / name).write_bytes(self._content(number, cut, generator))

    def _content(self, number: int, cut: Cut, generator: random.Random) -> bytes:
        now, flushed = self.contents.get(number, b""), self.flushed.get(number, b"")
        if cut == "kill" or now == flushed:
            return now
        if cut == "random":
            return now[: generator.randrange(len(now) + 1)]
        return flushed + bytes(len(now) - len(flushed)) if cut == "names" and len(now) > len(flushed) else flushed


class Recorded:
    """The moments after each call that changed something below a folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.moments = root, list[Moment]()
        self._flushed, self._flushed_names = dict[int, bytes](), Entries()
        self._numbers: dict[int, int] = {}  # by inode, of what is there; inodes are used again, numbers are not
        self._folders, self._next = {0}, 1

    def take(self, call: str, path: Path) -> None:
        names, contents = self._look()
        if call == "fsync":
            number = self._numbers[path.stat().st_ino] if path != self.root else 0
            if path.is_dir():
                self._flushed_names = {**self._flushed_names, number: names[number]}
            else:
                self._flushed = {**self._flushed, number: contents[number]}
        self.moments.append(Moment(call, names, self._flushed_names, contents, self._flushed, self._folders))

    def _look(self) -> tuple[Entries, dict[int, bytes]]:
        names, contents, inodes = Entries({0: {}}), dict[int, bytes](), dict[int, int]()

        def number(path: Path) -> int:
            inode = path.lstat().st_ino
            if inode not in inodes:
                inodes[inode] = self._numbers.get(inode) or self._new()
            return inodes[inode]

        for folder, folders, files in os.walk(self.root):
            at = 0 if Path(folder) == self.root else number(Path(folder))
            self._folders.add(at)
            names[at] = {name: number(Path(folder, name)) for name in (*folders, *files)}
            contents |= {names[at][name]: Path(folder, name).read_bytes() for name in files}
        self._numbers = inodes
        return names, contents

    def _new(self) -> int:
        self._next += 1
        return self._next


@contextmanager
def recorded(root: Path) -> Iterator[Recorded]:
    """Record what changes below `root`, which exists."""
    found = Recorded(root.resolve())

    def around(name: str, path: Path, call: Callable[[], Any]) -> Any:
        result = call()
        if name in CHANGING:
            with unseen():
                found.take(name, path)
        return result

    with _patched(found.root, around):
        yield found


@dataclass
class Failing:
    """Counts calls, and fails the n-th (from 1) with an error number; `failed` names the call."""

    number: int
    n: int
    calls: int = 0
    failed: str = ""


@contextmanager
def failing(root: Path, number: int, n: int) -> Iterator[Failing]:
    """Let the n-th call on a path below `root` fail with this errno; 0 for none, to count them."""
    found = Failing(number, n)

    def around(name: str, path: Path, call: Callable[[], Any]) -> Any:
        found.calls += 1
        if found.calls == n:
            found.failed = f"{name} {path}"
            raise OSError(number, os.strerror(number), str(path))
        return call()

    with _patched(root.resolve(), around):
        yield found


@contextmanager
def counting(root: Path, told: Path) -> Iterator[None]:
    """Write down how many calls there are on paths below `root`, and how many of them change something."""
    counts = {"calls": 0, "changing": 0}

    def around(name: str, path: Path, call: Callable[[], Any]) -> Any:
        counts["calls"] += 1
        counts["changing"] += name in CHANGING
        told.write_text(json.dumps(counts))
        return call()

    with _patched(root, around):
        yield


@contextmanager
def power_cut(root: Path, n: int, cut: Cut, left: Path) -> Iterator[None]:
    """End the process after the n-th call that changes something below `root`, and make `left` what would be found then."""
    found = Recorded(root)

    def around(name: str, path: Path, call: Callable[[], Any]) -> Any:
        result = call()
        if name in CHANGING:
            with unseen():
                found.take(name, path)
                if len(found.moments) == n:
                    found.moments[-1].leave(left, cut, random.Random(n))
                    os._exit(137)
                found.moments[:-1] = [None] * (len(found.moments) - 1)  # type: ignore[list-item]
        return result

    with _patched(root, around):
        yield


_seen = True


@contextmanager
def unseen() -> Iterator[None]:
    """Calls in this context are not recorded, and do not fail: a test's own."""
    global _seen
    before, _seen = _seen, False
    try:
        yield
    finally:
        _seen = before


@contextmanager
def _patched(root: Path, around: Callable[[str, Path, Callable[[], Any]], Any]) -> Iterator[None]:
    real = {name: getattr(os, name) for name in (*CHANGING, *READING) if name != "open"}
    in_turn = threading.RLock()  # files are flushed by several threads
    real_open, real_os_open, below = io.open, os.open, f"{root}/"

    def where(argument: Any) -> Path | None:
        if isinstance(argument, int):
            argument = Path(f"/proc/self/fd/{argument}").readlink()
        if not isinstance(argument, (str, bytes, os.PathLike)):
            return None
        path = (
            f"{Path.cwd()}/{os.fsdecode(argument)}"
            if not os.fsdecode(argument).startswith("/")
            else os.fsdecode(argument)
        )
        return Path(path) if path.startswith(below) or path == str(root) else None

    def wrap(name: str, call: Callable[..., Any], changes: Callable[..., bool] = lambda *_: True) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            with in_turn:
                path = (
                    where(arguments[-1] if name in ("replace", "rename", "link") else arguments[0]) if _seen else None
                )
                if path is None:
                    return call(*arguments, **options)
                kind = name if changes(*arguments[1:], *options.values()) else f"{name} to read"
                return around(kind, path, lambda: call(*arguments, **options))

        return wrapped

    def writes(mode: object = "r", *_: object) -> bool:
        return isinstance(mode, str) and not mode.startswith("r")

    def creates(flags: object = 0, *_: object) -> bool:
        return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))

    try:
        for name, call in real.items():
            setattr(os, name, wrap(name, call))
        io.open = wrap("open", real_open, writes)  # type: ignore[assignment]
        os.open = wrap("open", real_os_open, creates)
        yield
    finally:
        for name, call in real.items():
            setattr(os, name, call)
        io.open, os.open = real_open, real_os_open  # type: ignore[assignment]


ERRORS = (errno.EIO, errno.ENOSPC, errno.EPERM)
