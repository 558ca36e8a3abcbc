"""The driver: what is whole is not done again, a failure stays alone, and tables do not tell how they came about.

The executors here are the real worker behind other orders, other failures and other ends.
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from collections import Counter

import pandas as pd
import pytest

from raysweep import api
from raysweep.engine import events
from raysweep.engine.calls import Outcome
from raysweep.engine.dispatch import Slot
from raysweep.engine.driver import drive
from raysweep.engine.events import EventLog
from raysweep.engine.executor import LocalBackend, LocalExecutor
from raysweep.engine.folder import RunFolder
from raysweep.engine.inspection import resolve_device
from raysweep.engine.preparation import prepare
from raysweep.engine.training_work import untold
from raysweep.engine.work import Worker
from raysweep.errors import InputError, StoreError


class Shuffled:
    """Takes several calls at once and ends them in a random order."""

    def __init__(self, folder, seed):
        self.about = {"executor": "shuffled", "workers": 3}
        self.slots = [Slot(depth=2)] * 3
        self.worker, self.calls, self.random = Worker(folder), [], random.Random(seed)
        self.most = 0

    def submit(self, index, call):
        self.calls.append(call)
        self.most = max(self.most, len(self.calls))

    def collect(self):
        return [self.worker.attempt(self.calls.pop(self.random.randrange(len(self.calls))))]

    def close(self):
        self.worker.unload()


class Failing(LocalExecutor):
    """Fails the calls whose names begin so, `times` times each."""

    def __init__(self, folder, *names, times=99, failure="raised"):
        super().__init__(Worker(folder))
        self.names, self.times, self.failure, self.seen = names, times, failure, Counter()

    def collect(self):
        call = self._calls[0]
        if call.name.startswith(self.names) and self.seen[call.name] < self.times:
            self.seen[call.name] += 1
            words = "RuntimeError: out of memory\nand more"
            return [Outcome(self._calls.popleft(), error=words, traceback="Traceback …", failure=self.failure)]
        return super().collect()


class Interrupted(LocalExecutor):
    """Ends like a user's Ctrl-C after some calls."""

    def __init__(self, folder, after):
        super().__init__(Worker(folder))
        self.after, self.closed = after, False

    def collect(self):
        self.after -= 1
        if self.after < 0:
            raise KeyboardInterrupt
        return super().collect()

    def close(self):
        super().close()
        self.closed = True


class On(LocalBackend):
    """A backend with the executor that `make` makes of the folder; `made` keeps them."""

    def __init__(self, make):
        self.make, self.made = make, []

    def open(self, folder, n_calls, tell=untold):
        self.made.append(self.make(folder))
        return self.made[-1]


class Killed(BaseException):
    """Stands for a kill: nothing in the package catches it."""


def commits(events_):
    return Counter(key for event in events_ if event["event"] == events.CHUNK_COMMITTED for key in event["keys"])


def test_a_run_does_every_call_once(finished, events_of):
    log = events_of(finished)
    assert [log[0]["event"], log[-1]["event"]] == ["run_started", "run_finished"]
    assert {key: log[0][key] for key in ("name", "tasks", "done", "calls")} == {
        "name": "small",
        "tasks": 10,
        "done": 0,
        "calls": {"capture": 5, "substitute": 3, "similarity": 2, "correlate": 1},
    }
    assert {key: log[-1][key] for key in ("tasks", "done", "failed")} == {"tasks": 10, "done": 10, "failed": []}
    assert log[-1]["seconds"] == pytest.approx(finished.seconds)
    assert finished.n_calls == 8 + 3, "and three that make tables"
    keys = {key for task in finished.graph.tasks for key in task.keys}
    assert commits(log) == dict.fromkeys(keys, 1)
    assert sorted(event["task"] for event in log if event["event"] == "task_done") == sorted(
        task.name for task in finished.graph.tasks
    )
    by_call = {event["call"]: event for event in log if event["event"] == "chunk_committed"}
    fused = by_call["substitute m/first 0-5 chunk 2"]
    assert fused["tasks"] == [task.name for task in finished.graph.of_kind("substitute")]
    assert fused["measured"]["layer_applications"] == 30


