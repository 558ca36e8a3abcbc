"""The driver: takes a config to committed results, through any executor.

It plans, submits the calls that are not done, commits each outcome as it comes, and makes the tables that have become
possible. A failed call fails its own tasks; the rest goes on. Killed at any moment, a later run finds what is committed.
"""

from __future__ import annotations

import os
import platform
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raysweep.config import Config
from raysweep.engine import events
from raysweep.engine.calls import Call, Commit, Outcome, is_ready, model_calls, result_call
from raysweep.engine.disk import bytes_to_write, check_room, check_writable
from raysweep.engine.events import EventLog, Listener
from raysweep.engine.executor import Executor, LocalExecutor
from raysweep.engine.folder import RunFolder
from raysweep.engine.graph import Graph
from raysweep.engine.inspection import Facts, inspect
from raysweep.engine.plan import plan
from raysweep.engine.work import Worker
from raysweep.store.artifacts import sweep_temporaries


@dataclass
class Done:
    """How a run ended: the graph, and per failed task the error that ended it."""

    folder: RunFolder
    graph: Graph
    failed: dict[str, str] = field(default_factory=dict)
    n_calls: int = 0
    seconds: float = 0.0


def prepare(config: Config) -> tuple[Facts, Graph, RunFolder]:
    """Inspect and plan: everything that can be refused is refused here (InputError), and nothing is written."""
    folder = RunFolder(Path(config.storage).expanduser())
    folder.check_usable()
    check_writable(folder.root)
    facts = inspect(config)
    graph = plan(config, facts)
    check_room(folder.root, bytes_to_write(facts, graph, folder.committed() if folder.is_run else {}))
    return facts, graph, folder


def drive(
    config: Config,
    *,
    fresh: bool = False,
    listener: Listener | None = None,
    make_executor: Callable[[RunFolder], Executor] | None = None,
) -> Done:
    """Run the config to its end, resuming what is committed; `fresh` forgets it first.

    Raises InputError before anything ran; a KeyboardInterrupt is logged and goes on, with what is committed kept.
    """
    started = time.monotonic()
    facts, graph, folder = prepare(config)
    folder.make()
    if fresh and folder.is_run:
        folder.clear()
    log = EventLog(folder.events, listener)
    try:
        sweep_temporaries(folder.root)
        folder.forget_broken()
        folder.write_plan(config.to_yaml(), graph, describe_run(config, facts))
        _tell_untold(folder, log)
        done = dict.fromkeys(folder.committed())
        log.emit(
            events.RUN_STARTED,
            name=config.name,
            pid=os.getpid(),
            host=socket.gethostname(),
            tasks=len(graph.tasks),
            done=graph.counts(done)[0],
            calls=sum(1 for _ in model_calls(config, facts, graph, done)),
        )
        executor = make_executor(folder) if make_executor else LocalExecutor(Worker(folder.root))
        run = _Run(config, graph, folder, log, done)
        try:
            run.all(executor, model_calls(config, facts, graph, done))
        except KeyboardInterrupt:
            log.emit(events.RUN_INTERRUPTED)
            raise
        finally:
            executor.close()
        seconds = round(time.monotonic() - started, 3)
        log.emit(
            events.RUN_FINISHED,
            done=graph.counts(done)[0],
            tasks=len(graph.tasks),
            failed=sorted(run.failed),
            seconds=seconds,
        )
        return Done(folder, graph, run.failed, run.n_calls, seconds)
    finally:
        log.close()


def _tell_untold(folder: RunFolder, log: EventLog) -> None:
    """Log the commits that a kill kept from being logged, so that the log has each of them once."""
    told = {event["commit"] for event in events.read_events(folder.events) if event["event"] == events.CHUNK_COMMITTED}
    for manifest in folder.chunks.manifests():
        if manifest.name not in told:
            log.emit(events.CHUNK_COMMITTED, commit=manifest.name, keys=list(manifest.parts), **manifest.extra["log"])


