"""The driver: takes a config to committed results, through any executor.

It plans, submits the calls that are not done, commits each outcome as it comes, and makes the tables that have become
possible. A failed call fails its own tasks; the rest goes on. Killed at any moment, a later run finds what is committed.
"""

from __future__ import annotations

import os
import socket
import time
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from raysweep import signals
from raysweep.config import Config
from raysweep.engine import events
from raysweep.engine.calls import Call, Commit, ModelCall, Outcome, SubstituteCall, TrainCall, made_by
from raysweep.engine.dispatch import is_final
from raysweep.engine.dispatcher import Dispatcher
from raysweep.engine.estimate import Reckoned, reckon
from raysweep.engine.events import EventLog, Listener
from raysweep.engine.executor import Backend, Executor, LimitsCalls, backend_for
from raysweep.engine.facts import Facts
from raysweep.engine.failures import Failures
from raysweep.engine.folder import RunFolder
from raysweep.engine.graph import Graph, beyond, shortened
from raysweep.engine.inputs import with_inputs
from raysweep.engine.interruption import interrupts_logged, lock_released
from raysweep.engine.judging_in_part import judged_in_part
from raysweep.engine.ledger import Ledger, done_by_kind
from raysweep.engine.measuring import reported
from raysweep.engine.origins import describe_run
from raysweep.engine.pending import model_calls
from raysweep.engine.preparation import prepare
from raysweep.engine.promised import as_sized
from raysweep.engine.result_calls import result_call
from raysweep.engine.run_log import log_unlogged, open_log
from raysweep.engine.several_workers import workers_needed
from raysweep.engine.slot_health import Quarantine
from raysweep.engine.steps import with_steps
from raysweep.engine.stopping import watches
from raysweep.engine.template_dates import with_template_dates
from raysweep.engine.trackers import trackers_for
from raysweep.engine.training_calls import judge_call
from raysweep.engine.waiting import check_wait, held
from raysweep.redaction import redacted
from raysweep.store.artifacts import sweep_temporaries


@dataclass
class Done:
    """How a run ended: the graph, and per failed task the error that ended it."""

    folder: RunFolder
    graph: Graph
    failed: dict[str, str] = field(default_factory=dict)
    n_calls: int = 0
    seconds: float = 0.0


def drive(
    config: Config,
    *,
    fresh: bool = False,
    wait: bool | float = False,
    listener: Listener | None = None,
    backend: Backend | None = None,
) -> Done:
    """Run the config to its end, resuming what is committed; `fresh` forgets it first.

    With `wait`, wait for another run in the folder to end: True for as long as it takes, else at most so many seconds.
    Raises InputError before anything ran (FolderInUseError if another run is in the folder), RunError if workers cannot be
    had, and KeyboardInterrupt, which is logged, for a signal. What is committed is kept.
    """
    check_wait(wait)
    started = time.monotonic()
    asked, config = config, with_steps(config)
    backend, tracked = backend or backend_for(config.execution), None

    def check() -> None:
        found = backend.check(config.storage, config.storage_options)
        if found and listener:
            listener({"event": events.CLUSTER_CHECKED, **found})

    def waiting(holder: str) -> None:
        if listener:
            listener({"event": events.FOLDER_AWAITED, "folder": str(folder.root), "holder": holder})

    measure = reported(backend.measure, listener)
    try:
        facts, graph, folder = prepare(config, backend.device, check, measure=measure, fresh=fresh)
        with lock_released(folder), held(folder, wait, waiting, config.folder_mode) as waited, ExitStack() as stack:
            if waited:  # what is there now was not when this was planned
                facts, graph, _ = prepare(config, backend.device, check, measure=measure, fresh=fresh)
            tracked = trackers_for(config.execution.report_to, config.name, folder, listener)
            listener = events.to_all(listener, backend.listener(config.name, folder.root), tracked)
            log = stack.enter_context(open_log(folder, listener))
            if not folder.is_locked:
                log.emit(events.RUN_UNLOCKED, folder=str(folder.root))
            if fresh:
                log.clear()
                folder.clear()
            sweep_temporaries(folder.root)
            folder.forget_broken()
            sized = as_sized(facts)
            done = folder.committed()
            calls = list(model_calls(config, sized, shortened(graph, done), done))
            reckoned = reckon(
                config, sized, calls, workers_needed(backend.workers(), calls, graph, done), measure=measure
            )
            left, about = reckoned.estimate, describe_run(config, facts)
            again = "" if fresh else folder.why_redone(graph, about, done)
            folder.write_plan(
                redacted(with_template_dates(asked, facts.template_dates).to_yaml()),
                graph,
                redacted({**about, "estimate": left.to_json() if left.calls else None}),
            )
            if again:
                log.emit(events.TASKS_REDONE, why=again)
            log_unlogged(folder, log)
            with interrupts_logged(log):
                run = _Run(config, facts, graph, folder, log, reckoned)
                run.all(backend)
            seconds = round(time.monotonic() - started, 3)
            log.emit(
                events.RUN_FINISHED,
                done=run.ledger.n_done,
                tasks=len(graph.tasks),
                failed=sorted(run.failures.tasks),
                seconds=seconds,
                rates=run.rates(reckoned),
            )
            return Done(folder, run.graph, run.failures.tasks, run.n_calls, seconds)
    finally:
        if tracked:
            tracked.close()
        backend.close()


