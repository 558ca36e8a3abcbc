"""The hub's files, taken with the hub's own client from a server on loopback, from its cache, or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server import REPOSITORY, REVISION, serve

FILES = {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"weights", "other.bin": b"not wanted"}
WANTED = ["config.json", "model.safetensors"]
ASK = f"""
import json
from raysweep.fetching.hub import HubUnavailableError, download_snapshot
try:
    folder = download_snapshot({REPOSITORY!r}, {REVISION!r}, {WANTED!r})
    print(json.dumps({{path.name: path.read_text() for path in folder.iterdir()}}))
except HubUnavailableError as error:
    print(json.dumps(str(error)))
"""


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., Any]:
    """ask(NAME=value, …): what a process with these environment variables and an empty client's cache gets."""

    def get(**environment: str) -> Any:
        settings = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
        command = [sys.executable, "-c", ASK]
        done = subprocess.run(command, env=os.environ | settings | environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return get


def test_wanted_files_come_from_the_hub_and_then_from_its_clients_cache(ask: Callable[..., Any]) -> None:
    wanted = {name: FILES[name].decode() for name in WANTED}
    with serve(FILES) as (address, asked):
        assert ask(HF_ENDPOINT=address) == wanted
        assert not any("other.bin" in path for path in asked)
        n_asked = len(asked)
        assert ask(HF_ENDPOINT=address, HF_HUB_OFFLINE="1") == wanted
        assert len(asked) == n_asked, "offline, nobody was asked"


def test_a_hub_that_lacks_a_file_is_as_good_as_none(ask: Callable[..., Any]) -> None:
    with serve({"config.json": FILES["config.json"]}) as (address, _):
        assert ask(HF_ENDPOINT=address) == f"it has no model.safetensors at revision {REVISION}"
        assert ask(HF_ENDPOINT=address, HF_HUB_OFFLINE="1") == "HF_HUB_OFFLINE is set", (
            "its cache is not complete either"
        )


def test_a_hub_that_does_not_answer_is_not_asked_again_and_again(ask: Callable[..., Any]) -> None:
    started = time.monotonic()
    assert "Connection refused" in ask(HF_ENDPOINT="http://127.0.0.1:9")
    assert time.monotonic() - started < 15, "the client's own retries take 23 s"


def test_a_repository_that_does_not_exist(ask: Callable[..., Any]) -> None:
    with serve({}) as (address, _):
        assert "404" in ask(HF_ENDPOINT=f"{address}/elsewhere")
