"""The lock: one holder at a time, and free the moment its holder is gone, however it went."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from raysweep.store.lock import HeldError, hold

HOLDER = """
import sys, time
from pathlib import Path
from raysweep.store.lock import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def held(tmp_path):
    """A lock file, and another process that holds it."""
    path = tmp_path / ".lock"
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield path, process
    process.kill()
    process.communicate()


def test_what_another_process_holds_is_refused_by_name(held):
    path, process = held
    with pytest.raises(HeldError) as caught, hold(path):
        pass
    since = json.loads(path.read_text())["since"]
    assert str(caught.value) == f"process {process.pid} on {socket.gethostname()}, since {since}"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_holder_holds_nothing(held, how):
    path, process = held
    process.send_signal(how)
    process.wait()
    with hold(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_stopped_holder_still_holds(held):
    path, process = held
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(HeldError), hold(path):
        pass


def test_the_lock_is_given_back_after_an_exception(tmp_path):
    path = tmp_path / ".lock"
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), hold(path):
            raise ZeroDivisionError
    with hold(path), pytest.raises(HeldError), hold(path):
        pass


def test_a_holder_that_has_not_said_who_it_is(tmp_path):
    path = tmp_path / ".lock"
    with hold(path):
        path.write_bytes(b"{")
        with pytest.raises(HeldError, match="process unknown"), hold(path):
            pass


def test_a_file_system_without_locks_is_worked_on_without(tmp_path, monkeypatch):
    def without(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", without)
    with hold(tmp_path / ".lock") as held:
        assert (tmp_path / ".lock").read_bytes() == b""
        assert not held.locked


def test_an_error_of_the_disk_is_not_taken_for_a_file_system_without_locks(tmp_path, monkeypatch):
    def broken(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match="Input/output"), hold(tmp_path / ".lock"):
        pass


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".lock").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="symbolic links"), hold(tmp_path / ".lock"):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize("how", ["removed", "renamed", "replaced", "folder renamed"])
def test_a_lock_file_that_is_another_one_by_now_is_noticed(tmp_path, how):
    path = tmp_path / "run" / ".lock"
    path.parent.mkdir()
    with hold(path) as held:
        assert held.locked
        assert held.is_there()
        if how == "removed":
            path.unlink()
        elif how == "folder renamed":
            path.parent.rename(tmp_path / "moved")
        else:
            path.rename(path.with_name("other"))
            if how == "replaced":
                path.touch()
        assert not held.is_there()


def test_who_asks_for_the_holder_keeps_nobody_from_it(tmp_path):
    path = tmp_path / ".lock"
    path.touch()
    asking = os.open(path, os.O_RDONLY)
    fcntl.flock(asking, fcntl.LOCK_SH)  # as `holder` has it, for a moment
    threading.Timer(0.03, os.close, [asking]).start()
    with hold(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
