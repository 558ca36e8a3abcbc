"""What kills and damage have left in a run folder: found, and removed where that is asked for.

Manifests are trusted, and nothing else: a file in chunks/ or activations/ that no whole commit names is an orphan, and a commit
whose files are not as its manifest says is broken (without its manifest, its parts are computed again by the next run). Only
what raysweep itself writes is looked at: other files in the folder are nobody's business here. A folder that a run is in is
refused, for what a run is writing has no manifest yet.

With checksums, the checkpoints that commits were made from are read as well. A commit whose checkpoint is another one by
now is marked and kept.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from raysweep.engine.event_segments import segments
from raysweep.engine.events import log_lines, parsed
from raysweep.engine.folder import RunFolder
from raysweep.engine.inputs import INPUTS, InputCheck
from raysweep.engine.training_plan import KINDS
from raysweep.errors import FolderInUseError, InputError, StoreError
from raysweep.store import lock, object_lock
from raysweep.store.activation_files import MANIFEST
from raysweep.store.activations import open_activations
from raysweep.store.artifacts import FileEntry, check_file, files_below, is_left_over, publish, publish_bytes
from raysweep.store.chunks import Manifest
from raysweep.store.places import listing, read_bytes, remove_below

if TYPE_CHECKING:
    from raysweep.store.places import Location

_HOUR = 3600.0  # after which a temporary file of another host is nobody's any more: writing one takes seconds


@dataclass(frozen=True)
class Finding:
    """One thing that should not be there: its kind, its path in the run folder, its bytes, why, and whether it is gone now.

    Kinds: `orphan`, `commit` (broken), `store` (a manifest of activations that are not there as it says), `temporary`, `lock`,
    `events`, `input` (a commit whose checkpoint is another one by now; it is never removed).
    """

    kind: str
    path: str
    bytes: int
    why: str
    removed: bool = False


@dataclass(frozen=True)
class Examined:
    """What was found in a run folder; `unchecked` says which checkpoints could not be compared, which is no finding."""

    folder: Location
    findings: tuple[Finding, ...]
    unchecked: tuple[str, ...] = ()

    @property
    def left(self) -> int:
        """How many findings were not removed."""
        return sum(not finding.removed for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "folder": str(self.folder),
            "findings": [asdict(finding) for finding in self.findings],
            "left": self.left,
            "unchecked": list(self.unchecked),
        }

    def to_text(self) -> str:
        """A line a finding, and one for all of them."""
        lines = [
            f"{f.kind:<10} {f.path} ({f.bytes:,} bytes): {f.why}" + ("; removed" if f.removed else "")
            for f in self.findings
        ]
        lines += [f"{'unchecked':<10} {text}" for text in self.unchecked]
        n, size = len(self.findings), sum(f.bytes for f in self.findings)
        if not n:
            return "\n".join([*lines, f"'{self.folder}': nothing found"])
        marked = sum(f.kind == "input" for f in self.findings)
        ends = [f"{self.left - marked} left; --remove removes them"] if self.left > marked else []
        ends += [f"{marked} computed from checkpoints that have changed since, and kept"] if marked else []
        end = "; ".join(ends) or "all removed"
        return "\n".join([*lines, f"'{self.folder}': {n} found, {size:,} bytes; {end}"])


def examine(folder: RunFolder, *, remove: bool = False, checksums: bool = False) -> Examined:
    """Look through a run folder; with `checksums` every committed file is read, else sizes are compared.

    Raises InputError where the folder is none, or a run is in it.
    """
    if not folder.is_run:
        raise InputError(f"'{folder.root}' is not a run folder; nothing was changed")
    stale = _stale_lock(folder)
    with folder.locked() if remove else nullcontext():
        look = _Look(folder, checksums)
        found = [*stale, *look.findings()]
        if remove:
            found = [finding if finding.kind == "input" else _without(folder, finding) for finding in found]
    return Examined(folder.root, tuple(found), tuple(look.unchecked))


def _stale_lock(folder: RunFolder) -> list[Finding]:
    """A lock that its holder cannot let go of any more; raises FolderInUseError if one is held."""
    if isinstance(folder.lock, Path):
        words = lock.holder(folder.lock)
        stale = None
    else:
        last = object_lock.holder(folder.lock)
        words = last.words if last and last.held and not last.stale else None
        stale = last if last and last.stale else None
    if words is not None:
        raise FolderInUseError(
            f"run folder '{folder.root}' is in use by another raysweep ({words}); wait for it to end, or stop it", words
        )
    return [Finding("lock", ".lock", 0, f"its holder is gone ({stale.words})")] if stale else []


class _Look:
    """One look through a folder: what is there, and what whole commits name."""

    def __init__(self, folder: RunFolder, checksums: bool) -> None:
        self._folder, self._checksums = folder, checksums
        self._sizes = file_sizes(folder.root)  # by path in the run folder
        self._broken: list[Finding] = []
        self._changed: list[Finding] = []
        self._inputs = InputCheck()
        self._named: set[str] = set()
        for path in self._sizes:
            if PurePosixPath(path).match("chunks/*.json") and _depth(path) == 2:
                self._read(path)

    @property
    def unchecked(self) -> list[str]:
        """Checkpoints that could not be compared."""
        return self._inputs.unchecked

    def findings(self) -> list[Finding]:
        """All of them, broken commits first."""
        orphans = [
            Finding("orphan", path, size, "no complete commit names it")
            for path, size in self._sizes.items()
            if _is_data(path) and path not in self._named
        ]
        gone = {finding.path for finding in orphans}
        found = [*self._broken, *orphans, *self._stores(gone), *self._trainings()]
        return [*found, *self._temporaries(), *self._torn(), *self._changed]

    def _read(self, path: str) -> None:
        """Take up what a manifest names, or that it is broken."""
        root, name = self._folder.root, PurePosixPath(path).stem
        try:
            manifest = self._folder.chunks.parse(root / path, read_bytes(root / path))
            entries = list(commit_files(manifest))
            for entry in entries:
                size = self._sizes.get(entry.path)
                if size != entry.bytes:
                    there = "no file" if size is None else f"{size} bytes"
                    raise StoreError(f"'{entry.path}' should have {entry.bytes} bytes, and it has {there}")
                if self._checksums:
                    check_file(root, entry, remedy="it is damaged", checksum=True)
        except StoreError as error:
            self._broken.append(Finding("commit", path, self._sizes[path], f"chunk '{name}' is broken: {error}"))
            return
        self._named.update(entry.path for entry in entries)
        for why in self._inputs.changes(manifest.extra.get(INPUTS)) if self._checksums else ():
            self._changed.append(Finding("input", path, self._sizes[path], f"chunk '{name}' was {why}"))

    def _stores(self, gone: set[str]) -> Iterator[Finding]:
        for path, size in self._sizes.items():
            if not (path.startswith("activations/") and PurePosixPath(path).name == MANIFEST):
                continue
            above = path.removesuffix(MANIFEST)
            try:
                opened = open_activations(self._folder.root / above.rstrip("/"))
                lost = next((entry.path for entry in opened.files if above + entry.path in gone), None)
                why = f"it names '{lost}', which no complete commit names" if lost else None
            except StoreError as error:
                why = str(error)
            if why:
                yield Finding("store", path, size, f"{why}; the next run writes a new one")

    def _trainings(self) -> Iterator[Finding]:
        """Folders of trainings that no task of the latest config will take up: each is as large as several checkpoints."""
        sizes: dict[str, int] = {}
        for path, size in self._sizes.items():
            if path.startswith("training/") and _depth(path) > 2:
                folder = "/".join(path.split("/")[:2])
                sizes[folder] = sizes.get(folder, 0) + size
        wanted = {f"training/{key[:16]}" for key in self._to_train()} if sizes else set()
        for folder, size in sizes.items():
            if folder not in wanted:
                yield Finding("orphan", folder, size, "no remaining task continues from it")

    def _to_train(self) -> Iterator[str]:
        """The keys of the trainings that the latest config still lacks."""
        if self._folder.plan.is_file():
            done = self._folder.committed()
            for task in self._folder.read_plan()[0].tasks:
                if task.kind in KINDS.values() and any(key not in done for key in task.keys):
                    yield task.keys[0]

    def _temporaries(self) -> Iterator[Finding]:
        root = self._folder.root
        for path, size in self._sizes.items():
            name = PurePosixPath(path).name
            if isinstance(root, Path):
                if name.startswith(".tmp-") and (is_left_over(root / path) or _is_old(root / path)):
                    yield Finding("temporary", path, size, "its writer is gone")
            elif name.startswith((".raysweep-probe-", ".raysweep-clock-", ".tmp-")) and _depth(path) == 1:
                yield Finding("temporary", path, size, "its writer is gone")

    def _torn(self) -> Iterator[Finding]:
        torn = [line for line in log_lines(self._folder.events) if line.strip() and parsed(line) is None]
        if torn:
            size = sum(len(line.encode("utf-8", "replace")) for line in torn)
            yield Finding("events", self._folder.events.name, size, f"{len(torn)} incomplete lines, which readers skip")


def _without(folder: RunFolder, finding: Finding) -> Finding:
    """The finding, once it is removed."""
    if finding.kind == "events":
        if isinstance(folder.events, Path):
            publish(folder.events, partial(_copy_complete, folder.events))
        else:
            for name, content in segments(folder.events):
                publish_bytes(folder.events / name, b"".join(_complete(content.splitlines(keepends=True))))
    elif finding.kind != "lock":  # that has been taken over, and is let go of in the end
        path = folder.root / finding.path
        if path.is_dir():
            remove_below(path)
        else:
            path.unlink(missing_ok=True)
    return Finding(finding.kind, finding.path, finding.bytes, finding.why, removed=True)


def _copy_complete(log: Path, target: Path) -> None:
    with log.open("rb") as lines, target.open("wb") as file:
        file.writelines(_complete(lines))


def _complete(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The lines that are events, each with its end."""
    for line in lines:
        if parsed(line.decode("utf-8", "replace")) is not None:
            yield line.removesuffix(b"\n") + b"\n"


