"""The protocol of locks and commits: explored as a model, and the model compared with the real store, walk by walk."""

from __future__ import annotations

import random
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from protocol import Rules, explore, logged, walk_with, without
from replay import Outcome, Replay

from raysweep.store.places import location

PARTS = [rule.name for rule in fields(Rules) if rule.name != "system_lock"]


@pytest.mark.parametrize("rules", [Rules(), Rules(system_lock=True)], ids=["object store", "folder"])
def test_three_processes_that_pause_and_crash_anywhere_do_no_harm(rules: Rules) -> None:
    states, violation = explore(3, rules)
    assert not violation
    assert states > (400 if rules.system_lock else 80_000), "it was explored"


@pytest.mark.parametrize(
    ("rule", "violation"),
    {
        "looks_again": "the lock is taken although somebody has a higher number",
        "own_tables": "a manifest names a table that is not the one that was committed",
        "exclusive_manifests": "a chunk is committed twice",
        "closes_logs": "a commit is logged twice",
        "checks": "a driver writes although it knows that the lock is lost",
        "reads_log": "the last run ended well, and its chunk is not committed or not logged",
    }.items(),
)
def test_each_part_of_the_protocol_is_needed(rule: str, violation: str) -> None:
    assert rule in PARTS
    assert explore(3, without(rule))[1] == violation


def replayed(
    root: Any, seed: int, feature: str, rules: Rules, monkeypatch: pytest.MonkeyPatch
) -> tuple[Outcome, Outcome]:
    """What the model says of a random walk on which `feature` happens, and what the real store does on it."""
    way, state = walk_with(feature, rules, random.Random(seed))
    with monkeypatch.context() as patched:
        replay = Replay(root, 3, patched)
        for step in way:
            replay.step(step)
        found = replay.outcome()
    ends = tuple(p.at if p.at in ("refused", "lost", "done") else "abandoned" for p in state.processes)
    return Outcome(ends, state.manifest, state.tables, logged(state, rules)), found


@pytest.mark.parametrize("feature", ["done", "refused", "crash", "tell"])
def test_a_folder_does_what_the_model_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, feature: str) -> None:
    for seed in range(12):
        expected, found = replayed(tmp_path / str(seed), seed, feature, Rules(system_lock=True), monkeypatch)
        assert found == expected


# A process is refused as it looks again, commits late, finds the chunk committed, logs what does not count, …
FEATURES = ["done", "refused", "refused again", "lost", "listen", "recheck", "uncounted", "tell"]


@pytest.mark.parametrize("feature", FEATURES)
def test_an_object_store_does_what_the_model_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, feature: str
) -> None:
    for seed in range(8):
        root = location(f"memory://protocol/{tmp_path.name}/{seed}")
        expected, found = replayed(root, seed, feature, Rules(), monkeypatch)
        assert found == expected


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 25))])
@pytest.mark.parametrize("feature", FEATURES)
def test_an_s3_server_does_what_the_model_does(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, feature: str, seed: int
) -> None:
    root = location(s3.url(f"protocol/{tmp_path.name}"), s3.options)
    expected, found = replayed(root, seed, feature, Rules(), monkeypatch)
    assert found == expected
