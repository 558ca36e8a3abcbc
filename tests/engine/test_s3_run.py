"""Runs whose whole folder is in an object store: on a real S3 server that fails every 7th request, and killed there."""

from __future__ import annotations

import pytest

from raysweep import api

LIMIT = ("datasets.0.limit=8", "datasets.1.limit=4")


@pytest.fixture(scope="module")
def local(make_config, tmp_path_factory):
    """The same run in a folder."""
    return api.run(make_config(tmp_path_factory.mktemp("local") / "run", *LIMIT))


def remote(make_config, s3, name, *overrides):
    return make_config(s3.url(name), f"storage_options={{endpoint_url: {s3.endpoint}}}", *LIMIT, *overrides)


def test_a_run_on_a_store_that_fails_every_seventh_request_gives_the_local_tables(make_config, s3, local, same_tables):
    s3.fail(7)
    run = api.run(remote(make_config, s3, "failing"))
    counts = s3.counts()
    s3.fail(0)
    print(counts)
    assert not run.failed
    same_tables(run.tables, local.tables, exactly=True)