class _Run:
    """One pass of the driver over what is not done."""

    def __init__(self, config: Config, graph: Graph, folder: RunFolder, log: EventLog, done: dict[str, None]) -> None:
        self.config, self.graph, self.folder, self.log, self.done = config, graph, folder, log, done
        self.failed: dict[str, str] = {}
        self.n_calls = 0
        self._tasks = {task.name: task for task in graph.tasks}
        self._results = graph.made_from_others()

    def all(self, executor: Executor, calls: Iterable[Call]) -> None:
        """Submit and collect until nothing is left."""
        waiting = deque(calls)
        waiting.extendleft(self._ready())
        running = 0
        while waiting or running:
            while waiting and running < executor.capacity:
                call = waiting.popleft()
                self.log.emit(events.CALL_STARTED, call=call.name)
                executor.submit(call)
                running += 1
            outcome = executor.collect()
            running -= 1
            self.n_calls += 1
            self._take(outcome)
            waiting.extendleft(self._ready())
        for task in self._results:
            cause = next((name for name in (task.name, *task.needs) if name in self.failed), None)
            if cause is not None:
                self.failed.setdefault(task.name, f"not made, for '{cause}' failed")

    def _take(self, outcome: Outcome) -> None:
        call = outcome.call
        if outcome.error is not None:
            self.failed |= dict.fromkeys(call.tasks, outcome.error)
            self.log.emit(
                events.CALL_FAILED, call=call.name, tasks=call.tasks, error=outcome.error, traceback=outcome.traceback
            )
            return
        for commit in outcome.commits:
            if not all(key in self.done for key in commit.keys):  # a kill may have kept some of the call's commits
                self._commit(call, commit, outcome.measured)
        for name in call.tasks:
            if all(key in self.done for key in self._tasks[name].keys):
                self.log.emit(events.TASK_DONE, task=name)

    def _commit(self, call: Call, commit: Commit, measured: Mapping[str, float]) -> None:
        log = {"call": call.name, "tasks": list(call.tasks), "measured": dict(measured)}
        self.folder.chunks.commit(
            commit.name,
            commit.table,
            parts=dict.fromkeys(commit.keys),
            files=commit.files,
            extra={**commit.extra, "log": log},
        )
        self.done |= dict.fromkeys(commit.keys)
        self.log.emit(events.CHUNK_COMMITTED, commit=commit.name, keys=commit.keys, **log)

    def _ready(self) -> list[Call]:
        """Calls whose tables can be made now; each is given once."""
        ready = [task for task in self._results if is_ready(task, self._tasks, self.done)]
        self._results = [task for task in self._results if task not in ready]
        return [result_call(self.config, self.graph, task) for task in ready]


def describe_run(config: Config, facts: Facts) -> dict[str, Any]:
    """What reports say of the run's origins: checkpoints, data, versions. Plain values."""
    checkpoints = []
    for name, model in facts.models.items():
        for role, found in [("base", model.base), *((f"tuned on {d}", c) for d, c in model.tuned.items())]:
            checkpoints.append(
                {
                    "model": name,
                    "role": role + (" (PEFT adapter)" if found.adapter else ""),
                    "path": found.source,
                    "fingerprint": found.fingerprint[:16],
                    "layers": str(model.base.n_layers),
                    "parameters": f"{found.n_parameters:,}",
                    "dtype": model.dtype,
                }
            )
    datasets = []
    for (model_name, dataset_name), cell in facts.cells.items():
        asked = next(d for d in config.datasets if d.name == dataset_name)
        datasets.append(
            {
                "dataset": dataset_name,
                "model": model_name,
                "path": asked.path,
                "format": asked.format,
                "wording": next(m for m in config.models if m.name == model_name).wording,
                "examples": str(sum(map(len, cell.chunks))),
                "left_out": str(cell.n_unusable),
                "cut": str(cell.n_cut),
            }
        )
    return {
        "name": config.name,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "device": facts.device,
        "layers": {name: model.base.n_layers for name, model in facts.models.items()},
        "versions": {**facts.libraries, "python": platform.python_version()},
        "checkpoints": checkpoints,
        "datasets": datasets,
    }
