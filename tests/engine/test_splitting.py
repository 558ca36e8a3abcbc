"""Calls cut into pieces: the same keys, about the same cost each, and the same tables to the last bit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raysweep.engine import events
from raysweep.engine.calls import CaptureCall, GenerateCall, SubstituteCall
from raysweep.engine.dispatch import Slot
from raysweep.engine.driver import drive
from raysweep.engine.executor import LocalBackend, LocalExecutor
from raysweep.engine.pending import model_calls
from raysweep.engine.plan import plan
from raysweep.engine.rates import Rates
from raysweep.engine.splitting import cut, is_divisible, shares
from raysweep.engine.training_work import untold
from raysweep.engine.work import Worker
from raysweep.studies.interventions import check_changes
from raysweep.studies.schedule import layer_applications

ONE_CHUNK = ("execution.chunk=16", "datasets.0.limit=10")


class Three(LocalExecutor):
    """Three workers that take turns in this process."""

    slots = (Slot(depth=2),) * 3


class OnThree(LocalBackend):
    def open(self, folder, n_calls, tell=untold):
        return Three(Worker(folder))


@pytest.fixture
def slow(monkeypatch):
    """Layers that are reckoned to take long, so that cutting is worth it."""
    monkeypatch.setattr("raysweep.engine.estimate.measured_rates", lambda *args: Rates(0.1, 0.0, 1e12, "made up"))


@pytest.fixture
def sweep(small):
    return next(call for call in model_calls(*small, plan(*small), set()) if isinstance(call, SubstituteCall))


# --- pieces -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 4])
def test_pieces_have_every_change_once_with_its_key(sweep, n):
    pieces = cut(sweep, n)
    assert len({piece.name for piece in pieces}) == n
    found = [pair for piece in pieces for pair in zip(piece.windows, piece.keys, strict=True)]
    assert sorted(found) == sorted(zip(sweep.windows, sweep.keys, strict=True))
    assert all(piece.examples is sweep.examples and piece.tasks == sweep.tasks for piece in pieces)


@pytest.mark.parametrize("changes", [{"widths": [5]}, {"widths": "all"}, {"widths": [3, 6], "reverse": True}])
@pytest.mark.parametrize("n", [2, 4, 8])
def test_pieces_are_of_about_the_same_cost_and_shares_are_what_they_apply(sweep, changes, n):
    windows = tuple(check_changes(24, **changes))
    deep = replace(
        sweep,
        windows=windows,
        keys=tuple(map(str, windows)),
        base=replace(sweep.base, config={"num_hidden_layers": 24}),
    )
    whole = layer_applications(24, windows)
    applied = [layer_applications(24, piece.windows) / whole for piece in cut(deep, n)]
    assert shares(deep, n) == pytest.approx(applied)
    assert max(applied) < 1.35 * sum(applied) / n
    assert 1 <= sum(applied) < 1 + (n - 1) * 48 / whole + 1e-9, "the trunks, and nothing else, are done again"


def test_what_cannot_be_cut(sweep, small):
    capture = next(call for call in model_calls(*small, plan(*small), set()) if isinstance(call, CaptureCall))
    streamed = replace(sweep, loading=replace(sweep.loading, stream=True))
    single = replace(sweep, windows=sweep.windows[:1], keys=sweep.keys[:1])
    for call in (capture, streamed, single):
        assert not is_divisible(call)
        assert shares(call, 2) == ()
        with pytest.raises(ValueError, match="cannot be cut into 2"):
            cut(call, 2)
    assert is_divisible(sweep)
    assert shares(sweep, len(sweep.windows) + 1) == ()


# --- runs ---------------------------------------------------------------------------------------------------------


def test_a_run_whose_calls_are_cut_has_the_same_tables(make_config, tmp_path, slow, tables_of, same_tables, events_of):
    text = "studies.substitution={widths: [2], generate: {examples: 2, tokens: 4}}"
    whole = drive(make_config(tmp_path / "whole", *ONE_CHUNK, text))
    assert drive(make_config(tmp_path / "cut", *ONE_CHUNK), backend=OnThree()).failed == {}
    done = drive(make_config(tmp_path / "cut", *ONE_CHUNK, text), backend=OnThree())
    assert done.failed == whole.failed == {}
    found = {event["call"]: event["calls"] for event in events_of(done, events.CALL_CUT)}
    assert {name.partition(" ")[0] for name in found} == {"substitute", "generate"}
    assert events_of(whole, events.CALL_CUT) == []
    started = [event["call"] for event in events_of(done, events.CALL_STARTED)]
    assert all(started.count(piece) == 1 for pieces in found.values() for piece in pieces)
    assert not found.keys() & set(started)
    keys = [key for event in events_of(done, events.CHUNK_COMMITTED) for key in event["keys"]]
    assert sorted(keys) == sorted({key for task in done.graph.tasks for key in task.keys})
    same_tables(tables_of(done), tables_of(whole), exactly=True)
    assert drive(make_config(tmp_path / "cut", *ONE_CHUNK, text)).n_calls == 0


def test_a_sweep_that_may_stop_early_is_not_cut(make_config, tmp_path, slow, events_of):
    stop = "studies.substitution={widths: [2], stop: {half_width: 0.001}}"
    done = drive(make_config(tmp_path, *ONE_CHUNK, stop), backend=OnThree())
    assert done.failed == {}
    assert events_of(done, events.CALL_CUT) == []


def test_text_is_cut_by_its_changes(small, make_config):
    config = make_config("nowhere", "studies.substitution={widths: [2], generate: {examples: 2, tokens: 4}}")
    call = next(c for c in model_calls(config, small[1], plan(config, small[1]), set()) if isinstance(c, GenerateCall))
    assert shares(call, 2) == pytest.approx((4 / 7, 3 / 7))
    assert [len(piece.windows) for piece in cut(call, 2)] == [4, 3]
