"""Signals: one exception in the main thread, the process's own handlers afterwards, and an end by force where Python is stuck."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from raysweep import signals

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def default_handlers():
    """As a process has them that Python has just started."""
    before = {number: signal.getsignal(number) for number in NUMBERS}
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.05)


def program(code, *, grace=8.0):
    """A process that runs the code; it prints a line once it is ready for a signal."""
    head = f"import os, signal, sys, time\nfrom raysweep import signals\nsignals.GRACE_SECONDS = {grace}\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_is_an_exception_that_carries_it_and_the_handlers_come_back(number):
    before = [signal.getsignal(each) for each in NUMBERS]
    with pytest.raises(signals.Interrupted) as raised, signals.handled():
        send(number)
    assert (raised.value.number, raised.value.code) == (number, 128 + number)
    assert isinstance(raised.value, KeyboardInterrupt)
    assert signals.number_of(raised.value) == number
    assert [signal.getsignal(each) for each in NUMBERS] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert not any(thread.name == "raysweep signals" for thread in threading.enumerate())


def test_a_second_signal_does_not_cut_the_end_short():
    ended = []
    with pytest.raises(signals.Interrupted) as raised, signals.handled():  # noqa: PT012
        try:
            send(signal.SIGTERM)
        finally:
            send(signal.SIGHUP)
            ended.append("orderly")
    assert (raised.value.number, ended) == (signal.SIGTERM, ["orderly"])


def test_what_is_ignored_stays_ignored_and_a_handler_of_the_applications_own_is_called():
    got = []

    def own(number, frame):
        got.append(number)

    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, own)
    with signals.handled():
        send(signal.SIGHUP)
        send(signal.SIGTERM)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as ray.init does
        signals.renew()
        send(signal.SIGTERM)
        assert signals.received() is None
    assert got == [signal.SIGTERM] * 2
    with pytest.raises(signals.Interrupted), signals.handled(program=True):  # noqa: PT012
        send(signal.SIGHUP)
        send(signal.SIGTERM)
    assert signals.received() == signal.SIGTERM, "a program keeps them until it ends"
    signals.stand_down()
    signals._active = None


def test_outside_the_main_thread_nothing_is_touched():
    before = [signal.getsignal(each) for each in NUMBERS]
    seen = []

    def run():
        with signals.handled():
            seen.extend(signal.getsignal(each) for each in NUMBERS)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == before


def test_an_exception_that_is_lost_is_raised_again():
    class Lost:
        def __del__(self):
            with pytest.raises(signals.Interrupted):
                send(signal.SIGTERM)

    with pytest.raises(signals.Interrupted), signals.handled():  # noqa: PT012
        Lost()
        signals.check()


def test_whoever_listened_for_signals_before_still_hears_of_others():
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    signal.set_wakeup_fd(write)
    try:
        with signals.handled():
            send(signal.SIGUSR1)
            assert select.select([read], [], [], 5)[0]
            assert os.read(read, 8) == bytes([signal.SIGUSR1])
        assert signal.set_wakeup_fd(-1) == write
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGUSR1, before)
        os.close(read)
        os.close(write)


def test_a_forked_child_has_signals_of_its_own():
    read, write = os.pipe()
    with signals.handled():
        child = os.fork()
        if not child:
            os.write(write, b"ready")  # before that, Python itself drops what comes
            time.sleep(60)
            os._exit(1)
        os.read(read, 8)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        time.sleep(0.1)
        assert signals.received() is None, "its signals are not ours"
    os.close(read)
    os.close(write)


def test_an_operation_that_runs_no_handlers_is_cut_off_after_the_last_actions():
    """Key derivation is one long call without the interpreter, as an operation of torch may be."""
    process = program(
        """
        import hashlib

        def last(number):
            print("last action:", number, flush=True)

        def hung(number):
            time.sleep(60)

        signals.LAST_SECONDS = 0.5
        with signals.handled(), signals.last_action(last), signals.last_action(hung):
            print("ready", flush=True)
            hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
        """,
        grace=0.2,
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)  # until the operation goes on
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (143, "last action: 15\n")
    assert err == "what is still in progress 0.2 s after SIGTERM is cut off\n"
    assert time.monotonic() - began < 5


def test_a_later_signal_brings_the_end_by_force_forward_and_uncaught_the_exit_code_is_the_signals():
    stuck = program(
        """
        signals.REPEAT_SECONDS = 0.2
        with signals.handled():
            try:
                print("ready", flush=True)
                time.sleep(60)
            finally:
                print("ending", flush=True)
                time.sleep(60)
        """
    )
    plain = program(
        """
        with signals.handled():
            print("ready", flush=True)
            time.sleep(60)
        """
    )
    for process in (stuck, plain):
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)
    assert stuck.stdout.readline() == "ending\n"
    time.sleep(0.4)
    stuck.send_signal(signal.SIGHUP)
    _, err = stuck.communicate(timeout=5)
    assert (stuck.returncode, "is cut off" in err) == (129, True)
    _, err = plain.communicate(timeout=30)
    assert (plain.returncode, err) == (129, ""), "no traceback"
