"""The driver: what is whole is not done again, and tables do not tell how they came about."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pandas as pd
import pytest
from other_executors import On, Shuffled, commits

from raysweep import api
from raysweep.engine import rates
from raysweep.engine.driver import drive
from raysweep.engine.folder import RunFolder
from raysweep.engine.inspection import resolve_device
from raysweep.engine.preparation import prepare
from raysweep.errors import FolderInUseError, InputError, StoreError


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
    with pytest.raises(StoreError, match=r"expected \d+ bytes, found 4; delete .* to recompute the chunk"):
        drive(config)
    assert drive(config, fresh=True).n_calls == 3


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
def test_the_order_of_completion_does_not_matter(
    make_config, tmp_path, finished, tables_of, same_tables, monkeypatch, seed
):
    monkeypatch.setattr(rates, "_KNOWN", {})
    monkeypatch.setattr(rates, "read_rate", lambda *of: 1e9)  # loads that seem slow are left to one worker
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


# --- two runs in one folder ------------------------------------------------------------------------------------------


def test_a_folder_that_another_run_holds_is_refused_and_left_alone(make_config, tmp_path):
    config = make_config(tmp_path)
    drive(config)
    before = (tmp_path / "events.jsonl").read_bytes()
    with RunFolder(tmp_path).locked():
        with pytest.raises(FolderInUseError) as caught:
            drive(config, fresh=True)
        with pytest.raises(FolderInUseError, match=rf"^after 0.2 s of waiting, run folder '{tmp_path}' is in use by "):
            drive(config, fresh=True, wait=0.2)
    since = json.loads((tmp_path / ".lock").read_text())["since"]
    assert caught.value.holder == f"process {os.getpid()} on {socket.gethostname()}, since {since}"
    assert str(caught.value) == (
        f"run folder '{tmp_path}' is in use by another raysweep ({caught.value.holder}); wait for it to end (--wait), stop it, "
        "or give another storage"
    )
    assert (tmp_path / "events.jsonl").read_bytes() == before
    assert drive(config).n_calls == 0
    with pytest.raises(InputError, match="wait is 0; give True, False, or a number of seconds above 0"):
        drive(config, wait=0)


def test_a_run_that_waits_for_another_plans_again_once_that_has_ended(make_config, tmp_path, monkeypatch):
    config, holder, told = make_config(tmp_path), RunFolder(tmp_path).locked(), []
    monkeypatch.setattr("raysweep.engine.waiting._LOOK_SECONDS", 0.01)

    def listen(event):
        told.append(event)
        if event["event"] == "folder_awaited":
            holder.__exit__(None, None, None)
            assert drive(config).n_calls == 11, "the other"

    holder.__enter__()
    assert drive(config, wait=True, listener=listen).n_calls == 0
    assert [event["event"] for event in told] == ["folder_awaited", "run_started", "run_finished"]
    assert told[0]["folder"] == str(tmp_path)
    assert told[0]["holder"].startswith(f"process {os.getpid()} on ")


def test_a_sweep_with_too_few_windows_to_correlate_is_no_failure(make_config, tmp_path, tables_of):
    done = drive(make_config(tmp_path, "studies.substitution.widths=[5]", "execution.chunk=32"))
    assert done.failed == {}
    assert len(tables_of(done)["correlation"]) == 0
    (line,) = api.Run(tmp_path, tables_of(done), tmp_path).summary()
    assert line.startswith("m on first: ")