def test_run_again_there_is_nothing_to_do(make_config, finished, events_of, tables_of, same_tables):
    before = len(events_of(finished))
    again = drive(make_config(finished.folder.root))
    assert (again.n_calls, again.failed) == (0, {})
    assert [event["event"] for event in events_of(again)[before:]] == ["run_started", "run_finished"]
    assert {key: events_of(again)[before][key] for key in ("tasks", "done", "calls")} == {
        "tasks": 10,
        "done": 10,
        "calls": {},
    }
    same_tables(tables_of(again), tables_of(finished), exactly=True)


@pytest.mark.parametrize("override", ["execution.batch_tokens=64", "execution.fuse=false", "name=other"])
def test_what_changes_no_result_asks_for_no_call(make_config, finished, override):
    assert drive(make_config(finished.folder.root, override)).n_calls == 0


def test_only_what_a_changed_config_adds_is_computed(make_config, tmp_path, events_of, tables_of, same_tables):
    studies = "studies={substitution: {widths: [2]}}"
    first = drive(make_config(tmp_path, studies))
    rows = tables_of(first)["substitution"]
    assert set(rows["width"]) == {0, 2, 6}

    before = len(events_of(first))
    other = drive(make_config(tmp_path, studies, "studies.substitution.widths=[3]"))
    assert {w for e in events_of(other)[before:] if e["event"] == "chunk_committed" for w in e["tasks"]} == {
        f"substitute m/first {layers}" for layers in ("0-2", "1-3", "2-4", "3-5")
    }
    assert set(tables_of(other)["substitution"]["width"]) == {0, 3, 6}, "the earlier windows are not shown"

    both = drive(make_config(tmp_path, studies, "studies.substitution.widths=[2, 3]"))
    assert both.n_calls == 0, "but kept"
    assert set(tables_of(both)["substitution"]["width"]) == {0, 2, 3, 6}
    back = drive(make_config(tmp_path, studies))
    assert back.n_calls == 0
    same_tables({"substitution": rows}, tables_of(back), exactly=True)


def test_more_records_add_chunks(make_config, tmp_path, tables_of, same_tables, finished):
    fewer = drive(make_config(tmp_path, "datasets.0.limit=4", "datasets.1.limit=4"))
    assert set(tables_of(fewer)["substitution"]["example_id"]) == set(range(4))
    more = drive(make_config(tmp_path))
    assert more.n_calls == 2 + 1 + 2 + 3, "two chunks of one and one of the other data set captured, two swept, tables"
    same_tables(tables_of(more), tables_of(finished), exactly=True)


def test_fresh_forgets(make_config, tmp_path, events_of):
    config = make_config(tmp_path, "studies={substitution: {widths: [6]}}")
    drive(config)
    assert drive(config).n_calls == 0
    again = drive(config, fresh=True)
    assert again.n_calls == 3
    assert [event["event"] for event in events_of(again)].count("run_started") == 1


def test_what_is_damaged_does_not_keep_a_run_from_starting_afresh(make_config, tmp_path):
    config = make_config(tmp_path, "studies={substitution: {widths: [6]}}")
    drive(config)
    next((tmp_path / "chunks").glob("*.parquet")).write_bytes(b"half")
    with pytest.raises(StoreError, match=r"expected \d+ bytes, found 4; delete .* to have the chunk recomputed"):
        drive(config)
    assert drive(config, fresh=True).n_calls == 3


def test_a_run_that_is_killed_as_it_forgets_goes_on(make_config, tmp_path, monkeypatch):
    config = make_config(tmp_path, "studies={substitution: {widths: [6]}}")
    drive(config)

    def killed(folder):
        next(folder.glob("*.parquet")).unlink()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("raysweep.engine.folder.remove_below", killed)
        with pytest.raises(Killed):
            drive(config, fresh=True)
    again = drive(config)
    assert (again.n_calls, again.failed) == (3, {})


