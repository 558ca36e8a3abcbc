"""Runs with a worker that fails everything at once: a dead CUDA context, a broken node."""

from __future__ import annotations

from collections import Counter, deque

import pytest
from other_executors import On, commits

from raysweep import api
from raysweep.engine.calls import ModelCall
from raysweep.engine.dispatch import Slot
from raysweep.engine.driver import drive
from raysweep.engine.executor import LocalExecutor
from raysweep.engine.work import Worker
from raysweep.errors import InputError, RunError

DEAD = RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be …")


class Broken(Worker):
    """Fails every call with a model, or those of some names."""

    def __init__(self, folder, error, names="", after=0):
        super().__init__(folder)
        self.error, self.names, self.after = error, names, after
        self.unloaded = False

    def unload(self):
        self.unloaded = True
        super().unload()

    def _within_memory(self, call):
        if isinstance(call, ModelCall) and call.name.startswith(self.names):
            self.after -= 1
            if self.after < 0:
                raise self.error
        return super()._within_memory(call)


class Several:
    """Workers in this process; a call that fails comes back before any that succeeds, as on real workers."""

    def __init__(self, *workers):
        self.about = {"executor": "test", "workers": len(workers)}
        self.slots = [Slot(depth=2)] * len(workers)
        self.workers, self.calls = workers, [deque() for _ in workers]
        self.ran = Counter()
        self.retired = []

    def submit(self, index, call):
        self.calls[index].append(call)

    def collect(self):
        index = next(index for index, calls in enumerate(self.calls) if calls)
        self.ran[index] += 1
        return [self.workers[index].attempt(self.calls[index].popleft())]

    def close(self):
        pass

    def retire(self, index):
        self.retired.append(index)
        self.slots[index] = Slot(models=False, results=False)
        return {"worker": f"worker {index}", "host": "node7", "gpu": "3"}


class On2(On):
    def workers(self):
        return 2


@pytest.mark.parametrize(("error", "attempts"), [(DEAD, 2), (InputError("there is no folder '/models/base'"), 1)])
def test_a_worker_that_fails_everything_is_quarantined_and_the_run_completes(
    make_config, tmp_path, finished, tables_of, same_tables, events_of, error, attempts
):
    config = make_config(tmp_path, f"execution.attempts={attempts}")
    backend = On2(lambda folder: Several(Broken(folder, error), Worker(folder)))
    done = drive(config, backend=backend)
    assert done.failed == {}
    same_tables(tables_of(done), tables_of(finished))
    assert max(commits(events_of(done)).values()) == 1
    (executor,) = backend.made
    assert executor.retired == [0]
    assert executor.ran[0] <= 5, "three, and what was in flight"
    (event,) = events_of(done, "slot_quarantined")
    assert (event["host"], event["gpu"], event["failures"]) == ("node7", "3", 3)
    assert str(error).partition("\n")[0] in event["error"] or "dead CUDA context" in event["error"]
    assert [event["workers"] for event in events_of(done, "workers_changed")] == [1]
    assert event["calls"] == [], "none had failed for good: it takes another worker to confirm a refusal"
    assert api.status(tmp_path).failures == {}


def test_calls_that_fail_on_every_worker_quarantine_nobody(make_config, tmp_path, events_of):
    bad = InputError("bad data")
    backend = On2(lambda folder: Several(*(Broken(folder, bad, "substitute m/first") for _ in range(2))))
    done = drive(make_config(tmp_path, "execution.fuse=false"), backend=backend)
    assert events_of(done, "slot_quarantined") == []
    assert {name for name in done.failed if name.startswith("substitute")} == {
        task.name for task in done.graph.tasks if task.name.startswith("substitute m/first")
    }
    assert set(backend.made[0].ran) == {0, 1}
    assert not any("second" in name for name in done.failed)


def test_with_every_context_dead_the_run_ends_and_is_resumed(make_config, tmp_path, finished, tables_of, same_tables):
    backend = On2(lambda folder: Several(Broken(folder, DEAD, after=2), Broken(folder, DEAD)))
    with pytest.raises(
        RunError, match=r"(?s)each worker that is left was lost in 3 different calls.*run again"
    ) as caught:
        drive(make_config(tmp_path, "execution.chunk=2"), backend=backend)
    assert "\n" not in str(caught.value)
    kept = api.status(tmp_path)
    assert kept.failures == {} or kept.unfinished
    done = drive(make_config(tmp_path, "execution.chunk=2"))
    assert done.failed == {}
    same_tables(tables_of(done), tables_of(finished))


def test_in_this_process_a_dead_context_ends_the_run_at_once(
    make_config, tmp_path, finished, tables_of, same_tables, events_of
):
    config = make_config(tmp_path)
    backend = On(lambda folder: LocalExecutor(Broken(folder, DEAD, after=2)))
    with pytest.raises(RunError, match="the CUDA context of this process is dead since '") as caught:
        drive(config, backend=backend)
    assert "illegal memory access" in str(caught.value)
    assert "Run again, which continues from it" in str(caught.value)
    worker = backend.made[0]._worker
    assert worker.after == -1, "no other call was tried"
    assert not worker.unloaded, "which would raise on a dead context, in place of the reason"
    done = drive(config)
    assert done.failed == {}
    (failure,) = events_of(done, "call_retried", "call_failed")
    assert failure["failure"] == "lost"
    assert "illegal memory access" in failure["error"]
    same_tables(tables_of(done), tables_of(finished))
    assert max(commits(events_of(done)).values()) == 1


def test_a_worker_with_a_dead_context_runs_nothing_more(make_config, tmp_path):
    backend = On(lambda folder: LocalExecutor(Broken(folder, DEAD, after=1)))
    with pytest.raises(RunError):
        drive(make_config(tmp_path), backend=backend)
    worker = backend.made[0]._worker
    worker._within_memory = None
    outcome = worker.attempt(next(iter(backend.made[0]._calls), None) or backend.made[0]._lost.call)
    assert outcome.failure == "lost"
    assert outcome.error.startswith(
        "not run, because its process has a dead CUDA context: RuntimeError: CUDA error: an ill"
    )
