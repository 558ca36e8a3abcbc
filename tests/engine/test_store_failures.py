"""An object store that goes away in the middle of a run, or a run that another took over: told in a line, and gone on from."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time

import pyarrow as pa
import pytest
from botocore.exceptions import EndpointConnectionError

from raysweep import api
from raysweep.engine.calls import Commit
from raysweep.engine.driver import drive
from raysweep.engine.events import read_events
from raysweep.engine.folder import RunFolder
from raysweep.errors import RunError
from raysweep.progress import Progress
from raysweep.store import artifacts, object_lock
from raysweep.store.artifacts import publish_file
from raysweep.store.places import location, put, put_bytes, remove_below

LIMIT = ("datasets.0.limit=8", "datasets.1.limit=4")


@pytest.fixture
def root(tmp_path):
    place = location(f"memory://failures/{tmp_path.name}")
    yield place
    remove_below(place)


def test_a_store_that_goes_away_ends_the_run_in_a_line_and_a_later_one_goes_on(
    make_config, root, monkeypatch, same_tables, tmp_path
):
    sent = []

    def send(local, place):
        if "/chunks/" in place.path:
            sent.append(place)
            if len(sent) > 5:
                raise EndpointConnectionError(endpoint_url="http://store")
        put(local, place)

    config = make_config(str(root), *LIMIT)
    monkeypatch.setattr(artifacts, "put", send)
    with pytest.raises(RunError) as caught:
        api.run(config)
    assert str(caught.value) == (
        f"the run folder '{root}' cannot be written to: Could not connect to the endpoint URL: \"http://store\"; what "
        "is committed is kept; mend that and run again"
    )
    before = {manifest.name for manifest in RunFolder(root).chunks.manifests()}
    assert before
    monkeypatch.setattr(artifacts, "put", put)
    run = api.run(config)
    same_tables(run.tables, api.run(make_config(tmp_path / "run", *LIMIT)).tables, exactly=True)
    told = [event["commit"] for event in read_events(RunFolder(root).events) if event["event"] == "chunk_committed"]
    assert len(told) == len(set(told))
    assert before < set(told)


@pytest.mark.parametrize(("number", "place"), [(errno.EPERM, "activations"), (errno.ESTALE, "chunks")])
def test_a_disk_that_refuses_or_is_gone_ends_the_run_at_once(
    make_config, tmp_path, monkeypatch, events_of, same_tables, number, place
):
    def failing(path, real=artifacts.flush):
        if f"/{place}/" in str(path):
            raise OSError(number, os.strerror(number), str(path))
        real(path)

    folder, config = RunFolder(tmp_path / "run"), make_config(tmp_path / "run", *LIMIT)
    with monkeypatch.context() as patched:
        patched.setattr(artifacts, "flush", failing)
        with pytest.raises(RunError) as caught:
            api.run(config)
    said = str(caught.value)
    assert said.startswith(f"the run folder '{tmp_path}/run' cannot be written to: {os.strerror(number)} (writing ")
    assert said.endswith("; what is committed is kept; mend that and run again")
    names = [event["event"] for event in read_events(folder.events)]
    assert {"call_retried", "call_failed", "run_finished"}.isdisjoint(names), "it is not taken for a crash"
    run = api.run(config)
    same_tables(run.tables, api.run(make_config(tmp_path / "other", *LIMIT)).tables, exactly=True)


def test_an_error_about_another_file_is_the_calls_own(make_config, tmp_path, monkeypatch):
    def unreadable(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied", "/elsewhere/model.safetensors")

    monkeypatch.setattr("raysweep.engine.residents.load_model", unreadable)
    done = drive(make_config(tmp_path / "run", *LIMIT))
    assert done.failed
    assert all("/elsewhere/model.safetensors" in error or "failed" in error for error in done.failed.values())


def test_a_run_folder_that_is_replaced_is_noticed_at_the_next_commit(make_config, tmp_path):
    root, committed = tmp_path / "run", []

    def listener(event):
        if event["event"] == "chunk_committed":
            committed.append(event["commit"])
            if len(committed) == 2:
                root.rename(tmp_path / "moved")
                root.mkdir()

    with pytest.raises(
        RunError, match=rf"the run folder '{root}' was removed, renamed or replaced while the run went on"
    ):
        api.run(make_config(root, *LIMIT), listener=listener)
    assert len(committed) == 2 == len(RunFolder(tmp_path / "moved").chunks.manifests())
    assert not list(root.rglob("chunks/*.json"))


def test_a_file_system_without_locks_is_said(make_config, tmp_path, monkeypatch, capsys):
    def without(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", without)
    with Progress() as progress:
        drive(make_config(tmp_path / "run", *LIMIT), listener=progress)
    said = capsys.readouterr().err
    assert f"warning: the file system of '{tmp_path}/run' has no file locks" in said
    assert [e["folder"] for e in read_events(RunFolder(tmp_path / "run").events) if e["event"] == "run_unlocked"]


def test_a_commit_of_a_driver_that_lost_the_folder_counts_once(make_config, tmp_path, same_tables):
    """It committed late: after its successor had looked, before the successor came to the same chunk."""
    earlier = api.run(make_config(tmp_path / "run", *LIMIT))
    late = sorted((tmp_path / "run" / "chunks").glob("*.json"))
    held = {path.name: path.read_bytes() for path in late}
    for path in late[::2]:
        path.unlink()
    (tmp_path / "run" / "events.jsonl").unlink()
    (tmp_path / "run" / "events.jsonl").touch()
    restored = []

    def listener(event):
        if event["event"] == "run_started":
            for path in late[::2]:
                path.write_bytes(held[path.name])
                restored.append(path.stem)

    run = api.run(make_config(tmp_path / "run", *LIMIT), listener=listener)
    same_tables(run.tables, earlier.tables, exactly=True)
    log = [
        event["commit"]
        for event in read_events(RunFolder(tmp_path / "run").events)
        if event["event"] == "chunk_committed"
    ]
    assert set(restored) <= set(log)
    assert len(log) == len(set(log))


@pytest.mark.parametrize("damage", ["table", "manifest", "files"])
def test_a_late_commit_that_is_not_complete_is_replaced(tmp_path, damage):
    late, ours = RunFolder(tmp_path), RunFolder(tmp_path)
    states, extra = tmp_path / "activations", {"folder": "activations"}
    beside = publish_file(states, "x.arrow", lambda path: path.write_bytes(b"states"), rows=1)
    table = pa.table({"part": ["a"], "loss": [1.0]})
    kept = late.commit(Commit("c", ("a",), table, (beside,), extra), {"by": "late"})
    {
        "table": tmp_path / "chunks" / kept.table.path,
        "manifest": tmp_path / "chunks" / "c.json",
        "files": states / beside.path,
    }[damage].write_bytes(b"x")
    whole = publish_file(states, "y.arrow", lambda path: path.write_bytes(b"states"), rows=1)
    found = ours.commit(Commit("c", ("a",), table, (whole,), extra), {"by": "us"})
    assert (found.extra["log"], found.files) == ({"by": "us"}, (whole,))
    assert ours.committed() == {"a": found}
    assert late.commit(Commit("c", ("a",), table, ()), {"by": "late"}) == found


def test_a_run_that_another_took_over_commits_nothing_more(make_config, root, monkeypatch):
    monkeypatch.setattr(object_lock, "BEAT_SECONDS", 0.01)
    committed = []

    def listener(event):
        if event["event"] != "chunk_committed":
            return
        committed.append(event["commit"])
        said = {"token": "other", "pid": 1, "host": "elsewhere", "machine": "another", "since": "now"}
        put_bytes(root / ".lock" / "000099", json.dumps(said).encode())
        time.sleep(0.5)

    with pytest.raises(RunError, match="another raysweep has taken over the run folder 'memory://failures/"):
        api.run(make_config(str(root), *LIMIT), listener=listener)
    assert len(committed) == 1 == len(RunFolder(root).chunks.manifests())
    assert object_lock.holder(root / ".lock").words == "process 1 on elsewhere, since now"