def test_a_fresh_run_has_the_room_that_it_takes(make_config, tmp_path, monkeypatch):
    config, asked = make_config(tmp_path), []
    drive(config)
    monkeypatch.setattr("raysweep.engine.preparation.check_room", lambda root, needed: asked.append(needed))
    for fresh in (False, True):
        prepare(config, resolve_device, fresh=fresh)
    done, afresh = asked
    assert done == 0
    states = sum(path.stat().st_size for path in tmp_path.glob("activations/**/*.arrow"))
    assert afresh < 2**20 - states / 2


def test_what_a_killed_writer_left_is_swept(make_config, tmp_path):
    config = make_config(tmp_path, "studies={substitution: {widths: [6]}}")
    drive(config)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = tmp_path / "chunks" / f".tmp-{socket.gethostname()}-{ended.pid}-0123456789abcdef.parquet"
    left.write_bytes(b"half")
    drive(config)
    assert not left.exists()


# --- the same tables, however they came about ---------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_completion_does_not_matter(make_config, tmp_path, finished, tables_of, same_tables, seed):
    backend = On(lambda folder: Shuffled(folder, seed))
    done = drive(make_config(tmp_path), backend=backend)
    (executor,) = backend.made
    assert 3 < executor.most <= 6, "two for some of three workers, while there is enough for all"
    assert not executor.calls
    same_tables(tables_of(done), tables_of(finished), exactly=True)


def test_fused_or_apart_the_tables_are_the_same(make_config, tmp_path, finished, events_of, tables_of, same_tables):
    apart = drive(make_config(tmp_path, "execution.fuse=false"))
    assert apart.n_calls == 5 + 7 * 3 + 3
    same_tables(tables_of(apart), tables_of(finished))
    assert commits(events_of(apart)) == commits(events_of(finished))


@pytest.mark.parametrize("budget", [1, 256, 65_536])
def test_the_batch_budget_does_not_matter(make_config, tmp_path, finished, tables_of, same_tables, budget):
    done = drive(make_config(tmp_path, f"execution.batch_tokens={budget}"))
    same_tables(tables_of(done), tables_of(finished))


def test_twins_are_computed_once_and_both_shown(make_config, tmp_path, events_of, tables_of):
    config = make_config(tmp_path, "studies={substitution: {widths: [3]}}", "execution.fuse=false")
    twins = [{**config.models[0].model_dump(), "name": name} for name in ("m", "n")]
    done = drive(config.model_copy(update={"models": [type(config.models[0])(**twin) for twin in twins]}))
    assert max(commits(events_of(done)).values()) == 1
    rows = tables_of(done)["substitution"]
    one, other = (rows[rows["model"] == name].drop(columns="model").reset_index(drop=True) for name in ("m", "n"))
    assert len(one) == 6 * 10
    pd.testing.assert_frame_equal(one, other)
    assert list(rows["model"]) == ["m"] * 60 + ["n"] * 60


def test_models_of_one_checkpoint_in_two_dtypes_are_not_mixed_up(make_config, tmp_path, tables_of):
    studies = "studies={substitution: {widths: [6]}}"
    config = make_config(tmp_path / "both", studies)
    kinds = {"full": "float32", "half": "bfloat16"}
    models = [
        type(config.models[0])(**{**config.models[0].model_dump(), "name": n, "dtype": d}) for n, d in kinds.items()
    ]
    rows = tables_of(drive(config.model_copy(update={"models": models})))["substitution"]
    for name, dtype in kinds.items():
        alone = tables_of(drive(make_config(tmp_path / name, studies, f"models.0.dtype={dtype}")))["substitution"]
        assert list(rows[rows["model"] == name]["loss"]) == list(alone["loss"])
    full, half = (rows[rows["model"] == name]["loss"].to_numpy() for name in kinds)
    assert 1e-4 < abs(full - half).max() < 0.5


# --- failures -----------------------------------------------------------------------------------------------------