class _Run:
    """One pass of the driver over what is not done."""

    def __init__(
        self, config: Config, facts: Facts, graph: Graph, folder: RunFolder, log: EventLog, reckoned: Reckoned
    ) -> None:
        self.config, self.facts, self.folder, self.log = config, facts, folder, log
        done = folder.committed()
        self.graph = shortened(graph, done)
        self.ledger = Ledger(self.graph, done)
        self._watches = watches(config, facts, self.graph, done)
        self._needs = {task.name: task.needs for task in self.graph.tasks}
        self._held: list[ModelCall] = list(model_calls(config, facts, graph, done.keys() | beyond(graph, self.graph)))
        self._awaited = {name for call in self._held for task in call.tasks for name in self._needs[task]}
        self._may_release = True
        self._spread: deque[TrainCall] = deque()  # trainings of several processes, which need the workers' devices
        self._dispatcher = Dispatcher(
            (),
            reckoned.cost,
            resident=config.execution.resident,
            may_cut=lambda call: not self._is_watched(call),
            call_deadline=config.execution.call_deadline,
            is_timed=lambda call: reckoned.rates.get(call.model) is not None,
            lost_before=events.lost_calls(events.read_events(folder.events)),
            started=lambda call: log.emit(events.CALL_STARTED, call=call.name),
            was_cut=lambda call, pieces: log.emit(events.CALL_CUT, call=call.name, calls=[p.name for p in pieces]),
        )
        self.queue = self._dispatcher.queue
        self.failures = Failures()
        self.n_calls = self._workers = 0
        # Keys no task lacks that are called for all the same: of a sweep that stopped, of judging in part.
        self._beside: set[str] = set()
        self._judges_in_part = False
        self._executor: Executor | None = None
        waiting = Counter(call.kind for call in self._held)
        log.emit(
            events.RUN_STARTED,
            name=config.name,
            pid=os.getpid(),
            host=socket.gethostname(),
            tasks=len(graph.tasks),
            done=self.ledger.n_done,
            calls=waiting + self.ledger.to_make(),
            kinds=done_by_kind(self.graph, self.ledger),
        )
        for watch in self._watches:
            if there := [key for key in watch.keys if key in done]:
                watch.take(folder.chunks.read_parts(there).to_pandas())
        self._release()
        self._stop_settled()
        self._queue_results()

    def rates(self, reckoned: Reckoned) -> dict[str, Any]:
        """By model, the rates at which calls went that have ended; for simulations. None where nothing was timed."""
        known = {model: rates for model, rates in reckoned.rates.items() if rates is not None}
        run, load = self._dispatcher.paces
        return {model: rates.slower(run, load).to_json() for model, rates in known.items()} if self.n_calls else {}

    def all(self, backend: Backend) -> None:
        """Submit and collect until nothing is left; a training of several processes has the devices to itself."""
        while self.queue or self._spread or self._queue_in_part():
            if self.queue:
                self._run_queue(backend)
            if self._spread:
                calls, self._spread = self._spread, deque()
                for call in calls:
                    self.log.emit(events.CALL_STARTED, call=call.name)
                for outcome in backend.train(self.folder.root, calls, self._tell):
                    self._take(outcome)
        self.failures.spread(self.graph, self.ledger)

    def _run_queue(self, backend: Backend) -> None:
        n_calls = len(self.queue) + len(self._held) + sum(self.ledger.to_make().values())
        executor = backend.open(self.folder.root, n_calls, self._tell)
        self._executor, self._workers = executor, _models(executor)
        try:
            self.log.emit(events.WORKERS_READY, **executor.about)
            if isinstance(executor, LimitsCalls):
                executor.limit_calls(self._dispatcher.deadline)
            self._dispatcher.run(executor, self._take, self._quarantine)
        finally:
            executor.close()

    def _tell(self, call: str, told: Mapping[str, Any]) -> None:
        """Log how far a call has come that takes long."""
        self.log.emit(events.CALL_GOES_ON, call=call, **told)

    def _release(self) -> None:
        """Queue the calls of models whose tasks have all that they need."""
        if not self._may_release:
            return
        self._may_release = False
        held, self._held = self._held, []
        for call in held:
            needs = {name for task in call.tasks for name in self._needs[task]}
            if not all(map(self.ledger.is_done, needs)):
                self._held.append(call)
            else:
                self._push(call)

    def _push(self, call: Call) -> None:
        if isinstance(call, TrainCall) and call.processes > 1:
            self._spread.append(call)
        else:
            self.queue.push(call)

    def _take(self, outcome: Outcome) -> None:
        signals.check()
        call = outcome.call
        if outcome.error is not None:
            self._take_failure(outcome)
            return
        self.n_calls += 1
        self.failures.forget(call.name)
        for commit in outcome.commits:
            # a kill may have kept some of the call's commits
            if any(self.ledger.lacks(key) or key in self._beside for key in commit.keys):
                self._commit(call, commit, outcome.measured)
        self.log.emit(events.CALL_DONE, call=call.name, measured=dict(outcome.measured))
        if outcome.measured.get("out_of_memory"):
            halved = {key: outcome.measured[key] for key in ("out_of_memory", "batch_tokens")}
            self.log.emit(events.MEMORY_SHORT, call=call.name, **halved)
        self._release()
        self._stop_settled()
        self._queue_results()

    def _take_failure(self, outcome: Outcome) -> None:
        call = outcome.call
        if self._is_needless(call):
            self.log.emit(events.CALLS_DROPPED, calls={call.kind: 1}, call=call.name)
            return
        if outcome.failure == "unstarted":
            self.log.emit(events.CALL_RETURNED, call=call.name)
            self._count_workers()
            self.queue.push_back(call)
            return
        if given_up := outcome.measured.get("given_up"):
            self.log.emit(events.WORKER_GIVEN_UP, call=call.name, error=outcome.error, **given_up)
        self.n_calls += 1
        attempts, limit = self.failures.charge(call.name), self.config.execution.attempts
        final, tasks = is_final(outcome, attempts, limit), self._lacking(call)
        if final:
            self.failures.end(call.name, tasks, outcome.error or "")
        elif self._is_watched(call):
            self.queue.push_back(call)  # a sweep stops by its chunks in order
        else:
            self._push(call)
        self.log.emit(
            events.CALL_FAILED if final else events.CALL_RETRIED,
            call=call.name,
            tasks=tasks,
            attempt=attempts,
            attempts=limit,
            failure=outcome.failure,
            error=outcome.error,
            traceback=outcome.traceback,
        )

    def _quarantine(self, found: Quarantine) -> None:
        """Take back the failures that a slot is to blame for: these calls run again, elsewhere."""
        again, tasks = self.failures.take_back(found.charged)
        self.log.emit(events.SLOT_QUARANTINED, **found.to_json(), calls=[call.name for call in again], tasks=tasks)
        self._count_workers()
        for call in again:
            self._push(call)

    def _lacking(self, call: Call) -> list[str]:
        """The tasks that lack what a call was to make: of a piece its own, and of what twins share the twins' as well."""
        return list(dict.fromkeys(self.ledger.waiting(made_by(call)))) or list(call.tasks)

    def _count_workers(self) -> None:
        """Log how many workers are left where one is done without."""
        if self._executor and (workers := _models(self._executor)) != self._workers:
            self._workers = workers
            self.log.emit(events.WORKERS_CHANGED, workers=workers)

    def _commit(self, call: Call, commit: Commit, measured: Mapping[str, Any]) -> None:
        self.folder.check_held()
        log = {"call": call.name, "tasks": list(call.tasks), "measured": dict(measured)}
        kept = self.folder.commit(with_inputs(commit, call, self.facts), log)
        if kept.extra["log"] != log:  # of a driver that lost the folder to this one and committed all the same
            log = kept.extra["log"]
            commit = replace(commit, table=self.folder.chunks.read(kept) if kept.table else None)
        written = {"results": kept.table.bytes if kept.table else 0, "activations": sum(f.bytes for f in kept.files)}
        self.log.emit(events.CHUNK_COMMITTED, commit=commit.name, keys=commit.keys, **log, bytes=written)
        if isinstance(call, TrainCall) and isinstance(self.folder.root, Path):
            self.folder.forget_training(call.key)
        for task in self.ledger.commit(commit.keys):
            self.log.emit(events.TASK_DONE, task=task.name)
            self._may_release |= task.name in self._awaited
        self._beside.difference_update(commit.keys)
        for watch in self._watches:
            if commit.table is not None and not watch.keys.isdisjoint(commit.keys):
                watch.take(commit.table.select(["part", "loss"]).to_pandas())

    def _is_watched(self, call: Call) -> bool:
        return any((call.model, call.dataset) == (watch.task.model, watch.task.dataset) for watch in self._watches)

    def _is_needless(self, call: Call) -> bool:
        """Whether a call is for chunks beyond where its sweep has stopped."""
        return isinstance(call, SubstituteCall) and not any(map(self.ledger.lacks, call.keys))

    def _stop_settled(self) -> None:
        """Commit where sweeps stop, as far as that can be told now, and drop what they do not need any more."""
        decided = [(watch, found) for watch in self._watches if (found := watch.decide())]
        for watch, found in decided:
            self._watches.remove(watch)
            self._commit(*watch.committable(found), {})
            for task in watch.swept:
                keys = task.parts[found.chunks :]
                self._beside.update(filter(self.ledger.lacks, keys))
                if self.ledger.drop(task, keys):
                    self.failures.tasks.pop(task.name, None)  # for a chunk that is not needed
                    self.log.emit(events.TASK_DONE, task=task.name)
        if decided:
            self.graph = shortened(self.graph, self.folder.committed())
            if dropped := self.queue.drop(self._is_needless):
                self.log.emit(events.CALLS_DROPPED, calls=dropped)

    def _queue_results(self) -> None:
        for task in self.ledger.take_makeable():
            self.queue.push(result_call(self.config, self.facts, self.graph, task))

    def _queue_in_part(self) -> bool:
        """Queue, once, the judging of answers whose cell has other arms that failed; whether there is any."""
        if self._judges_in_part:
            return False
        self._judges_in_part = True
        unjudged = [task for task in self.graph.of_kind("judge") if not self.ledger.is_done(task.name)]
        done = self.folder.committed() if unjudged else {}
        for task in filter(None, (judged_in_part(self.graph, task, done) for task in unjudged)):
            if any(key not in done for key in task.keys):
                self._beside.update(task.keys)
                self.queue.push(judge_call(self.config, self.graph, task))
        return bool(self.queue)


def _models(executor: Executor) -> int:
    """How many of the workers run models."""
    return sum(slot.models for slot in executor.slots)
