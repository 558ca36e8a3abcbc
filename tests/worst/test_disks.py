"""Run folders that cannot be, and disks that fill up: exit code 2 before anything ran, 1 during, and never a traceback."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess

import pytest
from command_line import Result, content
from spoil import told

from raysweep.engine.events import read_events


@pytest.fixture
def mounted(tmp_path):
    """mounted("-t", "tmpfs", …) mounts something on a new folder; skips where that is not permitted."""
    done = []

    def mount(*options):
        where = tmp_path / f"mount-{len(done)}"
        where.mkdir()
        if (
            shutil.which("mount") is None
            or subprocess.run(["mount", *options, str(where)], capture_output=True).returncode
        ):
            pytest.skip("mounting is not permitted here")
        done.append(where)
        return where

    yield mount
    for where in done:
        subprocess.run(["umount", "--lazy", str(where)], check=True)


def test_a_read_only_disk_is_refused(world, raysweep, mounted):
    where = mounted("-t", "tmpfs", "-o", "size=1m,ro", "tmpfs")
    for storage in (where, where / "a" / "b"):
        for command in ("run", "plan"):
            refused = raysweep(command, world / "config.yaml", "--set", f"storage={storage}")
            assert refused == Result(
                2,
                "",
                f"error: storage '{storage}' cannot be written to ('{where}': its file system is read-only); give another "
                "folder\n",
            )


def test_a_disk_without_room_is_refused(world, raysweep, mounted):
    where = mounted("-t", "tmpfs", "-o", "size=256k", "tmpfs")
    refused = raysweep("run", world / "config.yaml", "--set", f"storage={where / 'run'}")
    assert refused.code == 2
    assert told(
        refused,
        f"storage '{where}/run' has 0.3 MB free, and the run needs about 1.1 MB; free some space, or give another "
        "folder",
    ), refused.err
    assert list(where.iterdir()) == []


def test_a_file_system_without_inodes_is_named(world, raysweep, mounted):
    where = mounted("-t", "tmpfs", "-o", "size=20m,nr_inodes=40", "tmpfs")
    more = ["--set", f"storage={where / 'run'}", "--set", "execution.chunk=1"]
    ended = raysweep("run", world / "config.yaml", *more)
    assert (ended.code, ended.out) == (1, "")
    last = ended.err.splitlines()[-1]
    assert (
        f"'{where}/run' cannot be written to: no inodes left on its file system, which holds 40 files at most (wri"
        in last
    )
    assert last.endswith("; what is committed is kept; remove files there and run again")
    refused = raysweep("run", world / "config.yaml", *more)
    assert refused.code == 2
    assert told(
        refused,
        f"storage '{where}/run' is on a file system that has no inodes free (40 in all), so no file can be created; remove files "
        "there, or give another folder",
    ), refused.err
    subprocess.run(["mount", "-o", "remount,nr_inodes=4000", str(where)], check=True)
    assert raysweep("run", world / "config.yaml", *more).code == 0


def test_a_disk_that_fills_up_ends_the_run_and_keeps_what_is_committed(world, raysweep, mounted, monkeypatch):
    where = mounted("-t", "tmpfs", "-o", "size=1200k", "tmpfs")
    (where / "filler").write_bytes(b"x" * 1_080_000)
    monkeypatch.setattr("raysweep.engine.disk._ASIDE", 0)
    more = ["--set", f"storage={where / 'run'}", "--set", "execution.chunk=1"]
    ended = raysweep("run", world / "config.yaml", *more)
    assert (ended.code, ended.out) == (1, "")
    assert "Traceback" not in ended.err
    last = ended.err.splitlines()[-1]
    assert last.startswith(f"error: the run folder '{where}/run' cannot be written to: No space left on device")
    assert last.endswith("; what is committed is kept; free some space there and run again")
    committed = [e for e in read_events(where / "run" / "events.jsonl") if e["event"] == "chunk_committed"]
    assert committed
    (where / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,size=20m", str(where)], check=True)
    resumed = raysweep("run", world / "config.yaml", *more)
    assert resumed.code == 0, resumed.err
    keys = [
        k for e in read_events(where / "run" / "events.jsonl") if e["event"] == "chunk_committed" for k in e["keys"]
    ]
    assert len(keys) == len(set(keys)), "nothing is computed twice"


@pytest.mark.parametrize("place", ["raysweep.engine.work.write_part", "raysweep.engine.folder.publish_json", "raysweep.report.tables.publish", "raysweep.store.artifacts.os.replace"])  # fmt: skip
def test_a_full_disk_wherever_it_is_met(place, world, raysweep, monkeypatch):
    """The error is injected, so that this is tested where nothing can be mounted."""

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "some/file")

    with monkeypatch.context() as patch:
        patch.setattr(place, full)
        ended = raysweep("run", world / "config.yaml")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.splitlines()[-1] == (
        f"error: the run folder '{world.parent}/run' cannot be written to: No space left on device (writing "
        "some/file); what is committed is kept; free some space there and run again"
    )
    assert "Traceback" not in ended.err
    assert raysweep("run", world / "config.yaml").code == 0


@pytest.mark.parametrize(
    ("storage", "expected"),
    [
        ("{w}/counts.jsonl", "storage '{w}/counts.jsonl' is a file; give a folder"),
        ("{w}/counts.jsonl/run", "storage '{w}/counts.jsonl/run' is inside '{w}/counts.jsonl', which is a file; give another folder"),
        ("{w}/base", "storage '{w}/base' is neither empty nor a run folder (it has '*'); give another folder"),
        ("{w}/" + "n" * 300, "storage '{w}/" + "n" * 300 + "' cannot be used (File name too long); give another folder"),
        ("/proc/raysweep/run", "storage '/proc/raysweep/run' cannot be created (*); give another folder"),
    ],
)  # fmt: skip
def test_an_output_folder_that_cannot_be_one(storage, expected, world, raysweep, tmp_path):
    before = content(tmp_path)
    refused = raysweep("run", world / "config.yaml", "--set", f"storage={storage.replace('{w}', str(world))}")
    assert (refused.code, refused.out) == (2, "")
    assert told(refused, expected.replace("{w}", str(world))), refused.err
    assert content(tmp_path) == before