def test_a_failed_call_fails_its_own_tasks_only(make_config, tmp_path, finished, events_of, tables_of, same_tables):
    config = make_config(tmp_path, "execution.fuse=false")
    done = drive(config, backend=On(lambda folder: Failing(folder, "substitute m/first 2-3 chunk 1")))
    assert done.failed == {
        "substitute m/first 2-3": "RuntimeError: out of memory\nand more",
        "correlate m/first": "not made, for 'substitute m/first 2-3' failed",
    }
    (failure,) = events_of(done, "call_failed")
    assert failure["call"] == "substitute m/first 2-3 chunk 1"
    assert failure["tasks"] == ["substitute m/first 2-3"]
    assert failure["traceback"] == "Traceback …"
    assert events_of(done)[-1]["failed"] == sorted(done.failed)
    tables, whole = tables_of(done), tables_of(finished)
    assert "correlation" not in tables, "it needs every window"
    rows, all_rows = tables["substitution"], whole["substitution"]
    lost = (all_rows["layers"] == "2-3") & all_rows["example_id"].between(4, 7)
    assert lost.sum() == 4
    same_tables({"substitution": rows}, {"substitution": all_rows[~lost].reset_index(drop=True)})
    same_tables({"dynamics": tables["dynamics"]}, {"dynamics": whole["dynamics"]}, exactly=True)

    standing = api.status(tmp_path)
    assert standing.failures == {"substitute m/first 2-3": "RuntimeError: out of memory\nand more"}
    assert standing.unfinished == ["substitute m/first 2-3", "correlate m/first"]
    assert standing.tasks == {"substitute": (6, 7), "similarity": (2, 2), "correlate": (0, 1)}

    mended = drive(config)
    assert (mended.n_calls, mended.failed) == (2, {}), "the failed part, and the correlation"
    same_tables(tables_of(mended), whole)
    assert api.status(tmp_path).failures == {}


def test_a_failed_piece_fails_the_tasks_of_its_windows_only(make_config, tmp_path, monkeypatch):
    class Pieces(Failing):
        slots = (Slot(),) * 3

        def collect(self):
            self.names = tuple(call.name for call in self._calls if "piece 1 of 2" in call.name)
            return super().collect()

    monkeypatch.setattr("raysweep.engine.dispatcher.choose_pieces", lambda *how: 0 if how[-1] else -1)
    config = make_config(tmp_path, "studies={substitution: {widths: [2]}}")
    backend = On(lambda folder: Pieces(folder, failure="refused"))
    done = drive(config, backend=backend)
    committed = done.folder.committed()
    unfinished = [task.name for task in done.graph.tasks if any(key not in committed for key in task.keys)]
    assert 0 < len(unfinished) < 7
    assert sorted(done.failed) == sorted(unfinished)
    standing = api.status(tmp_path)
    assert sorted(standing.failures) == sorted(standing.unfinished) == sorted(unfinished)


def test_what_twins_share_fails_for_both(make_config, tmp_path):
    config = make_config(tmp_path, "studies={substitution: {widths: [3]}}")
    twins = [{**config.models[0].model_dump(), "name": name} for name in ("m", "n")]
    config = config.model_copy(update={"models": [type(config.models[0])(**twin) for twin in twins]})
    done = drive(config, backend=On(lambda folder: Failing(folder, "substitute m/first", failure="refused")))
    assert set(done.failed) == {task.name for task in done.graph.tasks}


def test_a_call_that_fails_is_tried_again_and_then_set_aside(make_config, tmp_path, events_of):
    config = make_config(tmp_path, "execution.attempts=3")
    name = "capture m/first chunk 1"
    backend = On(lambda folder: Failing(folder, name, times=2))
    done = drive(config, backend=backend)
    assert done.failed == {}
    assert {event["failure"] for event in events_of(done, "call_retried")} == {"raised"}
    assert [(e["attempt"], e["attempts"], e["call"]) for e in events_of(done, "call_retried")] == [
        (1, 3, name),
        (2, 3, name),
    ]
    started = [event["call"] for event in events_of(done, "call_started")]
    assert started.count(name) == 3
    assert started[-1] != name or len(started) == 13, "the others went on meanwhile"

    done = drive(config, fresh=True, backend=On(lambda folder: Failing(folder, name, times=3)))
    assert set(done.failed) == {"similarity m/first", "correlate m/first"}
    assert [event["attempt"] for event in events_of(done, "call_retried", "call_failed")] == [1, 2, 3]


