"""The history checker: it passes a history that is right, and names each kind of wrong."""

from __future__ import annotations

from history import violations


def event(time, name, *keys):
    more = {"commit": f"c{time}", "keys": list(keys)} if name == "chunk_committed" else {}
    return {"time": f"2026-01-01T00:00:{time:02d}.000+00:00", "event": name, **more}


RIGHT = [
    ("a", event(1, "run_started")),
    ("a", event(2, "chunk_committed", "k1", "k2")),
    ("a", event(3, "run_interrupted")),
    ("b", event(4, "run_started")),
    ("b", event(5, "chunk_committed", "k3")),
    ("b", event(6, "run_finished")),
]
KEYS = ("k1", "k2", "k3")
MANIFESTS = (["k1", "k2"], ["k3"])


def found(history, manifests, keys):
    return violations(history, [event for _, event in history], manifests, keys)


def test_a_right_history_has_no_violations_in_whatever_order_it_is_read():
    assert found(RIGHT, MANIFESTS, KEYS) == []
    assert found(RIGHT[::-1], MANIFESTS, KEYS) == []


def test_a_driver_that_commits_or_finishes_after_it_was_followed_is_named():
    late = [*RIGHT[:5], ("a", event(7, "chunk_committed", "k4")), ("a", event(8, "run_finished"))]
    assert found(late, [*MANIFESTS, ["k4"]], [*KEYS, "k4"]) == [
        "a committed c7 while b held the folder",
        "a finished while b held the folder",
    ]


def test_what_a_killed_driver_could_not_log_its_successor_logs_before_it_starts():
    earlier = [*RIGHT[:3], ("b", event(4, "chunk_committed", "k3")), ("b", event(5, "run_started"))]
    assert found(earlier, MANIFESTS, KEYS) == []
    written = [*earlier, ("a", event(3, "chunk_committed", "k3"))]  # and published only then: it does not count
    assert violations(written, [event for _, event in earlier], MANIFESTS, KEYS) == []


def test_a_key_twice_never_or_needlessly_committed_is_named():
    twice = [*RIGHT[:5], ("b", event(6, "chunk_committed", "k1"))]
    assert found(twice, MANIFESTS, KEYS) == ["key k1 was committed 2 times"]
    assert found(RIGHT, [*MANIFESTS, ["k4"]], [*KEYS, "k4"]) == [
        "key k4 was never committed",
        "key k4 is in a manifest and not in the log",
    ]
    assert found(RIGHT, MANIFESTS, KEYS[:2]) == ["key k3 was committed and is not needed"]
    assert found(RIGHT, MANIFESTS[:1], KEYS) == ["key k3 is in the log and in no manifest"]
