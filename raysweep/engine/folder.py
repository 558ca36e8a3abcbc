"""The run folder: where each thing lies, and whether a folder is one.

config.yaml  plan.json  events.jsonl
chunks/                                 what is committed, by key
activations/<model>/<dataset>/          captured states
results/*.parquet  report/              made from the above
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raysweep.engine.graph import Graph, Task, shortened
from raysweep.errors import InputError, StoreError
from raysweep.store.artifacts import ChunkStore, Manifest, check_file, publish_bytes, publish_json
from raysweep.store.lock import HeldError, hold


class RunFolder:
    """The places in a run folder; nothing is made by naming them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "config.yaml"
        self.plan = root / "plan.json"
        self.events = root / "events.jsonl"
        self.results = root / "results"
        self.report = root / "report"
        self.chunks = ChunkStore(root / "chunks")
        self.lock = root / ".lock"

    def activations(self, model: str, dataset: str) -> Path:
        """The activation store of one cell."""
        return self.root / "activations" / model / dataset

    def committed(self) -> dict[str, Manifest]:
        """The chunk that holds each key; a chunk whose activation files are gone or cut is not counted."""
        found: dict[str, Manifest] = {}
        for manifest in self.chunks.manifests():
            if self._is_intact(manifest):
                for key in manifest.parts:
                    found.setdefault(key, manifest)
        return found

    def forget_broken(self) -> None:
        """Take back the commits whose activation files are gone or cut, so that they can be made again."""
        for manifest in self.chunks.manifests():
            if not self._is_intact(manifest):
                self.chunks.forget(manifest)

    def _is_intact(self, manifest: Manifest) -> bool:
        try:
            for entry in manifest.files:
                check_file(self.root / manifest.extra.get("folder", ""), entry, remedy="run again")
        except StoreError:
            return False
        return True

    @property
    def is_run(self) -> bool:
        """Whether raysweep has run here; a run that was killed at once has left an empty log and no plan."""
        return self.events.is_file() and (self.plan.is_file() or self.events.stat().st_size == 0)

    def check_usable(self) -> None:
        """Raise InputError unless the folder is a run folder, is empty, or can be made."""
        try:
            self._check_ours()
        except OSError as error:  # a name too long, a folder that may not be read
            raise InputError(
                f"storage '{self.root}' cannot be used ({error.strerror or error}); give another folder"
            ) from error

    def make(self) -> None:
        """Make the folder, and those above it. Raises InputError where the system does not let it."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"storage '{self.root}' cannot be made ({error.strerror or error}); give another folder"
            ) from error

    def _check_ours(self) -> None:
        if self.root.exists() and not self.root.is_dir():
            raise InputError(f"storage '{self.root}' is a file; give a folder")
        if self.root.is_dir() and not self.is_run:
            found = next(
                (path for path in self.root.iterdir() if path != self.lock and not path.name.startswith(".tmp-")), None
            )
            if found is not None:
                raise InputError(
                    f"storage '{self.root}' is neither empty nor a run folder (it has '{found.name}'); give another folder"
                )

    def require_run(self) -> None:
        """Raise InputError unless raysweep has run here."""
        if not self.root.is_dir():
            raise InputError(f"run folder '{self.root}' does not exist")
        if not self.is_run or not self.plan.is_file():
            raise InputError(f"'{self.root}' is no run folder (it has no events.jsonl and plan.json)")

    def clear(self) -> None:
        """Remove everything committed and made, so that a run starts afresh."""
        for path in (self.root / "chunks", self.root / "activations", self.results, self.report):
            if path.exists():
                shutil.rmtree(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder, so that no other run writes to it. Raises InputError, naming it, where one does."""
        try:
            with hold(self.lock):
                yield
        except HeldError as error:
            raise InputError(
                f"run folder '{self.root}' is in use by another raysweep ({error}); wait for it to end, stop it, or give another storage"
            ) from None

    def write_plan(self, config_yaml: str, graph: Graph, about: dict[str, Any]) -> None:
        """Keep what this run is asked to do; `about` is what reports say of checkpoints, data and versions."""
        publish_bytes(self.config, config_yaml.encode())
        publish_json(self.plan, {"about": about, "tasks": [task.to_json() for task in graph.tasks]})

    def read_plan(self) -> tuple[Graph, dict[str, Any]]:
        """The graph of the latest run, of stopped sweeps what they needed, and its `about`."""
        data = json.loads(self.plan.read_text(encoding="utf-8"))
        graph = Graph(tuple(Task.from_json(task) for task in data["tasks"]))
        return shortened(graph, self.committed()) if any(graph.of_kind("stop")) else graph, data["about"]
