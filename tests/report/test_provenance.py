"""What the report says of a run's making, from its plan, its log and its commits."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from raysweep.engine.folder import RunFolder
from raysweep.engine.graph import Graph, Task
from raysweep.report.provenance import provenance

ABOUT = {
    "name": "mine",
    "command": "raysweep run mine.yaml",
    "versions": {"raysweep": "0.1.0"},
    "checkpoints": [{"model": "m", "role": "base"}],
    "datasets": [{"dataset": "d", "model": "m", "examples": "40", "left_out": "0", "cut": "0"}],
}
GRAPH = Graph(
    (Task("substitute", "m", "d", ("a", "b")), Task("similarity", "m", "d", ("c",), results={"dynamics": "r"}))
)


@pytest.fixture
def folder(tmp_path):
    """A run folder with four commits, one of them of an earlier config."""
    folder = RunFolder(tmp_path)
    folder.write_plan("name: mine\n", GRAPH, ABOUT)
    for name, key, measured in (
        ("substitute-m-d-1", "a", {"seconds": 1.5, "layer_applications": 900}),
        ("substitute-m-d-2", "b", {"seconds": 2.0, "layer_applications": 800}),
        ("capture-m-d-1", "c", {"seconds": 0.25, "layer_applications": 24}),
        ("dynamics-m-d-1", "r", {"seconds": 9.0}),
        ("substitute-m-d-3", "earlier", {"seconds": 50.0}),
    ):
        folder.chunks.commit(name, None, parts={key: None}, extra={"log": {"measured": measured}})
    return folder


def logged(folder, *events):
    """Write the log: names of events, or (name, details)."""
    lines = []
    for at, event in enumerate(events):
        name, details = event if isinstance(event, tuple) else (event, {})
        lines.append(json.dumps({"time": f"2025-11-23T08:{at:02d}:00+00:00", "event": name, **details}))
    folder.events.write_text("".join(line + "\n" for line in lines))


FAILED = ("call_failed", {"call": "substitute m/d 0-1 chunk 2", "error": "RuntimeError: no memory"})


def test_what_the_plan_tells(folder):
    logged(folder, "run_started", ("run_finished", {"seconds": 12.5}))
    found = provenance(folder, GRAPH, ABOUT, {})
    assert (found.name, found.command, found.config_yaml) == ("mine", "raysweep run mine.yaml", "name: mine\n")
    assert (found.versions, found.checkpoints, found.datasets) == (
        ABOUT["versions"],
        ABOUT["checkpoints"],
        ABOUT["datasets"],
    )
    assert (found.created, found.duration_s) == ("2025-11-23T08:00:00+00:00", 12.5)
    assert (found.failures, found.warnings) == ([], [])


def test_only_the_latest_start_counts(folder):
    logged(
        folder,
        "run_started",
        FAILED,
        ("run_finished", {"seconds": 12.5}),
        "chunk_committed",
        "run_started",
        "call_started",
    )
    found = provenance(folder, GRAPH, ABOUT, {})
    assert (found.created, found.duration_s, found.failures) == ("2025-11-23T08:04:00+00:00", None, [])
    logged(folder, "run_started", "run_interrupted", "run_started", FAILED, ("run_finished", {"seconds": 3.0}))
    found = provenance(folder, GRAPH, ABOUT, {})
    assert (found.created, found.duration_s) == ("2025-11-23T08:02:00+00:00", 3.0)
    assert found.failures == ["substitute m/d 0-1 chunk 2: RuntimeError: no memory"]


def test_a_run_that_was_killed_before_its_first_event(folder):
    folder.events.write_bytes(b"")
    found = provenance(folder, GRAPH, ABOUT, {})
    assert (found.created, found.duration_s, found.failures) == ("", None, [])


def test_time_is_summed_over_the_commits_in_use(folder):
    logged(folder, "run_started")
    assert provenance(folder, GRAPH, ABOUT, {}).timings == [
        {"what": "capture", "seconds": "0.25", "detail": "1 commits, 24 layer applications on batches"},
        {"what": "substitute", "seconds": "3.50", "detail": "2 commits, 1,700 layer applications on batches"},
    ]


def test_what_was_left_out_is_a_warning(folder):
    logged(folder, "run_started")
    counted = {"left_out": "3", "cut": "12", "blank_responses": "2", "answers_cut": "5"}
    about = {**ABOUT, "datasets": [{**ABOUT["datasets"][0], **counted}]}
    losses = pd.DataFrame(
        {"model": "m", "dataset": ["d", "d", "e", "e"], "loss": [np.nan, np.nan, 1.0, 2.0]},
    )
    assert provenance(folder, GRAPH, about, {"substitution": losses}).warnings == [
        "d (for m): 3 of 43 records were skipped. They have no response token, or cutting them to max_tokens or to the model's context "
        "leaves none",
        "d (for m): 12 of 40 examples were cut to max_tokens or to the model's context",
        "d (for m): 2 of 40 examples have a blank response. Their loss comes only from tokens of the prompt template",
        "d (for m): 5 of 40 examples lose a part of their answer, because the chat template drops or rewrites it. The loss covers "
        "only the rest",
        "d on m: 2 of 2 losses are NaN and are skipped in every mean",
    ]
