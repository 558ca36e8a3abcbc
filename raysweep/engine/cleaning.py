"""Disk space in a run folder, freed by choice: results that its config does not use any more, captured states, trackers' logs.

Which results are in use is known from plan.json, which belongs to the folder's config.yaml. A commit is removed if none of its
parts is in that plan. A commit of which some parts are in use stays complete.

The order of removal leaves nothing broken if the process is killed: first the manifests of activation stores that name files to be
removed, then the commits' manifests, and last the files. What is left then are files that no commit names, which
`raysweep doctor --remove` removes. Files that raysweep did not write are never touched.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from raysweep.engine.disk import failures_told
from raysweep.engine.doctor import commit_files, file_sizes
from raysweep.engine.folder import RunFolder
from raysweep.engine.graph import Task
from raysweep.engine.reach import reach
from raysweep.errors import FolderInUseError, InputError
from raysweep.store.activation_files import MANIFEST
from raysweep.store.places import for_each, read_bytes

if TYPE_CHECKING:
    from raysweep.store.chunks import Manifest
    from raysweep.store.places import Location

SUPERSEDED, ACTIVATIONS, TRACKERS = CHOICES = ("superseded", "activations", "trackers")
_LOGS = tuple(f"trackers/{name}/" for name in ("tensorboard", "mlflow", "wandb", "trainings"))
_PRUNED = ("activations", "checkpoints", "trackers")  # folders whose empty folders are removed, too


@dataclass(frozen=True)
class Share:
    """What one choice frees: bytes and files, and whether they are removed now. `what` describes it in words."""

    choice: str
    what: str
    bytes: int
    files: int
    removed: bool = False


@dataclass(frozen=True)
class Cleaned:
    """What a run folder holds in all, and what each choice frees of it.

    `partly_used` counts the commits that stay because only some of their results are superseded.
    """

    folder: Location
    bytes: int
    files: int
    shares: tuple[Share, ...]
    partly_used: int

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "folder": str(self.folder), "shares": [asdict(share) for share in self.shares]}

    def to_text(self) -> str:
        """Return a line for each choice, and what was removed."""
        lines = [f"'{self.folder}' holds {_amount(self.bytes, self.files)}; what can be removed:"]
        if any(share.removed for share in self.shares):
            lines = [f"'{self.folder}' held {_amount(self.bytes, self.files)}:"]
        for share in self.shares:
            amount = f"{_amount(share.bytes, share.files)} ({share.what})" if share.files else "nothing"
            lines.append(f"  --{share.choice:<12} {amount}{'; removed' if share.removed else ''}")
        if self.partly_used:
            some = "1 more commit holds" if self.partly_used == 1 else f"{self.partly_used} more commits hold"
            lines.append(f"{some} both used and superseded results; kept")
        if not any(share.removed for share in self.shares):
            lines.append("nothing was removed")
        return "\n".join(lines)


def clean_folder(
    storage: str, options: Mapping[str, Any] | None = None, chosen: Sequence[str] = (), *, dry_run: bool = False
) -> Cleaned:
    """Look at a run folder, or its URL, and remove what is `chosen` among CHOICES, unless it is a `dry_run`.

    Raises InputError if it is not a run folder, FolderInUseError if another raysweep is in it while something is to be removed.
    """
    remove = bool(chosen) and not dry_run
    folder = RunFolder(reach(storage, options, write=remove))
    folder.require_run()
    with failures_told(folder.root), _locked(folder) if remove else contextlib.nullcontext():
        found = _Contents(folder)
        if remove:
            found.remove(chosen)
        return found.cleaned(chosen if remove else ())


@contextlib.contextmanager
def _locked(folder: RunFolder) -> Iterator[None]:
    try:
        with folder.locked():
            yield
    except FolderInUseError as error:
        raise FolderInUseError(
            f"run folder '{folder.root}' is in use by another raysweep ({error.holder}); wait for it to end, or stop it",
            error.holder,
        ) from None


class _Contents:
    """The files of a run folder, by the choice that removes them."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._sizes = file_sizes(folder.root)  # by path in the run folder
        planned = _planned_keys(folder)
        self._commits: dict[str, list[Manifest]] = {SUPERSEDED: [], ACTIVATIONS: []}
        self._partly_used, kept = 0, set[str]()
        for manifest in folder.chunks.manifests():
            used = [key in planned for key in manifest.parts]
            if not any(used):
                self._commits[SUPERSEDED].append(manifest)
            elif manifest.table is None and _is_states(manifest):
                self._commits[ACTIVATIONS].append(manifest)
            else:
                self._partly_used += not all(used)
                kept |= _files(manifest)
        self._paths = {choice: self._of_commits(commits) - kept for choice, commits in self._commits.items()}
        self._paths[SUPERSEDED] -= self._paths[ACTIVATIONS]  # a file that both name is still in use
        self._paths[TRACKERS] = {path for path in self._sizes if path.startswith(_LOGS)}

    def _of_commits(self, commits: Sequence[Manifest]) -> set[str]:
        """The files of commits, with their manifests, that are there."""
        named = {path for manifest in commits for path in (f"chunks/{manifest.name}.json", *_files(manifest))}
        return named & self._sizes.keys()

    def cleaned(self, removed: Sequence[str]) -> Cleaned:
        """What was found, with the choices that are `removed` by now."""
        n = len(self._commits[SUPERSEDED])
        words = {
            SUPERSEDED: f"{n} commit{'s' * (n != 1)} not used by config.yaml",
            ACTIVATIONS: "the next run captures them again",
            TRACKERS: "logs",
        }
        shares = tuple(
            Share(choice, words[choice], sum(map(self._sizes.__getitem__, paths)), len(paths), choice in removed)
            for choice, paths in ((choice, self._paths[choice]) for choice in CHOICES)
        )
        return Cleaned(self._folder.root, sum(self._sizes.values()), len(self._sizes), shares, self._partly_used)

    def remove(self, chosen: Sequence[str]) -> None:
        """Remove the files of these choices; see the module for the order."""
        paths = set[str]().union(*(self._paths[choice] for choice in chosen))
        for path in self._stores_with(paths):
            self._unlink([path])
        for manifest in (manifest for choice in chosen for manifest in self._commits.get(choice, ())):
            self._folder.check_held(ask=False)
            self._folder.chunks.forget(manifest.name)
        self._unlink(sorted(paths))
        self._prune(paths)

    def _stores_with(self, removed: set[str]) -> Iterator[str]:
        """The manifests of activation stores that name a file to be removed."""
        for path in self._sizes:
            place = PurePosixPath(path)
            if place.parts[0] == "activations" and place.name == MANIFEST:
                try:
                    named = [str(entry["path"]) for entry in json.loads(read_bytes(self._folder.root / path))["files"]]
                except (ValueError, KeyError, TypeError):
                    continue  # the doctor's to report
                if any(f"{place.parent}/{name}" in removed for name in named):
                    yield path

    def _unlink(self, paths: Sequence[str]) -> None:
        def unlink(path: str) -> None:
            self._folder.check_held(ask=False)
            (self._folder.root / path).unlink(missing_ok=True)

        for_each(self._folder.root, unlink, paths)

    def _prune(self, paths: set[str]) -> None:
        """Remove the folders that are empty now."""
        root = self._folder.root
        if not isinstance(root, Path):
            return
        folders = {parent for path in paths for parent in PurePosixPath(path).parents if parent.parts[:1]}
        for folder in sorted(folders, key=lambda folder: -len(folder.parts)):
            if folder.parts[0] in _PRUNED:
                with contextlib.suppress(OSError):  # not empty, or gone already
                    (root / folder).rmdir()


def _planned_keys(folder: RunFolder) -> set[str]:
    """The keys of every task of the latest plan. Raises InputError if it is another release's and not understood."""
    try:
        tasks = [Task.from_json(task) for task in json.loads(read_bytes(folder.plan))["tasks"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"'{folder.plan}' is damaged, or from another version ({type(error).__name__}); run the folder's config.yaml first"
        ) from error
    return {key for task in tasks for key in task.keys}


def _files(manifest: Manifest) -> set[str]:
    return {entry.path for entry in commit_files(manifest)}


def _is_states(manifest: Manifest) -> bool:
    return str(manifest.extra.get("folder", "")).startswith("activations/")


def _amount(size: int, files: int) -> str:
    return f"{size:,} bytes in {files:,} file{'s' * (files != 1)}"
