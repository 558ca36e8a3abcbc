"""Calls cut into pieces: the same keys, about the same cost each, and the same tables to the last bit."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

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
    few = (*ONE_CHUNK, "execution.batch_tokens=64")  # so that text is written in parts
    text = "studies.substitution={widths: [2], generate: {examples: 2, tokens: 4}}"
    whole = drive(make_config(tmp_path / "whole", *few, text))
    assert drive(make_config(tmp_path / "cut", *few), backend=OnThree()).failed == {}
    done = drive(make_config(tmp_path / "cut", *few, text), backend=OnThree())
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
    assert drive(make_config(tmp_path / "cut", *few, text)).n_calls == 0


def test_a_sweep_that_may_stop_early_is_not_cut(make_config, tmp_path, slow, events_of):
    stop = "studies.substitution={widths: [2], stop: {half_width: 0.001}}"
    done = drive(make_config(tmp_path, *ONE_CHUNK, stop), backend=OnThree())
    assert done.failed == {}
    assert events_of(done, events.CALL_CUT) == []


def test_text_is_cut_between_what_is_written_together(small, make_config):
    """3 changes of the tuned model are written at once; steps between the models, and the other direction, are not among them."""
    changes = "widths: [2], coefficients: [0.5], sets: {ends: [0]}, reverse: true"
    text = "generate: {examples: 2, tokens: 4, changes: all}"
    config = make_config("nowhere", f"studies.substitution={{{changes}, {text}}}")
    call = next(c for c in model_calls(config, small[1], plan(config, small[1]), set()) if isinstance(c, GenerateCall))
    longest = max(example.n_prompt for example in call.examples) + 4
    call = replace(call, loading=replace(call.loading, batch_tokens=6 * len(call.examples) * longest))
    steps = [w.text for w in call.windows if w.text.endswith(" at 0.5")]
    reverse = [w.text for w in call.windows if w.in_base]
    whole = [w.text for w in call.windows if w.text not in (*steps, *reverse)]
    parts = [whole[:3], whole[3:6], whole[6:], reverse[:3], reverse[3:6], reverse[6:], *([step] for step in steps)]
    parts = [part for part in parts if part]
    pieces = cut(call, 2)
    assert [sorted(w.text for w in piece.windows) for piece in pieces] == [sorted(chain(*parts[i::2])) for i in (0, 1)]
    assert [piece.keys for piece in pieces] == [
        tuple(key for window, key in zip(call.windows, call.keys, strict=True) if window in piece.windows)
        for piece in pieces
    ]
    assert shares(call, 2) == pytest.approx([len(parts[i::2]) / len(parts) for i in (0, 1)])
    assert not is_divisible(replace(call, windows=call.windows[:3], keys=call.keys[:3]))
