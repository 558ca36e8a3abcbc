"""Runs logged by accelerate's trackers: a real one read back, others by what they are told; none may end a run."""

from __future__ import annotations

import importlib.util
import math
from types import SimpleNamespace

import pandas as pd
import pyarrow as pa
import pytest
from accelerate import tracking
from accelerate.state import PartialState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from upath import UPath

from raysweep.engine import events, trackers
from raysweep.engine.driver import drive
from raysweep.engine.graph import Graph, Task
from raysweep.engine.tracked import training_keys, training_scalars
from raysweep.engine.trackers import Trackers, check_trackers
from raysweep.errors import InputError
from raysweep.store.chunks import ChunkStore

STARTED = {"event": "run_started", "time": "2026-01-02T03:04:05.000+00:00", "host": "here", "tasks": 1, "done": 0}
STARTED |= {"calls": {"substitute": 2}}


def scalars_in(folder):
    """{name: {step: value}} of the one run in a TensorBoard folder."""
    (run,) = folder.iterdir()
    read = EventAccumulator(str(run)).Reload()
    return {name: {event.step: event.value for event in read.Scalars(name)} for name in read.Tags()["scalars"]}


def test_a_run_is_read_back_from_tensorboard(make_config, tmp_path, tables_of, events_of):
    PartialState._reset_state()  # a training in an earlier test has left its own
    done = drive(make_config(tmp_path / "run", "execution.report_to=[tensorboard]"))
    assert not done.failed
    assert not PartialState._shared_state, "a training in this process would find it"
    found = scalars_in(done.folder.root / "trackers" / "tensorboard")
    calls = events_of(done, "call_done")
    last = len(calls)
    substituted = [call for call in calls if call["call"].startswith("substitute")]
    assert found["progress/substitute/done"][last] == found["progress/substitute/of"][last] == len(substituted)
    assert found["progress/commits"][last] == len(events_of(done, "chunk_committed"))
    tokens, seconds = (sum(call["measured"][key] for call in substituted) for key in ("tokens", "seconds"))
    assert found["progress/substitute/tokens_per_second"][last] == pytest.approx(tokens / seconds, rel=1e-5)
    assert found["run/tasks_failed"] == {last: 0}

    tables = tables_of(done)
    rho = tables["correlation"].set_index("metric")["spearman"]["cka_linear"]
    assert found["result/m/first/rho/cka_linear/width 2"] == {0: pytest.approx(rho, rel=1e-6)}
    losses = tables["substitution"].groupby(["width", "start"])["loss"].mean()
    costs = {start: loss - losses[0, 0] for (width, start), loss in losses.items() if width == 2}
    assert found["window/m/first/width 2/cost"] == pytest.approx(costs, rel=1e-4, abs=1e-6)


def test_a_tracker_that_fails_is_told_of_once_and_the_run_goes_on(make_config, tmp_path, monkeypatch):
    def log(self, values, step=None):
        raise OSError("no space left, token=hf_abcdefghijklmnopqrstuvwxyz0123456789")

    monkeypatch.setattr(tracking.TensorBoardTracker, "log", log)
    told = []
    done = drive(make_config(tmp_path / "run", "execution.report_to=[tensorboard]"), listener=told.append)
    assert not done.failed
    (failure,) = (event for event in told if event["event"] == events.TRACKER_FAILED)
    assert failure["tracker"] == "tensorboard"
    assert failure["error"].startswith("OSError: no space left")
    assert "hf_abc" not in failure["error"]


def test_what_cannot_be_logged_to_is_refused_before_anything_is_written(make_config, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "wandb" else find(name, *more))
    with pytest.raises(
        InputError, match=r"report_to has wandb, which needs the package wandb.*pip install 'raysweep\[tr"
    ):
        drive(make_config(tmp_path / "run", "execution.report_to=[wandb]"))
    assert not (tmp_path / "run").exists()


