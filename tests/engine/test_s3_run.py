"""Runs whose whole folder is in an object store: on a real S3 server that fails every 7th request, and killed there."""

from __future__ import annotations

import json
import random
import re
import signal
import time
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import started
from s3_server import CREDENTIALS

from raysweep import api
from raysweep.engine.events import read_events
from raysweep.engine.folder import RunFolder
from raysweep.errors import InputError
from raysweep.report.tables import collect_tables
from raysweep.store.places import listing, location, put_bytes, read_bytes, remove_below

LIMIT = ("datasets.0.limit=8", "datasets.1.limit=4")
SEED = 5
KILLS = 1


@pytest.fixture(scope="module")
def local(make_config, tmp_path_factory):
    """The same run in a folder."""
    return api.run(make_config(tmp_path_factory.mktemp("local") / "run", *LIMIT))


def on(s3, make_config, name, *overrides):
    options = f"storage_options={{endpoint_url: {s3.endpoint}}}"
    return make_config(s3.url(name), options, *LIMIT, *overrides)


def computed_once(folder, graph):
    committed = Counter(key for e in read_events(folder.events) if e["event"] == "chunk_committed" for key in e["keys"])
    assert committed == dict.fromkeys((key for task in graph.tasks for key in task.keys), 1)


def content(root):
    return b"\n".join(read_bytes(root / name) for name in listing(root))


def test_a_run_on_a_store_that_fails_every_seventh_request_gives_the_local_tables(
    s3, make_config, local, same_tables, raysweep, tmp_path
):
    config = on(s3, make_config, "failing")
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    s3.fail(7)
    ended = raysweep("run", tmp_path / "config.yaml")
    counts = s3.counts()
    s3.fail(0)
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[-1] == f"report: {config.storage}/report/index.html"
    failures = [counts[way] for way in ("error", "busy", "done, and an error", "cut", "closed")]
    assert sum(failures) == counts["requests"] // 7
    assert min(failures) > 3, counts

    root = location(config.storage, config.storage_options)
    folder = RunFolder(root)
    graph, _ = folder.read_plan()
    same_tables(collect_tables(folder, graph), local.tables, exactly=True)
    computed_once(folder, graph)
    names = listing(root)
    assert {name.partition("/")[0] for name in names} == {
        *(".lock", "config.yaml", "plan.json", "events", "chunks", "activations", "results", "report")
    }
    for name in local.tables:
        stored = pq.read_table(pa.BufferReader(read_bytes(root / "results" / f"{name}.parquet")))
        assert stored.equals(pq.read_table(local.folder / "results" / f"{name}.parquet"))
    figures = {path.name for path in (local.report.parent / "figures").iterdir()}
    assert {name.rpartition("/")[2] for name in names if name.startswith("report/figures/")} == figures
    listed = json.loads(read_bytes(root / "report/figures/.raysweep-files.json"))
    assert api.examine(root, checksums=True).findings == ()
    everything = content(root)
    assert not any(secret.encode() in everything for name, secret in CREDENTIALS.items() if "KEY" in name)

    told = raysweep("status", config.storage, "--option", f"endpoint_url={s3.endpoint}", "--json")
    assert json.loads(told.out)["state"] == "finished"
    for name in ("old.png", "mine.png"):
        put_bytes(root / "report/figures" / name, b"an earlier page's, or the user's")
    put_bytes(root / "report/figures/.raysweep-files.json", json.dumps([*listed, "old.png"]).encode())
    drawn = raysweep("report", config.storage, "--option", f"endpoint_url={s3.endpoint}")
    assert drawn.out == f"report: {config.storage}/report/index.html\n"
    expected = {name.removeprefix("report/") for name in names if name.startswith("report/")}
    assert listing(root / "report").keys() == expected | {"figures/mine.png"}


