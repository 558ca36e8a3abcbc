"""Where the user's cache is."""

from __future__ import annotations

from pathlib import Path

import pytest

from raysweep.errors import InputError
from raysweep.user_cache import user_cache


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("RAYSWEEP_CACHE", raising=False)
    return tmp_path


def test_it_is_in_the_home_folder(home: Path) -> None:
    assert user_cache() == home / ".cache" / "raysweep"


def test_variables_move_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert user_cache() == Path("/elsewhere/raysweep")
    monkeypatch.setenv("RAYSWEEP_CACHE", "~/mine")
    assert user_cache() == home / "mine"
    monkeypatch.setenv("RAYSWEEP_CACHE", "here")
    assert user_cache() == Path.cwd() / "here"


@pytest.mark.parametrize("value", ["", "relative/folder"])
def test_what_the_standard_says_to_ignore_is_ignored(home: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("RAYSWEEP_CACHE", "")
    assert user_cache() == home / ".cache" / "raysweep"


def test_a_user_without_a_home_is_asked_for_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", none)
    with pytest.raises(InputError, match="set RAYSWEEP_CACHE to a folder for downloads"):
        user_cache()
