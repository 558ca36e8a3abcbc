"""Links in a run folder that lead out of it: nothing behind them is written, truncated or removed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from raysweep import api
from raysweep.config import Config
from raysweep.engine.doctor import examine
from raysweep.engine.folder import RunFolder
from raysweep.errors import InputError
from raysweep.store.links import refuse_links


@pytest.fixture(scope="module")
def reported(make_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("reported") / "run"
    api.run(make_config(root, "datasets.0.limit=4", "studies={similarity: {}}", "models.0.tuned={}"))
    return root


@pytest.fixture
def finished_copy(reported: Path) -> Callable[[Path], RunFolder]:
    """A copy of a run folder with a report, to be changed."""
    return lambda target: RunFolder(shutil.copytree(reported, target))


def link(root: Path, name: str, target: Path) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).symlink_to(target)


@pytest.mark.parametrize(
    "name", ["events.jsonl", ".lock", "chunks", "activations/m/first", "report/figures", "config.yaml", "results/x"]
)
@pytest.mark.parametrize("kind", ["folder", "file", "nothing", "itself"])
def test_a_link_out_of_a_run_folder_is_refused_and_left_alone(tmp_path: Path, name: str, kind: str) -> None:
    root, outside = tmp_path / "run", tmp_path / "outside"
    root.mkdir()
    if kind == "folder":
        outside.mkdir()
        (outside / "mine.txt").write_text("mine")
    elif kind == "file":
        outside.write_text("mine")
    link(root, name, root / name if kind == "itself" else outside)
    with pytest.raises(InputError) as caught, RunFolder(root).locked():
        pass
    assert str(caught.value).startswith(f"'{root / name}' is a symbolic link to ")
    assert str(caught.value).endswith("; replace the link with a folder or file, or give another storage")
    if kind == "folder":
        assert (outside / "mine.txt").read_text() == "mine"
    elif kind == "file":
        assert outside.read_text() == "mine"
    else:
        assert not outside.exists()


def test_links_that_stay_inside_and_a_run_folder_that_is_one_are_used(tmp_path: Path) -> None:
    (tmp_path / "disk" / "trackers" / "wandb").mkdir(parents=True)
    link(tmp_path / "disk", "trackers/wandb/latest", Path("../wandb"))
    link(tmp_path / "disk", "trackers/log", tmp_path / "disk" / "trackers" / "wandb")
    (tmp_path / "run").symlink_to("disk")
    refuse_links(tmp_path / "run")
    with RunFolder(tmp_path / "run").locked():
        assert (tmp_path / "disk" / ".lock").is_file()


def test_planning_a_report_and_a_removal_do_not_follow_links(
    tmp_path: Path, finished_copy: Callable[[Path], RunFolder]
) -> None:
    folder, outside = finished_copy(tmp_path / "run"), tmp_path / "outside"
    outside.mkdir()
    (outside / "part-x.arrow").write_bytes(b"mine")
    link(folder.root, "activations/m/other", outside)
    for work in (folder.check_usable, lambda: api.open_run(str(folder.root)), lambda: examine(folder, remove=True)):
        with pytest.raises(InputError, match=r"activations/m/other' is a symbolic link to "):
            work()
    assert (outside / "part-x.arrow").read_bytes() == b"mine"


def test_a_log_that_a_backup_shares_is_not_appended_to(
    tmp_path: Path, finished_copy: Callable[[Path], RunFolder]
) -> None:
    folder = finished_copy(tmp_path / "run")
    backup = tmp_path / "events.jsonl"
    os.link(folder.events, backup)
    before = backup.read_bytes()
    api.run(folder.root / "config.yaml", [f"storage={folder.root}"])
    assert backup.read_bytes() == before
    assert folder.events.read_bytes().startswith(before)
    assert len(folder.events.read_bytes()) > len(before)


def test_a_fresh_run_removes_its_own_files_alone(tmp_path: Path, finished_copy: Callable[[Path], RunFolder]) -> None:
    folder = finished_copy(tmp_path / "run")
    mine = [folder.results / "mine.parquet", folder.report / "notes.md", folder.report / "figures" / "mine.png"]
    mine += [folder.root / "trackers" / "log", folder.root / "notes.txt"]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    folder.clear()
    assert sorted(path for path in folder.root.rglob("*") if path.is_file() and path not in mine) == sorted(
        folder.root / name for name in (".lock", "config.yaml", "events.jsonl", "plan.json")
    )
    assert all(path.read_text() == "mine" for path in mine)


@pytest.mark.parametrize(
    ("mode", "umask", "found"),
    [
        ('"700"', 0o022, 0o700),
        ("750", 0o022, 0o750),
        ("0700", 0o022, None),
        ("2750", 0o022, None),
        (None, 0o027, 0o750),
    ],
)
def test_permissions(
    tmp_path: Path, mode: str | None, umask: int, found: int | None, make_config: Callable[..., Config]
) -> None:
    more = [] if mode is None else [f"storage_mode={mode}"]
    if found is None:
        with pytest.raises(InputError, match=r"is not a folder mode that the owner can use; write it in quotes"):
            make_config(tmp_path / "run", *more)
        return
    config = make_config(tmp_path / "run", "datasets.0.limit=4", "studies={similarity: {}}", "models.0.tuned={}", *more)
    before = os.umask(umask)
    try:
        api.run(config)
    finally:
        os.umask(before)
    assert (tmp_path / "run").stat().st_mode & 0o777 == found
    loose = [path for path in (tmp_path / "run").rglob("*") if path.lstat().st_mode & umask & 0o777]
    assert loose == [], "files follow the umask"
    if mode:
        (tmp_path / "run").chmod(0o755)
        api.run(config)
        assert (tmp_path / "run").stat().st_mode & 0o777 == found, "an existing folder's are set as well"