@pytest.mark.soak
def test_a_run_is_resumed_where_it_is_and_started_afresh(s3, make_config, local, same_tables):
    config = on(s3, make_config, "resumed")
    root = location(config.storage, config.storage_options)
    first = api.run(config)
    victims = [name for name in listing(root) if name.startswith("activations/m/first/layer=003/")]
    put_bytes(root / victims[0], read_bytes(root / victims[0])[:-8])  # what no store that works would keep
    again = api.run(config)
    same_tables(again.tables, first.tables, exactly=True)
    starts = [e["calls"] for e in read_events(RunFolder(root).events) if e["event"] == "run_started"]
    assert (starts[0]["capture"], starts[1]["capture"]) == (3, 1), "the cut file's chunk alone is captured again"
    assert "substitute" not in starts[1]
    api.run(config, fresh=True)
    assert [e["calls"] for e in read_events(RunFolder(root).events) if e["event"] == "run_started"] == starts[:1]


def test_a_run_in_memory_gives_the_local_tables(make_config, local, same_tables):
    config = make_config("memory://runs/one", *LIMIT)
    root = location(config.storage)
    try:
        run = api.run(config)
        same_tables(run.tables, local.tables, exactly=True)
        same_tables(api.open_run(root).tables, local.tables, exactly=True)
        assert api.status("memory://runs/one").state == "finished"
        with RunFolder(root).locked(), pytest.raises(InputError, match="is in use by another raysweep"):
            api.run(config)
    finally:
        remove_below(root)


def test_an_object_where_the_folder_should_be_and_a_foreign_folder_are_refused(s3, make_config):
    root = location(s3.url("foreign"), s3.options)
    put_bytes(root / "notes.txt", b"mine")
    with pytest.raises(InputError, match=r"is neither empty nor a run folder \(it has 'notes.txt'\)"):
        api.run(on(s3, make_config, "foreign"))
    with pytest.raises(InputError, match=r"storage 's3://runs/foreign/notes.txt' is a file; give a folder"):
        api.run(on(s3, make_config, "foreign/notes.txt"))
    assert list(listing(root)) == ["notes.txt"]


def test_sigterm_releases_the_lock_and_a_successor_on_another_machine_gets_in_at_once(
    s3, make_config, local, tmp_path, same_tables, monkeypatch
):
    asked = on(s3, make_config, "terminated")
    config, root = tmp_path / "config.yaml", location(asked.storage, asked.storage_options)
    config.write_text(asked.to_yaml())
    process = started("run", config)
    while not any(re.match(r"chunks/.*json", name) for name in listing(root)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - sent < 10
    assert process.returncode == 143, said
    assert said.splitlines()[-1] == f"ended by SIGTERM; committed work is kept; resume with: raysweep run {config}"
    last = list(read_events(RunFolder(root).events))[-1]
    assert (last["event"], last["signal"]) == ("run_interrupted", "SIGTERM"), "its last segment is published"

    monkeypatch.setattr("raysweep.store.object_lock.machine", lambda: "another")  # whose processes cannot be asked for
    done = api.run(config)
    same_tables(done.tables, local.tables, exactly=True)
    computed_once(RunFolder(root), RunFolder(root).read_plan()[0])


@pytest.mark.soak
def test_killed_on_s3_a_run_goes_on_and_computes_every_chunk_once(s3, make_config, local, tmp_path, same_tables):
    asked = on(s3, make_config, "killed")
    config, root = tmp_path / "config.yaml", location(asked.storage, asked.storage_options)
    config.write_text(asked.to_yaml())
    chance = random.Random(SEED)
    s3.fail(7)

    def n_commits():
        return sum(re.match(r"chunks/.*json", name) is not None for name in listing(root))

    for _ in range(KILLS):
        until = n_commits() + chance.randint(1, 3)
        process = started("run", config)
        while n_commits() < until and process.poll() is None:
            time.sleep(0.1)  # each look costs the store as much as a chunk
        time.sleep(chance.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        _, said = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, said
    last = started("run", config)
    _, said = last.communicate(timeout=180)
    assert last.returncode == 0, said
    s3.fail(0)

    folder = RunFolder(root)
    graph, _ = folder.read_plan()
    same_tables(collect_tables(folder, graph), local.tables, exactly=True)
    computed_once(folder, graph)
    examined = api.examine(root, remove=True, checksums=True)
    assert examined.left == 0
    assert {finding.kind for finding in examined.findings} <= {"orphan"}, "files of chunks that were being written"
    assert api.examine(root, checksums=True).findings == ()
