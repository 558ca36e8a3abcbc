"""Scratch folders: gone with their process, or swept by the next one; never taken from a process that is alive."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from raysweep.store.scratch import scratch_folder

HOLDER = """
import sys, time
from pathlib import Path
from raysweep.store.scratch import scratch_folder
with scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "file").write_bytes(b"x")
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that holds a scratch folder in `tmp_path`, and that folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, Path(process.stdout.readline().strip())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_it_is_gone_at_the_end_and_after_an_error(tmp_path: Path) -> None:
    parent = tmp_path / "not" / "there"
    with scratch_folder(parent) as folder:
        (folder / "file").write_bytes(b"x")
        assert folder.parent == parent
        assert str(os.getpid()) in folder.name
    with pytest.raises(KeyError), scratch_folder(parent) as folder:
        raise KeyError
    assert list(parent.iterdir()) == []


def test_what_a_killed_process_left_is_swept(holder: tuple[subprocess.Popen[str], Path], tmp_path: Path) -> None:
    process, left = holder
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (left / "file").exists()
    (tmp_path / "mine").mkdir()
    with scratch_folder(tmp_path):
        assert not left.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"], "nothing else is touched"


def test_a_living_process_keeps_its_own(holder: tuple[subprocess.Popen[str], Path], tmp_path: Path) -> None:
    _, theirs = holder
    with scratch_folder(tmp_path):
        pass
    assert (theirs / "file").read_bytes() == b"x"
