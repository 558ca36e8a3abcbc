"""The run folder: where each thing lies, and whether a folder is one.

config.yaml  plan.json  events.jsonl   (in an object store, which cannot append, events/*.jsonl)
chunks/                                 what is committed, by key
activations/<model>/<dataset>/          captured states
checkpoints/<model>/<dataset>-<key>/    fine-tuned models
training/<key>/                         what trainings need to go on that are not done
results/*.parquet  report/              made from the above
trackers/                               what TensorBoard, MLflow or Weights & Biases were told, where asked
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.engine.event_segments import is_segment
from raysweep.engine.graph import Graph, Task, shortened
from raysweep.engine.redone import why_redone
from raysweep.errors import FolderInUseError, InputError, RunError, StoreError
from raysweep.store.artifacts import check_files, publish_bytes, publish_json
from raysweep.store.chunks import ChunkStore, Manifest, NewChunk
from raysweep.store.links import refuse_links
from raysweep.store.lock import HeldError, HeldFile, hold
from raysweep.store.object_lock import Held, LostError, hold_object
from raysweep.store.owned_files import remove_owned
from raysweep.store.places import listing, read_bytes, remove_below, sizes_below

if TYPE_CHECKING:
    from raysweep.engine.calls import Commit
    from raysweep.store.places import Location


Sizes = Callable[[str], int | None]  # bytes of a file by its path, None if there is none

PROGRESS = "progress.json"  # of a training, in its folder
_KEPT = ("activations", "checkpoints")  # folders of files that commits name beside their tables
_MADE = ("chunks", *_KEPT, "training")


class RunFolder:
    """The places in a run folder; nothing is made by naming them."""

    def __init__(self, root: Location) -> None:
        self.root = root
        self.config = root / "config.yaml"
        self.plan = root / "plan.json"
        self.events = root / ("events.jsonl" if isinstance(root, Path) else "events")
        self.results = root / "results"
        self.report = root / "report"
        self.chunks = ChunkStore(root / "chunks")
        self.lock = root / ".lock"
        self._held: Held | HeldFile | None = None

    def activations(self, model: str, dataset: str) -> Location:
        """The activation store of one cell."""
        return self.root / "activations" / model / dataset

    def committed(self) -> dict[str, Manifest]:
        """The chunk that holds each key; a chunk whose activation files are gone or cut is not counted."""
        found: dict[str, Manifest] = {}
        sizes = self._sizes()
        for manifest in self.chunks.manifests():
            if self._is_intact(manifest, sizes):
                for key in manifest.parts:
                    found.setdefault(key, manifest)
        return found

    def find(self, keys: Iterable[str]) -> dict[str, Manifest]:
        """The chunk of each of these keys that `committed` counts, read from the expected chunks alone if these have all keys."""
        found = self.chunks.find(keys)
        sizes_in = cache(lambda folder: sizes_below(self.root / folder))
        if all(self._is_intact(manifest, sizes_in) for manifest in {m.name: m for m in found.values()}.values()):
            return found
        done = self.committed()  # another chunk may have the same part
        return {key: done[key] for key in found if key in done}

    def commit(self, commit: Commit, log: Mapping[str, Any]) -> Manifest:
        """Commit what a call made, with the `log` of how; see `commit_all`."""
        return self.commit_all([(commit, log)])[0]

    def commit_all(self, commits: Iterable[tuple[Commit, Mapping[str, Any]]]) -> list[Manifest]:
        """Commit what calls made, each with the `log` of how; the manifests, or those of another writer who was first.

        A driver that was paused may commit after it lost the folder. What it committed counts if its files are complete, and is
        replaced if they are not.
        """
        chunks = [
            NewChunk(commit.name, commit.table, dict.fromkeys(commit.keys), commit.files, {**commit.extra, "log": log})
            for commit, log in commits
        ]
        made = self.chunks.commit_all(chunks, check=partial(self.check_held, ask=False))
        return [manifest or self._settled(chunk) for chunk, manifest in zip(chunks, made, strict=True)]

    def _settled(self, chunk: NewChunk) -> Manifest:
        """What another writer committed under this name if it is complete, else this chunk, committed in its place."""
        made = None
        while made is None:
            self.check_held()
            with suppress(StoreError, FileNotFoundError):
                there = self.chunks.load(chunk.name)
                if self._is_intact(there, self._sizes()):
                    return there
            self.chunks.forget(chunk.name)
            (made,) = self.chunks.commit_all([chunk], check=partial(self.check_held, ask=False))
        return made

    def why_lost(self, key: str) -> str:
        """What a key that was committed lacks to be counted, in words: the file, and where it was looked for."""
        manifest = next((found for found in self.chunks.manifests() if key in found.parts), None)
        if manifest is None:
            return f"no chunk in '{self.chunks.folder}' has it"
        try:
            check_files(self.root / manifest.extra.get("folder", ""), manifest.files, remedy="")
        except StoreError as error:
            return str(error).removesuffix("; ")
        return "it was not there a moment ago, and is now"

    def training(self, key: str) -> Path:
        """Where a training of this identity keeps what it needs to go on. Raises InputError in an object store."""
        if not isinstance(self.root, Path):
            raise InputError(f"training needs a folder, and storage is '{self.root}'; give a folder")
        return self.root / "training" / key[:16]

    def trainings(self) -> dict[str, dict[str, Any]]:
        """How far trainings have come that are not done, by call, as they last told it: step, of, split, loss, seconds."""
        found = {}
        if isinstance(self.root, Path):
            for path in sorted(self.root.glob(f"training/*/{PROGRESS}")):
                try:
                    told = json.loads(path.read_bytes())
                    found[str(told.pop("call"))] = told
                except (OSError, ValueError, LookupError, TypeError, AttributeError):
                    continue  # it ended meanwhile
        return found

    def forget_training(self, key: str) -> None:
        """Remove what a training needed to go on, once it is done."""
        remove_below(self.training(key))

    def forget_broken(self) -> None:
        """Take back the commits whose activation files or checkpoints are gone or cut, so that they can be made again."""
        sizes = self._sizes()
        for manifest in self.chunks.manifests():
            if not self._is_intact(manifest, sizes):
                self.check_held()
                self.chunks.forget(manifest.name)

    def _sizes(self) -> Callable[[str], Sizes]:
        """By folder, the sizes of files that commits name beside their tables."""
        below = {name: sizes_below(self.root / name) for name in _KEPT}

        def sizes_in(folder: str) -> Sizes:
            top = folder.partition("/")[0]
            return lambda path: below[top](f"{folder}/{path}".removeprefix(f"{top}/")) if top in below else None

        return sizes_in

    def _is_intact(self, manifest: Manifest, sizes_in: Callable[[str], Sizes]) -> bool:
        """Whether a commit's files have the sizes they should."""
        folder = manifest.extra.get("folder", "")
        try:
            if manifest.files:
                check_files(self.root / folder, manifest.files, remedy="run again", sizes=sizes_in(folder))
        except StoreError:
            return False
        return True

    @property
    def is_run(self) -> bool:
        """Whether raysweep has run here; a run that was killed at once has left an empty log and no plan."""
        if isinstance(self.events, Path):
            return self.events.is_file() and (self.plan.is_file() or self.events.stat().st_size == 0)
        return any(map(is_segment, listing(self.events)))

    def check_usable(self) -> None:
        """Raise InputError unless the folder is a run folder, is empty, or can be made, and has no links to elsewhere."""
        try:
            self._check_ours()
            if isinstance(self.root, Path) and self.root.is_dir():
                refuse_links(self.root)
        except OSError as error:  # a name too long, a folder that may not be read
            raise InputError(
                f"storage '{self.root}' cannot be used ({error.strerror or error}); give another folder"
            ) from error

    def make(self, mode: int | None = None) -> None:
        """Make the folder, and those above it. Raises InputError where the system does not let it.

        `mode` are its permissions; by default the umask decides for a new folder, and an existing one stays as it is. In an
        object store there are no folders to be made, and the bucket is the user's to make.
        """
        if not isinstance(self.root, Path):
            return
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if mode is not None:
                self.root.chmod(mode)
        except OSError as error:
            raise InputError(
                f"storage '{self.root}' cannot be created ({error.strerror or error}); give another folder"
            ) from error

    def _check_ours(self) -> None:
        if self.root.exists() and not self.root.is_dir():
            raise InputError(f"storage '{self.root}' is a file; give a folder")
        if self.root.is_dir() and not self.is_run:
            found = next((path for path in self.root.iterdir() if path.name and not is_ours(path.name)), None)
            if found is not None:
                raise InputError(
                    f"storage '{self.root}' is neither empty nor a run folder (it has '{found.name}'); give another folder"
                )

    def require_run(self) -> None:
        """Raise InputError unless raysweep has run here."""
        if not self.root.is_dir():
            raise InputError(f"run folder '{self.root}' does not exist")
        if not self.is_run or not self.plan.is_file():
            raise InputError(f"'{self.root}' is not a run folder (it has no {self.events.name} and plan.json)")

    def clear(self) -> None:
        """Remove everything committed and made, so that a run starts afresh; killed meanwhile, what is left is of no commit."""
        self.check_held()
        self.chunks.forget_all()
        for name in _MADE:
            self.check_held()
            remove_below(self.root / name)
        for folder in (self.results, self.report / "figures", self.report):
            remove_owned(folder)

    def bytes_to_clear(self) -> int:
        """Bytes of what `clear` removes; 0 in an object store, which has room."""
        if not isinstance(self.root, Path):
            return 0
        found = 0
        for name in _MADE:
            for folder, _, files in os.walk(self.root / name):
                for file in files:
                    with suppress(OSError):  # a run that is in the folder moves some meanwhile
                        found += (Path(folder) / file).stat().st_size
        return found

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder, so that no other run writes to it.

        Raises FolderInUseError, naming the holder, if another run has it, and InputError if it has links to elsewhere.
        """
        if isinstance(self.root, Path):
            refuse_links(self.root)
        try:
            with hold(self.lock) if isinstance(self.lock, Path) else hold_object(self.lock) as self._held:
                yield
        except HeldError as error:
            raise FolderInUseError(
                f"run folder '{self.root}' is in use by another raysweep ({error}); wait for it to end (--wait), stop it, or give "
                "another storage",
                str(error),
            ) from None
        finally:
            self._held = None

    def let_go(self) -> None:
        """Release the lock of an object store now, from any thread: this process is about to end without unwinding.

        A lock in a folder is the system's, which drops it with the process.
        """
        if isinstance(self._held, Held):
            self._held.let_go()

    @property
    def holder(self) -> int:
        """This run's number in the lock of an object store; 0 where the system keeps the lock."""
        return self._held.number if isinstance(self._held, Held) else 0

    @property
    def is_locked(self) -> bool:
        """Whether the lock keeps other runs out; a file system without locks lets two in."""
        return not isinstance(self._held, HeldFile) or self._held.locked

    def check_held(self, *, ask: bool = True) -> None:
        """Raise RunError if the folder is no longer this run's: taken over by another one, removed, renamed or replaced.

        In an object store that takes a request, which `ask` False does without; then the loss is noticed within a heartbeat.
        """
        held = self._held
        if isinstance(held, HeldFile):
            if not held.is_there():
                raise RunError(
                    f"the run folder '{self.root}' was removed, renamed or replaced while the run went on; nothing "
                    "more was committed. Restore it and run again, or run again to start over"
                )
        elif held is not None:
            try:
                held.check(ask=ask)
            except LostError:
                raise RunError(
                    f"another raysweep has taken over the run folder '{self.root}', or its lock was removed, because "
                    "this one did not respond for too long; what is committed is kept"
                ) from None

    def write_plan(self, config_yaml: str, graph: Graph, about: dict[str, Any]) -> None:
        """Keep what this run is asked to do; `about` is what reports say of checkpoints, data and versions."""
        publish_bytes(self.config, config_yaml.encode())
        publish_json(self.plan, {"about": about, "tasks": [task.to_json() for task in graph.tasks]})

    def why_redone(self, graph: Graph, about: Mapping[str, Any], done: Collection[str]) -> str:
        """Return why tasks that the latest run had done are done again, in one line; empty if none are."""
        try:
            data = json.loads(read_bytes(self.plan))
            earlier = Graph(tuple(Task.from_json(task) for task in data["tasks"]))
            return why_redone(earlier, data["about"], graph, about, done)
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return ""  # there is no plan yet, or one of a release that is not understood

    def read_plan(self) -> tuple[Graph, dict[str, Any]]:
        """The graph of the latest run, of stopped sweeps what they needed, and its `about`."""
        data = json.loads(read_bytes(self.plan))
        graph = Graph(tuple(Task.from_json(task) for task in data["tasks"]))
        return shortened(graph, self.committed()) if any(graph.of_kind("stop")) else graph, data["about"]


def is_ours(name: str) -> bool:
    """Whether a file of this name at the root of a folder does not keep it from being taken: a lock, or a look whether one can write."""
    return name == ".lock" or name.startswith((".raysweep-", ".tmp-"))
