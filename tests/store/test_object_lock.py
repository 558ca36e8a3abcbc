"""The lock in an object store: one holder at a time, whatever became of the one before."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from raysweep.store import object_lock
from raysweep.store.lock import HeldError
from raysweep.store.object_lock import LostError, hold_object, holder, machine
from raysweep.store.places import create, listing, put_bytes, read_bytes

HOLDER = """
import sys, time
from raysweep.store.object_lock import hold_object
from raysweep.store.places import location
with hold_object(location(sys.argv[1], {"endpoint_url": sys.argv[2]})):
    print("held", flush=True)
    time.sleep(60)
"""


def said(lock: Any, name: str) -> dict[str, Any]:
    return dict(json.loads(read_bytes(lock / name)))


def claim(lock: Any, name: str, **changes: Any) -> None:
    """What a holder elsewhere has written."""
    words = {
        "token": "other",
        "pid": 1,
        "host": "elsewhere",
        "machine": "another",
        "since": "2026-01-01T00:00:00+00:00",
    }
    put_bytes(lock / name, json.dumps(words | changes).encode())


def test_a_lock_is_held_and_let_go_of(remote: Any) -> None:
    lock = remote / ".lock"
    assert holder(lock) is None
    for number in (1, 2, 3):
        with hold_object(lock) as held:
            held.check()
            now = holder(lock)
            assert (now.number, now.held, now.stale) == (number, True, False)
            assert now.words.startswith(f"process {os.getpid()} on {socket.gethostname()}, since ")
            with pytest.raises(HeldError) as caught, hold_object(lock):
                pass
            assert str(caught.value) == now.words
        assert list(listing(lock)) == [f"{number:06d}"], "numbers go up, and only the last stays"
        assert (holder(lock).held, holder(lock).stale) == (False, False)


def test_it_is_let_go_of_after_an_exception(memory: Any) -> None:
    with pytest.raises(ZeroDivisionError), hold_object(memory / ".lock"):
        raise ZeroDivisionError
    assert not holder(memory / ".lock").held


def test_what_another_process_holds_is_refused_and_is_free_once_it_is_killed(s3: Any, bucket: Any) -> None:
    command = [sys.executable, "-c", HOLDER, str(bucket / ".lock"), s3.endpoint]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    try:
        with (
            pytest.raises(HeldError, match=f"process {process.pid} on {socket.gethostname()}, since "),
            hold_object(bucket / ".lock"),
        ):
            pass
    finally:
        process.kill()
        process.communicate()
    assert holder(bucket / ".lock").stale
    with hold_object(bucket / ".lock"):
        assert said(bucket / ".lock", "000002")["pid"] == os.getpid()


def test_a_holder_elsewhere_is_dead_once_it_is_not_heard_of(remote: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = remote / ".lock"
    claim(lock, "000004")
    with pytest.raises(HeldError, match="process 1 on elsewhere, since 2026"), hold_object(lock):
        pass
    monkeypatch.setattr(object_lock, "STALE_SECONDS", 0.5)
    time.sleep(1.6)  # S3 tells whole seconds
    assert holder(lock).stale
    with hold_object(lock):
        assert list(listing(lock)) == ["000005"]
    assert list(listing(remote)) == [".lock/000005"], "no clock is left behind"


def test_a_heartbeat_keeps_the_lock(remote: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_lock, "BEAT_SECONDS", 0.05)
    lock = remote / ".lock"
    with hold_object(lock) as held:
        until = time.monotonic() + 10
        while said(lock, "000001").get("beats", 0) < 2:
            assert time.monotonic() < until
            time.sleep(0.02)
        held.check()
        claim(lock, "000002")  # another process took it over, for this one was stopped for long
        while held._thread.is_alive() and time.monotonic() < until:
            time.sleep(0.02)
        with pytest.raises(LostError):
            held.check()
    assert said(lock, "000002")["token"] == "other", "what is another's is left alone"
    assert holder(lock).held


def test_a_holder_that_was_not_heard_of_asks_before_it_goes_on(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a machine's sleep, or while no heartbeat reached the store: the next one may come too late."""
    lock = memory / ".lock"
    with hold_object(lock) as held:
        monkeypatch.setattr(object_lock, "STALE_SECONDS", -1.0)
        held.check()
        assert said(lock, "000001")["beats"] == 1, "and says that it lives"
        claim(lock, "000002")
        with pytest.raises(LostError):
            held.check()
    assert said(lock, "000002")["token"] == "other"


def test_of_many_that_begin_at_once_one_holds(bucket: Any) -> None:
    lock, barrier = bucket / ".lock", threading.Barrier(4)
    outcomes: list[str] = []
    end = threading.Event()

    def begin() -> None:
        barrier.wait()
        try:
            with hold_object(lock):
                outcomes.append("held")
                end.wait(20)
        except HeldError:
            outcomes.append("refused")

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 20
    while len(outcomes) < 4 and time.monotonic() < until:
        time.sleep(0.02)
    end.set()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held", "refused", "refused", "refused"]


def test_a_number_that_others_have_used_and_removed_meanwhile_is_given_up(
    remote: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paused between looking and creating: another took number 2 and released it, a third has number 3."""
    lock, third = remote / ".lock", contextlib.ExitStack()
    with hold_object(lock):
        pass

    def paused(place: Any, data: bytes) -> bool:
        monkeypatch.setattr(object_lock, "create", create)
        with hold_object(lock):
            pass
        third.enter_context(hold_object(lock))
        return create(place, data)

    monkeypatch.setattr(object_lock, "create", paused)
    with third:
        with pytest.raises(HeldError) as caught, hold_object(lock):
            pass
        assert str(caught.value).startswith(f"process {os.getpid()} on ")
        assert list(listing(lock)) == ["000003"], "its own is removed again"
    assert not holder(lock).held


def test_a_removed_lock_is_noticed_at_the_next_check(remote: Any) -> None:
    with hold_object(remote / ".lock") as held:
        held.check()
        (remote / ".lock" / "000001").unlink()
        held.check(ask=False)
        with pytest.raises(LostError):
            held.check()


def test_a_lock_that_was_made_although_the_answer_got_lost_is_held(
    memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(place: Any, data: bytes) -> bool:
        create(place, data)
        return create(place, data)  # tried again: it is there already

    monkeypatch.setattr(object_lock, "create", lose)
    with hold_object(memory / ".lock"):
        assert holder(memory / ".lock").held


def test_a_damaged_lock_is_nobody_s_after_a_while(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put_bytes(memory / ".lock" / "000001", b"{")
    with pytest.raises(HeldError, match="process unknown"), hold_object(memory / ".lock"):
        pass
    monkeypatch.setattr(object_lock, "STALE_SECONDS", -1.0)
    with hold_object(memory / ".lock"):
        assert holder(memory / ".lock").number == 2


def test_a_machine_is_told_from_another_boot_of_it() -> None:
    assert machine() == machine()
    assert len(machine()) > 8