def test_refused_input_is_not_tried_again(make_config, tmp_path, events_of):
    backend = On(lambda folder: Failing(folder, "capture m/first chunk 1", failure="refused"))
    done = drive(make_config(tmp_path), backend=backend)
    assert set(done.failed) == {"similarity m/first", "correlate m/first"}
    assert [event["event"] for event in events_of(done, "call_retried", "call_failed")] == ["call_failed"]


def test_a_call_whose_worker_died_before_it_began_is_not_charged(make_config, tmp_path, events_of):
    config = make_config(tmp_path, "execution.attempts=1")
    done = drive(config, backend=On(lambda folder: Failing(folder, "", times=5, failure="unstarted")))
    assert done.failed == {}
    assert events_of(done, "call_retried", "call_failed") == []
    assert done.n_calls == 11
    returned = Counter(event["call"] for event in events_of(done, "call_returned"))
    assert set(returned.values()) == {5}
    assert returned.total() + 11 == len(events_of(done, "call_started"))


def test_the_log_has_how_many_workers_are_left(make_config, tmp_path, events_of):
    class Fewer(Failing):
        slots = (Slot(),) * 3

        def collect(self):
            self.slots = (Slot(), Slot(), Slot(models=False, results=False))
            return super().collect()

    done = drive(make_config(tmp_path), backend=On(lambda folder: Fewer(folder, "", times=1, failure="unstarted")))
    assert done.failed == {}
    assert [event["workers"] for event in events_of(done, "workers_changed")] == [2]


def test_the_log_has_the_tasks_by_kind_done_and_all(make_config, tmp_path, events_of):
    fewer = drive(make_config(tmp_path), backend=On(lambda folder: Failing(folder, "similarity m/first")))
    (first,) = events_of(fewer, "run_started")
    assert first["kinds"] == {"substitute": [0, 7], "similarity": [0, 2], "correlate": [0, 1]}
    drive(make_config(tmp_path))
    again = events_of(fewer, "run_started")[-1]
    assert again["kinds"] == {"substitute": [7, 7], "similarity": [1, 2], "correlate": [0, 1]}


def test_without_activations_there_is_no_similarity(make_config, tmp_path, tables_of):
    done = drive(make_config(tmp_path), backend=On(lambda folder: Failing(folder, "capture m/first chunk 2")))
    assert set(done.failed) == {"similarity m/first", "correlate m/first"}
    assert sorted(tables_of(done)) == ["critical", "dynamics", "health", "similarity", "substitution"]
    assert set(tables_of(done)["dynamics"]["dataset"]) == {"second"}


def test_when_everything_fails_the_run_still_ends(make_config, tmp_path, tables_of):
    done = drive(make_config(tmp_path), backend=On(lambda folder: Failing(folder, "")))
    assert set(done.failed) == {task.name for task in done.graph.tasks}
    assert tables_of(done) == {}
    assert api.open_run(tmp_path).report.is_file()


