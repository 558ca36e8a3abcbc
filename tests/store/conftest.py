"""A place to store things, of each kind that is tested: a folder, fsspec's memory, a real S3 server."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raysweep.store.places import location, remove_below


@pytest.fixture
def memory() -> Iterator[Any]:
    place = location(f"memory://tests/{secrets.token_hex(4)}")
    yield place
    remove_below(place)


@pytest.fixture
def bucket(s3: Any) -> Any:
    return location(s3.url(f"store/{secrets.token_hex(4)}"), s3.options)


@pytest.fixture(params=["folder", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "folder":
        return tmp_path / "place"
    return request.getfixturevalue("memory" if request.param == "memory" else "bucket")


@pytest.fixture(params=["memory", "s3"])
def remote(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue("memory" if request.param == "memory" else "bucket")