def test_object_stores_need_a_place_elsewhere(monkeypatch):
    root = UPath("memory://bucket/run")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace())
    for name in trackers.PACKAGES:
        monkeypatch.delenv(trackers._REMOTE.get(name, "NONE"), raising=False)
        with pytest.raises(InputError, match=f"report_to has {name}, which logs to a folder, and storage is memory://"):
            check_trackers([name], root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    check_trackers(["mlflow"], root)
    check_trackers([], root)


def test_the_config_names_trackers_once(make_config):
    assert make_config("run", "execution.report_to=[mlflow, wandb]").execution.report_to == ["mlflow", "wandb"]
    for value, words in (("[wandb, wandb]", "listed twice"), ("[comet]", "tensorboard")):
        with pytest.raises(InputError, match=words):
            make_config("run", f"execution.report_to={value}")


class Kept:
    """A tracker that keeps what it is told."""

    def __init__(self, name):
        self.name, self.told, self.axes, self.finished = name, [], {}, False
        self.tracker = SimpleNamespace(define_metric=lambda name, **more: self.axes.update({name: more}))

    def start(self):
        pass

    def store_init_configuration(self, values):
        self.about = values

    def log(self, values, step=None):
        self.told.append((values, step))

    def finish(self):
        self.finished = True


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A folder whose one task commits losses of trainings, and the tracker of each name that is started."""
    task = Task("similarity", "m/1", "d", results={"training": "key"})
    chunks = ChunkStore(tmp_path / "chunks")
    rows = {
        "study": "finetune",
        "arm": "freeze 4,5",
        "seed": 7,
        "split": "test",
        "step": [0, 10, 20],
        "loss": [2.0, 1.5, math.nan],
    }
    table = pa.Table.from_pandas(pd.DataFrame({"part": "key", **rows}), preserve_index=False)
    chunks.commit("one", table, parts={"key": None})
    folder = SimpleNamespace(root=tmp_path, chunks=chunks, read_plan=lambda: (Graph((task,)), {}), committed=dict)
    started = {}
    monkeypatch.setattr(trackers, "_tracker", lambda name, *_: started.setdefault(name, Kept(name)))
    return folder, started


def test_losses_are_told_as_they_are_committed_at_their_steps(trained):
    folder, started = trained
    told = Trackers(["mlflow", "wandb"], "run", folder, lambda *failure: pytest.fail(str(failure)))
    told({"event": "cluster_checked"})
    told(STARTED)
    told({"event": "chunk_committed", "keys": ["key", "other"]})
    told({"event": "run_finished", "seconds": 3.5, "failed": ["a task"]})
    told.close()
    name = "training/m_1/d/finetune/freeze 4_5/seed 7/test"
    mlflow, wandb = started["mlflow"], started["wandb"]
    assert mlflow.told[:2] == [({name: 2.0}, 0), ({name: 1.5}, 10)]
    assert mlflow.told[2] == ({"run/seconds": 3.5, "run/tasks_failed": 1}, 0)
    assert wandb.told[:2] == [({name: 2.0, "training_at": 0}, None), ({name: 1.5, "training_at": 10}, None)]
    assert wandb.axes["training/*"] == {"step_metric": "training_at"}
    assert mlflow.about == {"run": "run", "tasks": 1, "done": 0, "host": "here"}
    assert mlflow.finished
    assert wandb.finished


def test_progress_counts_failures_and_what_is_left(trained):
    folder, started = trained
    told = Trackers(["mlflow"], "run", folder, lambda *failure: pytest.fail(str(failure)))
    told(STARTED)
    told({"event": "call_retried", "call": "substitute a", "tasks": [], "failure": "raised"})
    told({"event": "call_failed", "call": "substitute a", "tasks": [], "failure": "raised"})
    told({"event": "call_done", "call": "substitute b", "measured": {"seconds": 2.0, "tokens": 30}})
    values, step = started["mlflow"].told[-1]
    assert step == 3
    assert values == {
        "progress/commits": 0,
        "progress/calls_failed": 1,
        "progress/calls_retried": 1,
        "progress/substitute/done": 1,
        "progress/substitute/of": 2,
        "progress/substitute/seconds": 2.0,
        "progress/substitute/tokens_per_second": 15.0,
        "progress/seconds_left": 0.0,
    }


def test_one_that_cannot_start_leaves_the_others(trained, monkeypatch):
    folder, started = trained
    monkeypatch.setattr(Kept, "start", lambda self: {}["no server"] if self.name == "mlflow" else None)
    failures = []
    told = Trackers(["mlflow", "wandb"], "run", folder, lambda name, error: failures.append((name, repr(error))))
    told(STARTED)
    told({"event": "call_done", "call": "substitute b", "measured": {"seconds": 2.0}})
    assert failures == [("mlflow", "KeyError('no server')")]
    assert not started["mlflow"].told
    assert len(started["wandb"].told) == 1


def test_only_tasks_with_trainings_are_read(trained):
    folder, _ = trained
    tasks = training_keys(folder.read_plan()[0])
    assert list(tasks) == ["key"]
    assert not list(training_scalars(folder.chunks, {}, ["key"]))
    assert [place for _, place, _ in training_scalars(folder.chunks, tasks, ["key"])] == [0, 10]
