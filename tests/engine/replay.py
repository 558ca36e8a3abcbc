"""The real store led through the steps of a walk of the model (protocol.py): each process is a thread that waits for its turn."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pytest
from protocol import Step

from raysweep.engine import folder
from raysweep.engine.calls import Commit
from raysweep.engine.events import CHUNK_COMMITTED, EventLog, read_events
from raysweep.engine.folder import RunFolder
from raysweep.engine.run_log import log_unlogged, open_log
from raysweep.errors import InputError, RunError
from raysweep.store import chunks, object_lock

SECONDS = 60.0
KEY = "the-only-part"


class AbandonedError(BaseException):
    """A process that takes no further step: it crashed, or is paused for ever."""


@dataclass(frozen=True)
class Outcome:
    """What is left at the end: how each process ended, whose manifest and tables there are, how often the commit is logged."""

    ends: tuple[str, ...]
    manifest: int | None
    tables: frozenset[int]
    logged: int


class Replay:
    """Processes on one run folder; `step` lets one do its next step, and returns once it is at the one after."""

    def __init__(self, root: Any, processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self._root, self._condition = root, threading.Condition()
        self._waiting: dict[int, str] = {}  # the step that each process is at
        self._turn: tuple[int, str] | None = None
        self._abandoned: set[int] = set()
        self.ends: dict[int, str] = {}
        self._held: dict[int, Any] = {}
        self._local = threading.local()
        _patch(self, monkeypatch)
        self._threads = [threading.Thread(target=self._run, args=(i,), daemon=True) for i in range(processes)]
        for i, thread in enumerate(self._threads):
            thread.start()
            self._settle(i)

    def step(self, step: Step) -> None:
        """Let a process do the step that it is at."""
        i, name = step
        if name == "crash":
            self._abandon(i)
        elif name == "listen":
            with contextlib.suppress(object_lock.LostError):
                self._held[i]._beat()
        elif name != "beat":  # done with `listen`, which is not cut in two here
            with self._condition:
                at = self._waiting.pop(i)
                assert at == name.partition(",")[0], f"process {i} is at {at}, the model at {name}"
                self._turn = (i, name)
                self._condition.notify_all()
            self._settle(i)

    def outcome(self) -> Outcome:
        """What is left; processes that have not ended are paused for ever."""
        for i in range(len(self._threads)):
            self._abandon(i)
        run = RunFolder(self._root)
        manifests = {manifest.extra["log"]["by"]: manifest for manifest in run.chunks.manifests()}
        for manifest in manifests.values():
            assert run.chunks.read(manifest)["by"].to_pylist() == [manifest.extra["log"]["by"]]
        folder = self._root / "chunks"
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        tables = frozenset(int(name.split(".")[1], 16) for name in names if name.endswith(".parquet"))
        log = [event for event in read_events(run.events) if event["event"] == CHUNK_COMMITTED]
        ends = tuple(self.ends[i] for i in range(len(self._threads)))
        return Outcome(ends, next(iter(manifests), None), tables, len(log))

    def gate(self, name: str) -> str:
        """Wait for this thread's turn to do the step `name`; the model's words for it. Other threads pass."""
        i = getattr(self._local, "process", None)
        if i is None:
            return name
        with self._condition:
            if i not in self._abandoned:
                self._waiting[i] = name
                self._condition.notify_all()
                free = self._condition.wait_for(
                    lambda: i in self._abandoned or (self._turn and self._turn[0] == i), SECONDS
                )
                assert free, f"nobody let process {i} go on"
            if i in self._abandoned:
                raise AbandonedError
            assert self._turn is not None
            (_, said), self._turn = self._turn, None
            return said

    def _settle(self, i: int) -> None:
        with self._condition:
            assert self._condition.wait_for(lambda: i in self._waiting or i in self.ends, SECONDS), f"process {i} hangs"

    def _abandon(self, i: int) -> None:
        with self._condition:
            self._abandoned.add(i)
            self._condition.notify_all()
        self._threads[i].join(SECONDS)

    def _run(self, i: int) -> None:
        self._local.process = i
        try:
            end = self._drive(i)
        except AbandonedError:
            end = "abandoned"
        except InputError:
            end = "refused"
        except RunError:
            end = "lost"
        with self._condition:
            self.ends[i] = end
            self._condition.notify_all()

    def _drive(self, i: int) -> str:
        """What the driver does with a run folder, for one chunk."""
        run = RunFolder(self._root)
        run.chunks._token = f"{i:08x}"
        run.make()
        with run.locked():
            self._held[i] = run._held
            self.gate("open")
            with open_log(run, None) as log:
                self.gate("read")
                log.emit = _sending(self, log, "tell")  # type: ignore[method-assign]
                log_unlogged(run, log)
                log.emit = _sending(self, log, "log")  # type: ignore[method-assign]
                if KEY not in run.committed():
                    self._commit(run, log, i)
            self._local.released = True
        return "done"

    def _commit(self, run: RunFolder, log: EventLog, i: int) -> None:
        check, asked = run.check_held, ["check", "recheck"]

        def check_held(*, ask: bool = True) -> None:
            self.gate(asked.pop(0) if ask else "manifest")
            check(ask=ask)

        run.check_held = check_held  # type: ignore[method-assign]
        run.check_held()
        commit = Commit("chunk", (KEY,), pa.table({"part": [KEY], "by": [i]}))
        kept = run.commit(commit, {"by": i})
        log.emit(CHUNK_COMMITTED, commit=kept.name, keys=list(kept.parts), **kept.extra["log"])


def _sending(replay: Replay, log: EventLog, name: str) -> Callable[..., None]:
    """`emit` as a step of its own, and what it adds published at once."""
    emit = EventLog.emit.__get__(log)

    def send(event: str, **details: Any) -> None:
        replay.gate(name)
        emit(event, **details)
        if hasattr(log._lines, "_send"):
            log._lines._send()

    return send


def _patch(replay: Replay, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the gates between the real code's requests."""
    real_holder, real_create, real_below = object_lock.holder, object_lock.create, object_lock._remove_below
    real_let_go, real_hold = object_lock.Held.let_go, folder.hold
    looks: dict[int, int] = {}

    def holder(path: Any) -> Any:
        i = getattr(replay._local, "process", -1)
        looks[i] = looks.get(i, 0) + 1
        said = replay.gate("look" if looks[i] == 1 else "verify")
        found = real_holder(path)
        dead = said.endswith("taking the holder for dead")
        return replace(found, stale=True) if dead and found is not None else found

    def create(place: Any, data: bytes) -> bool:
        replay.gate("create")
        return real_create(place, data)

    def remove_below(path: Any, own: str) -> None:
        replay.gate("clean")
        real_below(path, own)

    def let_go(held: Any) -> None:
        held._end.set()
        if getattr(replay._local, "released", False):
            replay.gate("release")
        if replay._local.process not in replay._abandoned:
            real_let_go(held)

    @contextlib.contextmanager
    def hold(path: Any) -> Iterator[Any]:
        replay.gate("look")
        with real_hold(path) as held:
            yield held
            replay.gate("release")

    def publish_files(*arguments: Any, **options: Any) -> Any:
        replay.gate("table")
        return real_file(*arguments, **options)

    real_file = chunks.publish_files
    monkeypatch.setattr(object_lock, "BEAT_SECONDS", 3600.0)
    monkeypatch.setattr(object_lock, "holder", holder)
    monkeypatch.setattr(object_lock, "create", create)
    monkeypatch.setattr(object_lock, "_remove_below", remove_below)
    monkeypatch.setattr(object_lock.Held, "let_go", let_go)
    monkeypatch.setattr(folder, "hold", hold)
    monkeypatch.setattr(chunks, "publish_files", publish_files)
