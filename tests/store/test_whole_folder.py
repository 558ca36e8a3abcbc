"""Folders that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from raysweep.store.whole_folder import install_folder


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_built_aside_and_then_named(tmp_path: Path) -> None:
    target = tmp_path / "parent" / "named"

    def build(whole: Path, scratch: Path) -> None:
        (whole / "inner").mkdir()
        (whole / "inner" / "a").write_text("1")
        (scratch / "download").write_text("not kept")
        assert not target.exists()

    install_folder(target, build)
    assert content(tmp_path) == {"parent/named/inner/a": "1"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_is_raised_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def build(whole: Path, scratch: Path) -> None:
        (whole / "a").write_text("1")
        raise error

    with pytest.raises(error):
        install_folder(tmp_path / "named", build)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("replace", "kept"), [(False, "theirs"), (True, "ours")])
def test_a_folder_that_another_process_made_meanwhile(tmp_path: Path, replace: bool, kept: str) -> None:
    def build(whole: Path, scratch: Path) -> None:
        (whole / "a").write_text("ours")
        (tmp_path / "named").mkdir()
        (tmp_path / "named" / "a").write_text("theirs")

    install_folder(tmp_path / "named", build, replace=replace)
    assert content(tmp_path) == {"named/a": kept}


def test_a_file_in_its_place_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "named").write_text("a file")
    with pytest.raises(NotADirectoryError):
        install_folder(tmp_path / "named", lambda whole, scratch: None, replace=True)
    assert content(tmp_path) == {"named": "a file"}
