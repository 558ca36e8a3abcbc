"""An object store that goes away in the middle of a run, or a run that another took over: told in a line, and gone on from."""

from __future__ import annotations

import json
import time

import pytest
from botocore.exceptions import EndpointConnectionError

from raysweep import api
from raysweep.engine.events import read_events
from raysweep.engine.folder import RunFolder
from raysweep.errors import RunError
from raysweep.store import artifacts, object_lock
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
        f"the run folder '{root}' cannot be written to: Could not connect to the endpoint URL: \"http://store\"; what is committed "
        "is kept: mend that and run again"
    )
    before = {manifest.name for manifest in RunFolder(root).chunks.manifests()}
    assert before
    monkeypatch.setattr(artifacts, "put", put)
    run = api.run(config)
    same_tables(run.tables, api.run(make_config(tmp_path / "run", *LIMIT)).tables, exactly=True)
    told = [event["commit"] for event in read_events(RunFolder(root).events) if event["event"] == "chunk_committed"]
    assert len(told) == len(set(told))
    assert before < set(told)


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
