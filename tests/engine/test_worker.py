"""The worker and the local executor: a call's end is an outcome, and two checkpoints stay in memory."""

from __future__ import annotations

import dataclasses
import gc
import re
import weakref

import pytest

from raysweep.engine import residents
from raysweep.engine.calls import Call, CaptureCall, SubstituteCall
from raysweep.engine.dispatch import Slot
from raysweep.engine.executor import LocalExecutor
from raysweep.engine.pending import model_calls
from raysweep.engine.plan import plan
from raysweep.engine.work import Worker
from raysweep.errors import InputError
from raysweep.studies.schedule import layer_applications


@pytest.fixture
def calls(small):
    return list(model_calls(*small, plan(*small), set()))


@pytest.fixture
def loaded(monkeypatch):
    """The folders that models were loaded from, as it happens."""
    seen, load = [], residents.load_model

    def noting(checkpoint, **how):
        seen.append(checkpoint.folder.name)
        return load(checkpoint, **how)

    monkeypatch.setattr(residents, "load_model", noting)
    return seen


def test_a_pair_is_loaded_once(calls, loaded, tmp_path):
    worker = Worker(tmp_path)
    for call in calls:
        assert worker.attempt(call).error is None
    assert loaded == ["base", "tuned"]
    worker.unload()
    worker.attempt(calls[0])
    assert loaded == ["base", "tuned", "base"]


def test_of_three_checkpoints_the_one_used_last_of_all_makes_room(calls, loaded, tmp_path):
    first = next(call for call in calls if isinstance(call, SubstituteCall))
    second = dataclasses.replace(first, tuned=dataclasses.replace(first.tuned, fingerprint="another"))
    worker = Worker(tmp_path)
    outcomes = [worker.attempt(call) for call in (first, second, first, first)]
    assert [outcome.error for outcome in outcomes] == [None] * 4
    assert loaded == ["base", "tuned", "tuned", "tuned"], "the base model stays"
    moved = [(outcome.measured["loads"], outcome.measured["evictions"]) for outcome in outcomes]
    assert moved == [(2, 0), (1, 1), (1, 1), (0, 0)]


def test_none_of_a_pair_makes_room_for_the_other(calls, loaded, tmp_path):
    pair = next(call for call in calls if isinstance(call, SubstituteCall))
    capture = next(call for call in calls if isinstance(call, CaptureCall))
    other = dataclasses.replace(capture, base=dataclasses.replace(capture.base, fingerprint="another"))
    worker = Worker(tmp_path)
    outcomes = [worker.attempt(call) for call in (pair, other, pair)]
    assert loaded == ["base", "tuned", "base", "base"], "the tuned model stays"
    assert [outcome.measured["loads"] for outcome in outcomes] == [2, 1, 1]


def test_what_makes_room_is_let_go_of(calls, monkeypatch, tmp_path):
    models, load = [], residents.load_model

    def noting(checkpoint, **how):
        model = load(checkpoint, **how)
        models.append(weakref.ref(model))
        return model

    monkeypatch.setattr(residents, "load_model", noting)
    first = next(call for call in calls if isinstance(call, SubstituteCall))
    second = dataclasses.replace(first, tuned=dataclasses.replace(first.tuned, fingerprint="another"))
    worker = Worker(tmp_path)
    alive = []
    for call in (first, first, second):
        worker.attempt(call)
        gc.collect()
        alive.append([model() is not None for model in models])
    assert alive == [[True, True], [True, True], [True, False, True]]


def test_a_sweep_says_what_it_did(calls, tmp_path):
    call = next(call for call in calls if isinstance(call, SubstituteCall))
    outcome = Worker(tmp_path).attempt(call)
    assert outcome.call is call
    assert outcome.measured["layer_applications"] == layer_applications(6, call.windows) == 30
    assert outcome.measured["seconds"] >= outcome.measured["load_seconds"] > 0
    (commit,) = outcome.commits
    assert commit.keys == call.keys
    parts = commit.table["part"].to_pylist()
    assert parts == [key for key in call.keys for _ in call.examples]


def test_a_capture_writes_files_and_commits_their_entries(calls, tmp_path):
    call = next(call for call in calls if isinstance(call, CaptureCall))
    (commit,) = Worker(tmp_path).attempt(call).commits
    (other,) = Worker(tmp_path).attempt(call).commits
    assert commit.table is None
    assert {entry.path for entry in commit.files}.isdisjoint(entry.path for entry in other.files), (
        "a writer's own files"
    )
    assert commit.name == other.name
    assert commit.extra == {
        "part": re.fullmatch(rf"{call.captures[0].name}-[0-9a-f]{{8}}", commit.extra["part"])[0],
        "folder": "activations/m/first",
        "layers": 6,
        "width": 16,
        "torch_dtype": "float32",
    }
    for entry in commit.files:
        assert (tmp_path / "activations/m/first" / entry.path).stat().st_size == entry.bytes
    assert len(commit.files) == 6
    assert not (tmp_path / "chunks").exists(), "committing is the driver's"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("no memory"), ("RuntimeError: no memory", "raised")),
        (InputError("that file is gone"), ("that file is gone", "refused")),
    ],
)
def test_what_a_call_raises_is_its_outcome(calls, tmp_path, monkeypatch, error, told):
    def raising(*args, **kwargs):
        raise error

    monkeypatch.setattr(residents, "load_model", raising)
    outcome = Worker(tmp_path).attempt(calls[0])
    assert (outcome.error, outcome.failure) == told
    assert outcome.commits == ()
    assert outcome.traceback.startswith("Traceback")
    assert "in raising" in outcome.traceback


def test_an_interrupt_is_no_outcome(calls, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(residents, "load_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Worker(tmp_path).attempt(calls[0])


def test_an_unknown_call_fails(tmp_path):
    outcome = Worker(tmp_path).attempt(Call("odd", "m", "d", ("t",)))
    assert outcome.error == "TypeError: no way to run a Call"


def test_the_local_executor_runs_one_call_at_a_time(calls, loaded, tmp_path):
    executor = LocalExecutor(Worker(tmp_path))
    assert executor.slots == (Slot(models=True, results=True, depth=1),)
    executor.submit(0, calls[0])
    assert loaded == [], "it runs when its outcome is collected"
    (outcome,) = executor.collect()
    assert outcome.call is calls[0]
    executor.submit(0, calls[1])
    executor.close()
    with pytest.raises(IndexError):
        executor.collect()
