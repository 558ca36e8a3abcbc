"""A store that cannot be used is told within seconds, and before anything runs."""

from __future__ import annotations

import socket
import threading
import time

import pytest
from s3_server import BUCKET

from raysweep.engine.reach import reach
from raysweep.errors import InputError
from raysweep.store.places import listing, location

SECONDS = 15


@pytest.fixture
def deaf():
    """The address of a server that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def refusal(storage, options):
    started = time.monotonic()
    with pytest.raises(InputError) as caught:
        reach(storage, options, write=True)
    assert time.monotonic() - started < SECONDS
    return str(caught.value)


def test_a_store_that_answers_is_left_as_it_was(s3, tmp_path):
    url = s3.url(f"reach/{tmp_path.name}")
    assert str(reach(url, s3.options, write=True)) == url
    assert listing(location(url, s3.options)) == {}
    s3.fail(7)
    reach(url, s3.options, write=True)


def test_folders_are_not_looked_at(tmp_path):
    assert reach(tmp_path / "none", write=True) == tmp_path / "none"


def test_no_such_bucket(s3):
    told = refusal("s3://no-such-bucket/run", s3.options)
    assert told.startswith(
        "storage 's3://no-such-bucket/run' cannot be used (FileNotFoundError: The specified bucket does not"
    )
    assert told.endswith("; is there such a bucket? Create it first")


def test_nobody_at_the_endpoint(s3):
    told = refusal(s3.url("run"), {"endpoint_url": "http://127.0.0.1:9"})
    assert told.startswith(
        f"storage 's3://{BUCKET}/run' cannot be used (EndpointConnectionError: Could not connect to the"
    )
    assert told.endswith("; is the store up, and is storage_options.endpoint_url its address?")


def test_an_endpoint_that_does_not_answer(s3, deaf):
    told = refusal(s3.url("run"), {"endpoint_url": deaf})
    assert told.startswith(f"storage 's3://{BUCKET}/run' ")


def test_no_credentials(s3, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    location(s3.url("run"), s3.options).fs.clear_instance_cache()
    told = refusal(s3.url("run"), s3.options)
    location(s3.url("run"), s3.options).fs.clear_instance_cache()
    assert told == (
        f"storage 's3://{BUCKET}/run' cannot be used (NoCredentialsError: Unable to locate credentials); give credentials in the "
        "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or in ~/.aws"
    )


def test_options_that_the_store_does_not_know(s3):
    told = refusal(s3.url("run"), {**s3.options, "enpoint": 1})
    assert "TypeError: AioSession.__init__() got an unexpected keyword argument 'enpoint'" in told


def test_what_comes_back_changed_is_refused(s3, monkeypatch):
    from raysweep.engine import reach as module

    monkeypatch.setattr(module, "read_bytes", lambda place: b"other")
    assert "returned 5 bytes that differ from the 64 written" in refusal(s3.url("run"), s3.options)


def test_the_wait_for_an_answer_ends(s3, monkeypatch):
    from raysweep.engine import reach as module

    monkeypatch.setattr(module, "_SECONDS", 0.1)
    monkeypatch.setattr(module, "listing", lambda place: threading.Event().wait(1))
    assert refusal(s3.url("run"), s3.options) == (
        f"storage 's3://{BUCKET}/run' has not answered in 0.1 s; is the store up, and can it be reached from here?"
    )


def test_a_run_is_refused_before_it_begins(s3, make_config, raysweep, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(make_config(tmp_path / "run").to_yaml())
    for command in ("run", "plan"):
        refused = raysweep(command, config, "--set", "storage=s3://no-such-bucket/x", "--set", f"storage_options={{endpoint_url: {s3.endpoint}}}")  # fmt: skip
        assert (refused.code, refused.out) == (2, "")
        assert "is there such a bucket? Create it first" in refused.err
    refused = raysweep("status", "s3://no-such-bucket/x", "--option", f"endpoint_url={s3.endpoint}")
    assert (refused.code, refused.err) == (2, "error: run folder 's3://no-such-bucket/x' does not exist\n")