def test_a_call_that_raises_is_a_failure_with_its_traceback(make_config, tmp_path, events_of, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("the device is gone")

    monkeypatch.setattr("raysweep.engine.work.similarity_tables", broken)
    done = drive(make_config(tmp_path, "studies={similarity: {}}"))
    assert done.failed == dict.fromkeys(
        ["similarity m/first", "similarity m/second"], "RuntimeError: the device is gone"
    )
    for event in events_of(done, "call_failed"):
        assert event["traceback"].startswith("Traceback")
        assert "in broken" in event["traceback"]
    assert commits(events_of(done)).total() == 5, "what was captured is kept"


# --- two runs in one folder ------------------------------------------------------------------------------------------


def test_a_folder_that_another_run_holds_is_refused_and_left_alone(make_config, tmp_path):
    config = make_config(tmp_path)
    drive(config)
    before = (tmp_path / "events.jsonl").read_bytes()
    with RunFolder(tmp_path).locked(), pytest.raises(InputError) as caught:
        drive(config, fresh=True)
    assert str(caught.value) == (
        f"run folder '{tmp_path}' is in use by another raysweep (process {os.getpid()} on {socket.gethostname()}, "
        f"since {json.loads((tmp_path / '.lock').read_text())['since']}); wait for it to end, stop it, or give another storage"
    )
    assert (tmp_path / "events.jsonl").read_bytes() == before
    assert drive(config).n_calls == 0


# --- interruptions ------------------------------------------------------------------------------------------------


def test_an_interrupted_run_resumes(make_config, tmp_path, finished, events_of, tables_of, same_tables):
    backend = On(lambda folder: Interrupted(folder, after=4))
    with pytest.raises(KeyboardInterrupt):
        drive(make_config(tmp_path), backend=backend)
    assert backend.made[0].closed
    assert api.status(tmp_path).state == "interrupted"
    done = drive(make_config(tmp_path))
    assert done.n_calls == 11 - 4
    assert api.status(tmp_path).state == "finished"
    assert commits(events_of(done)) == commits(events_of(finished))
    same_tables(tables_of(done), tables_of(finished), exactly=True)


def test_a_kill_between_a_commit_and_its_event_loses_neither(
    make_config, tmp_path, finished, events_of, tables_of, same_tables, monkeypatch
):
    emit = EventLog.emit
    for nth in (1, 3):
        seen = []

        def dying(self, event, *, seen=seen, nth=nth, **details):
            seen.append(event)
            if event == events.CHUNK_COMMITTED and events.RUN_STARTED in seen and seen.count(event) == nth:
                raise Killed
            emit(self, event, **details)

        with monkeypatch.context() as patch:
            patch.setattr(EventLog, "emit", dying)
            with pytest.raises(Killed):
                drive(make_config(tmp_path))
    done = drive(make_config(tmp_path))
    assert commits(events_of(done)) == commits(events_of(finished))
    started = Counter(event["call"] for event in events_of(done, "call_started"))
    assert set(started.values()) == {1}, "no committed call was started again"
    same_tables(tables_of(done), tables_of(finished), exactly=True)


def test_a_kill_at_any_rename_loses_at_most_the_chunk_in_flight(
    make_config, tmp_path, finished, events_of, tables_of, same_tables, monkeypatch
):
    replace = os.replace
    countdown = []

    def dying(*args):
        countdown[0] -= 1
        if countdown[0] == 0:
            raise Killed
        replace(*args)

    chance = random.Random(5)
    monkeypatch.setattr("raysweep.store.artifacts.os.replace", dying)
    for _ in range(6):
        countdown[:] = [chance.randint(1, 15)]
        with pytest.raises(Killed):
            drive(make_config(tmp_path))
    countdown[:] = [0]
    done = drive(make_config(tmp_path))
    assert commits(events_of(done)) == commits(events_of(finished))
    assert [e["event"] for e in events_of(done)].count("run_started") >= 5
    same_tables(tables_of(done), tables_of(finished), exactly=True)
    assert not list(tmp_path.rglob(".tmp-*"))


@pytest.mark.parametrize("how", ["gone", "cut"])
def test_activations_that_are_gone_are_captured_again(
    make_config, tmp_path, finished, events_of, tables_of, same_tables, how
):
    config = make_config(tmp_path)
    drive(config)
    victim = sorted(tmp_path.glob("activations/m/first/layer=002/*.arrow"))[1]
    whole = victim.read_bytes()
    victim.unlink() if how == "gone" else victim.write_bytes(whole[:100])
    assert api.status(tmp_path).unfinished == ["similarity m/first"]
    done = drive(config)
    assert done.n_calls == 1
    assert events_of(done, "call_started")[-1]["call"] == "capture m/first chunk 1"
    assert victim.read_bytes() == whole
    same_tables(tables_of(done), tables_of(finished), exactly=True)
    assert drive(config).n_calls == 0


def test_a_sweep_with_too_few_windows_to_correlate_is_no_failure(make_config, tmp_path, tables_of):
    done = drive(make_config(tmp_path, "studies.substitution.widths=[5]", "execution.chunk=32"))
    assert done.failed == {}
    assert len(tables_of(done)["correlation"]) == 0
    (line,) = api.Run(tmp_path, tables_of(done), tmp_path).summary()
    assert line.startswith("m on first: layers ")
