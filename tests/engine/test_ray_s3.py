"""A run on Ray whose whole folder is on an S3 server that fails every 7th request: workers write there themselves."""

from __future__ import annotations

import os

import pytest

from raysweep import api
from raysweep.engine import events
from raysweep.engine.events import read_events
from raysweep.engine.folder import RunFolder
from raysweep.store.places import location

LIMIT = ("datasets.0.limit=8", "datasets.1.limit=4")


@pytest.mark.soak  # runs that are killed are on S3 too, and compare the same tables (test_ray_kill.py)
def test_two_workers_on_s3_give_the_local_tables(s3, make_config, address, tmp_path, same_tables):
    local = api.run(make_config(tmp_path / "run", *LIMIT))
    execution = f"execution={{executor: ray, address: '{address}', chunk: 4, device: cpu, workers: 2}}"
    config = make_config(s3.url("ray"), f"storage_options={{endpoint_url: {s3.endpoint}}}", execution, *LIMIT)
    s3.fail(7)
    run = api.run(config)
    assert s3.counts()["requests"] > 100
    assert not run.failed
    same_tables(run.tables, local.tables)
    (ready,) = [e for e in read_events(RunFolder(run.folder).events) if e["event"] == events.WORKERS_READY]
    assert len({worker["pid"] for worker in ready["seen"]} | {os.getpid()}) == 3
    assert api.examine(location(config.storage, config.storage_options), checksums=True).findings == ()