def commit_files(manifest: Manifest) -> Iterator[FileEntry]:
    """The files of a commit, with paths in the run folder."""
    if manifest.table is not None:
        yield _moved(manifest.table, "chunks")
    for entry in manifest.files:
        yield _moved(entry, str(manifest.extra.get("folder", "")))


def _moved(entry: FileEntry, folder: str) -> FileEntry:
    return FileEntry(f"{folder}/{entry.path}", entry.rows, entry.bytes, entry.sha256)


def file_sizes(root: Location) -> dict[str, int]:
    """Return the bytes of every file below, by its path."""
    if not isinstance(root, Path):
        return {path: int(info["size"]) for path, info in sorted(listing(root).items())}
    files = (path for path in files_below(root) if path.is_file() and not path.is_symlink())
    return {path.relative_to(root).as_posix(): path.stat().st_size for path in files}


def _is_data(path: str) -> bool:
    """Whether raysweep would have written a file of this path in the course of a commit."""
    place = PurePosixPath(path)
    if place.name.startswith("."):
        return False
    table = _depth(path) == 2 and place.match("chunks/*.parquet")
    states = _depth(path) == 5 and place.match("activations/*/*/layer=*/part-*.arrow")
    return table or states or (_depth(path) == 4 and place.match("checkpoints/*/*/*"))


def _depth(path: str) -> int:
    return path.count("/") + 1


def _is_old(path: Path) -> bool:
    return time.time() - path.stat().st_mtime > _HOUR
