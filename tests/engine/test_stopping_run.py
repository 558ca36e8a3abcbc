"""Runs that stop early: fewer chunks, and the same tables whoever computed what in which order, killed or not."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from other_executors import Failing, Interrupted, Killed, On, Shuffled

from raysweep import api
from raysweep.engine.calls import Outcome
from raysweep.engine.driver import drive
from raysweep.engine.events import EventLog, read_events
from raysweep.engine.inspection import inspect
from raysweep.errors import InputError
from raysweep.planned import plan_run
from raysweep.progress import Tally
from raysweep.studies.passes import Pass
from raysweep.studies.stopping import Rule, first_decision, in_random_order
from raysweep.studies.windows import Window, windows_of_widths

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
N, CHUNK = 96, 8
TOP = "studies.substitution.stop={top: 2}"


@pytest.fixture(scope="session")
def stopping(make_config, tmp_path_factory):
    """stopping(storage, …): the config of the other tests on 96 records in chunks of 8; substitution alone unless told."""
    path = tmp_path_factory.mktemp("records") / "first.jsonl"
    records = (
        {"question": " ".join(WORDS[: 1 + i % 7]) + "?", "answer": " ".join(WORDS[(3 * i) % 8 : 3 + (5 * i) % 9])}
        for i in range(N)
    )
    path.write_text("".join(json.dumps(record) + "\n" for record in records))

    def make(storage, *overrides):
        data = f"datasets=[{{name: first, path: {path}, format: gsm8k}}]"
        studies = "studies={substitution: {widths: [2]}}"
        return make_config(storage, data, studies, f"execution.chunk={CHUNK}", *overrides)

    return make


@pytest.fixture(scope="session")
def whole(stopping, tmp_path_factory, tables_of):
    """Every loss, by window and example, without stopping."""
    rows = tables_of(drive(stopping(tmp_path_factory.mktemp("whole") / "run")))["substitution"]
    return rows.pivot(index=["start", "stop"], columns="example_id", values="loss")


@pytest.fixture(scope="session")
def stopped(stopping, tmp_path_factory):
    """A run that stops once its two costliest windows are settled. Not to be changed by a test."""
    done = drive(stopping(tmp_path_factory.mktemp("stopped") / "run", TOP))
    assert not done.failed
    return done


def expected(whole, stopping, rule, seed=0):
    """What the rule says of the losses of the whole sweep in the drawn order."""
    cell = inspect(stopping("nowhere")).cells["m", "first"]
    order = [e.id for e in in_random_order(cell.examples, seed)]
    windows = windows_of_widths(6, [2])
    losses = whole.loc[[tuple(w) for w in windows], order].to_numpy()
    return order, first_decision(losses, windows, [CHUNK] * (N // CHUNK), rule, 1e-5)


def test_a_sweep_stops_where_the_rule_says(stopped, whole, stopping, tables_of, events_of):
    order, decision = expected(whole, stopping, Rule(None, 2, 0.95, 2))
    assert 16 <= decision.examples < N
    (row,) = tables_of(stopped)["stopping"].to_dict("records")
    assert row == {
        "model": "m",
        "dataset": "first",
        "rule": "top 2 of width 2",
        "confidence": 0.95,
        "examples": decision.examples,
        "of": N,
        "share": decision.examples / N,
        "settled": True,
        "set": "; ".join(window.layers for window in decision.chosen),
        "reason": "no other window can be among them, so the set is settled",
    }
    best = whole.loc[[(i, i + 2) for i in range(5)]].mean(axis=1).nlargest(2).index
    assert row["set"] == "; ".join(Window(*span).layers for span in best)

    rows = tables_of(stopped)["substitution"]
    for span, part in rows.groupby(["start", "stop"]):
        assert list(part["example_id"]) == order[: decision.examples]
        np.testing.assert_allclose(part["loss"], whole.loc[span, part["example_id"]], rtol=0, atol=1e-5)
    assert stopped.n_calls == decision.chunks, "the local executor computes no chunk too many"
    dropped = events_of(stopped, "calls_dropped")
    assert [event["calls"] for event in dropped] == [{"substitute": N // CHUNK - decision.chunks}]
    assert {event["task"] for event in events_of(stopped, "task_done")} == {task.name for task in stopped.graph.tasks}


def test_nothing_is_missing_afterwards(stopped, stopping):
    standing = api.status(stopped.folder.root)
    assert (standing.state, standing.unfinished) == ("finished", [])
    assert standing.tasks == {"substitute": (7, 7), "stop": (1, 1)}
    assert standing.parts[0] == standing.parts[1]
    planned = plan_run(stopping(stopped.folder.root, TOP))
    assert (planned.layer_applications, planned.at_most) == (0, False)
    assert planned.tasks == standing.tasks
    again = drive(stopping(stopped.folder.root, TOP))
    assert (again.n_calls, again.failed) == (0, {})
    assert json.loads(again.folder.plan.read_bytes())["about"]["estimate"] is None, "nothing is left to be estimated"


def test_the_plan_is_the_most_that_may_be_needed(stopping, tmp_path):
    planned = plan_run(stopping(tmp_path / "run", TOP))
    assert planned.at_most
    assert planned.layer_applications == plan_run(stopping(tmp_path / "run")).layer_applications > 0
    assert (
        "at most      these figures are an upper limit: a sweep ends as soon as studies.substitution.stop is met"
        in planned.to_text()
    )


@pytest.mark.parametrize("seed", range(3))
def test_many_workers_in_any_order_give_the_same_tables(stopping, tmp_path, stopped, tables_of, same_tables, seed):
    done = drive(stopping(tmp_path, TOP), backend=On(lambda folder: Shuffled(folder, seed)))
    assert not done.failed
    same_tables(tables_of(done), tables_of(stopped), exactly=True)
    committed = Counter(k for e in read_events(tmp_path / "events.jsonl") if "keys" in e for k in e["keys"])
    assert set(committed.values()) == {1}
    shown = {key for task in done.graph.tasks for key in task.keys}
    assert shown <= committed.keys(), "what was in flight beyond is kept, and not shown"


def test_fused_or_apart_the_tables_are_the_same(stopping, tmp_path, stopped, tables_of, same_tables):
    done = drive(stopping(tmp_path, TOP, "execution.fuse=false"))
    same_tables(tables_of(done), tables_of(stopped))
    assert done.n_calls == 7 * stopped.n_calls


@pytest.mark.parametrize("together", [True, False])
def test_streamed_it_stops_at_the_same_chunk(
    stopping, tmp_path, stopped, tables_of, same_tables, together, monkeypatch
):
    if not together:  # as where memory holds the states of one chunk
        monkeypatch.setattr(
            "raysweep.engine.pending.chunks_in_passes",
            lambda cell, indices, *how: [Pass((i,)) for i in range(len(indices))],
        )
    done = drive(stopping(tmp_path, TOP, "execution.residency=stream"))
    assert done.n_calls == (1 if together else stopped.n_calls)
    same_tables(tables_of(done), tables_of(stopped))
    assert api.status(tmp_path).unfinished == []


@pytest.mark.parametrize("after", [1, 2])
def test_an_interrupted_run_goes_on_to_the_same_tables(stopping, tmp_path, stopped, tables_of, same_tables, after):
    with pytest.raises(KeyboardInterrupt):
        drive(stopping(tmp_path, TOP), backend=On(lambda folder: Interrupted(folder, after)))
    assert api.status(tmp_path).tasks == {"substitute": (0, 7), "stop": (0, 1)}
    resumed = drive(stopping(tmp_path, TOP))
    assert resumed.n_calls == stopped.n_calls - after
    same_tables(tables_of(resumed), tables_of(stopped), exactly=True)


def test_a_kill_between_the_last_chunk_and_the_decision_loses_neither(
    stopping, tmp_path, stopped, tables_of, same_tables, monkeypatch
):
    emit = EventLog.emit

    def killed(self, event, /, **more):
        if more.get("call") == "stop m/first":
            raise Killed
        emit(self, event, **more)

    with monkeypatch.context() as patched:
        patched.setattr("raysweep.engine.stopping.Watch.committable", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            drive(stopping(tmp_path / "before", TOP))
        patched.undo()
        patched.setattr(EventLog, "emit", killed)
        with pytest.raises(Killed):
            drive(stopping(tmp_path / "after", TOP))
    for name in ("before", "after"):
        resumed = drive(stopping(tmp_path / name, TOP))
        assert (resumed.n_calls, resumed.failed) == (0, {})
        same_tables(tables_of(resumed), tables_of(stopped), exactly=True)


def test_chunks_of_an_earlier_config_are_kept_and_not_shown(stopping, tmp_path, stopped, tables_of, same_tables):
    everything = drive(stopping(tmp_path, "studies.substitution.stop={half_width: 1e-6}"))
    (row,) = tables_of(everything)["stopping"].to_dict("records")
    assert (row["examples"], row["share"], row["settled"], row["set"]) == (N, 1.0, False, None)
    assert everything.n_calls == N // CHUNK
    done = drive(stopping(tmp_path, TOP))
    assert done.n_calls == 0
    same_tables(tables_of(done), tables_of(stopped), exactly=True)
    assert api.status(tmp_path).unfinished == []


def test_half_width_takes_every_change_into_account(stopping, tmp_path, whole, tables_of):
    costs = whole - whole.loc[(0, 0)]
    widest = costs.std(axis=1).max() / math.sqrt(N)
    done = drive(stopping(tmp_path, f"studies.substitution.stop={{half_width: {3 * widest}}}"))
    _, decision = expected(whole, stopping, Rule(3 * widest, None, 0.95, 2))
    (row,) = tables_of(done)["stopping"].to_dict("records")
    assert 16 <= row["examples"] == decision.examples < N
    assert (row["settled"], row["set"], row["reason"]) == (True, None, decision.reason)
    assert done.n_calls == decision.chunks


def test_the_seed_draws_the_order(stopping, tmp_path, tables_of, whole):
    done = drive(stopping(tmp_path, "studies.substitution.stop={top: 2, seed: 5}"))
    order, decision = expected(whole, stopping, Rule(None, 2, 0.95, 2), seed=5)
    shown = tables_of(done)["substitution"]["example_id"]
    assert list(shown[: decision.examples]) == order[: decision.examples]


def test_correlation_and_verification_are_of_the_chunks_that_were_used(stopping, tmp_path, stopped, tables_of):
    studies = (
        "studies={substitution: {widths: [2], verify: 2, stop: {top: 2}}, similarity: {}, correlation: {resamples: 20}}"
    )
    done = drive(stopping(tmp_path, studies))
    assert not done.failed
    tables = tables_of(done)
    losses = tables_of(stopped)["substitution"].query("width == 2").groupby("centre")["loss"].mean()
    delta = tables["dynamics"].set_index("layer")["delta"]
    delta = [(delta[math.floor(c)] + delta[math.ceil(c)]) / 2 for c in losses.index]
    (row,) = tables["correlation"].to_dict("records")
    assert row["spearman"] == pytest.approx(pd.Series(delta).corr(pd.Series(losses.to_numpy()), method="spearman"))
    assert set(tables["verification"]["example_id"]) == set(tables["substitution"]["example_id"][:4])
    captured = [e for e in read_events(tmp_path / "events.jsonl") if str(e.get("commit", "")).startswith("capture")]
    assert len(captured) == N // CHUNK, "states of all examples, in their source's order"
    other = drive(stopping(tmp_path, "studies={similarity: {}}"))
    assert other.n_calls == 1, "the table with other resamples; the states are those of a run that does not stop"


def test_a_failing_chunk_within_what_is_needed_fails_and_is_tried_first(
    stopping, tmp_path, stopped, tables_of, events_of
):
    name = "substitute m/first 0-5 chunk 1"
    once = drive(stopping(tmp_path / "once", TOP), backend=On(lambda folder: Failing(folder, name, times=1)))
    assert once.failed == {}
    started = [event["call"] for event in events_of(once, "call_started")]
    assert started[1:3] == [name, name]
    assert once.n_calls == stopped.n_calls + 1
    always = drive(stopping(tmp_path / "always", TOP), backend=On(lambda folder: Failing(folder, name)))
    assert always.failed["stop m/first"] == "not made, because 'substitute m/first none' failed"
    assert "stopping" not in tables_of(always)


def test_a_failing_chunk_beyond_is_no_failure(stopping, tmp_path, stopped, tables_of, same_tables):
    class LastFirst(Shuffled):
        """Fails the chunks beyond before it runs any other."""

        def collect(self):
            late = [c for c in self.calls if int(c.name.rpartition(" ")[2]) >= stopped.n_calls]
            if late:
                self.calls.remove(late[0])
                return [Outcome(late[0], error="RuntimeError: no", traceback="Traceback …")]
            return [self.worker.attempt(self.calls.pop(0))]

    done = drive(stopping(tmp_path, TOP, "execution.attempts=1"), backend=On(lambda folder: LastFirst(folder, 0)))
    assert done.failed == {}
    same_tables(tables_of(done), tables_of(stopped), exactly=True)


def test_twins_stop_together(stopping, tmp_path, stopped, tables_of):
    config = stopping(tmp_path, TOP)
    twins = [{**config.models[0].model_dump(), "name": name} for name in ("m", "n")]
    done = drive(config.model_copy(update={"models": [type(config.models[0])(**twin) for twin in twins]}))
    assert (done.failed, done.n_calls) == ({}, stopped.n_calls)
    rows = tables_of(done)["stopping"].drop(columns="model")
    assert rows.iloc[0].equals(rows.iloc[1])


def test_more_windows_than_there_are_are_refused_before_anything_runs(stopping, tmp_path):
    with pytest.raises(
        InputError, match="asks for the top 5 of the windows of width 2, and the 6 decoder layers of model 'm'"
    ):
        drive(stopping(tmp_path / "run", "studies.substitution.stop={top: 5}"))
    assert not (tmp_path / "run").exists()


def test_progress_does_not_count_what_was_dropped(stopping, tmp_path):
    tally = Tally()
    done = drive(stopping(tmp_path, TOP), listener=tally.take)
    assert tally.total["substitute"] == tally.done["substitute"] == done.n_calls < N // CHUNK
    assert tally.left() == 0


def test_the_page_says_where_and_why(stopped):
    run = api.open_run(stopped.folder.root)
    (row,) = run.stopping.to_dict("records")
    page = run.report.read_text(encoding="utf-8")
    assert (
        f"The sweep stopped after <strong>{row['examples']} of {N} examples</strong>, drawn at random. With 95 %"
        in page
    )
    assert "It assumes that mean differences between windows are close to normal" in page
    assert any(line.startswith(f"m on first: The sweep stopped after {row['examples']} of") for line in run.summary())
