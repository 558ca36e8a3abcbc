"""Calls: the names of what they commit."""

from __future__ import annotations

from raysweep.engine.calls import commit_name


def test_commit_names_are_short_safe_and_unlike():
    name = commit_name("substitute", "m" * 100, "d" * 100, ["b", "a"])
    assert name == commit_name("substitute", "m" * 100, "d" * 100, ["a", "b"])
    assert name.startswith(f"substitute-{'m' * 40}-{'d' * 40}-")
    assert len(name) < 120
    assert name != commit_name("substitute", "m" * 100, "d" * 100, ["a", "c"])
