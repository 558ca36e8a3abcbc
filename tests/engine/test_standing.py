"""The status of a run: what its log and its lock say together, and its table in 80 columns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from raysweep import api
from raysweep.engine.events import EventLog
from raysweep.engine.folder import RunFolder
from raysweep.engine.graph import Graph, Task
from raysweep.engine.standing import Standing, standing_of
from raysweep.store.places import location
from raysweep.studies.windows import Window

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
GRAPH = Graph(
    (
        Task("substitute", "m", "d", ("a0", "a1"), Window(0, 2)),
        Task("substitute", "m", "d", ("b0", "b1"), Window(1, 3)),
        Task("similarity", "m", "d", ("c0", "c1"), None, {"similarity": "s"}),
        Task("correlate", "m", "d", (), None, {"correlation": "r"}, ("similarity m/d",)),
        Task("similarity", "m", "e", ("e0",), None, {"similarity": "t"}),
    )
)
STARTED: dict[str, Any] = {"tasks": 5, "done": 0, "calls": {"capture": 3, "substitute": 2}, "pid": 1}


def folder_with(root: Any, *events: tuple[str, dict[str, Any]]) -> RunFolder:
    """A run folder in which nothing is committed, with this log."""
    folder = RunFolder(root)
    folder.make()
    folder.write_plan("name: x\n", GRAPH, {})
    with EventLog(folder.events) as log:
        for name, details in events:
            log.emit(name, **details)
    return folder


@contextmanager
def held(folder: RunFolder) -> Iterator[None]:
    with RunFolder(folder.root).locked():
        yield


@pytest.mark.parametrize(
    ("last", "state"),
    [
        (("run_finished", {"done": 5, "tasks": 5, "failed": [], "seconds": 1.0}), "finished"),
        (("run_interrupted", {"signal": "SIGINT"}), "interrupted"),
        (("task_done", {"task": "similarity m/d"}), "killed"),
    ],
)
def test_the_lock_says_whether_a_run_lives(tmp_path: Path, last: tuple[str, dict[str, Any]], state: str) -> None:
    folder = folder_with(tmp_path / "run", ("run_started", STARTED), last)
    assert standing_of(folder).state == state
    with held(folder):
        found = standing_of(folder)
    assert found.state == "running"
    assert found.holder is not None
    assert found.holder.startswith("process ")


def test_without_locks_nobody_knows(tmp_path: Path) -> None:
    events = [("run_started", STARTED), ("run_unlocked", {"folder": "f"}), ("task_done", {"task": "similarity m/d"})]
    assert standing_of(folder_with(tmp_path / "run", *events)).state == "running, or killed"


def test_a_lock_in_an_object_store_has_a_heartbeat() -> None:
    folder = folder_with(location("memory://standing/run", {}), ("run_started", STARTED))
    assert standing_of(folder).state == "killed"
    with held(folder):
        assert standing_of(folder).state == "running"
    assert standing_of(folder).state == "killed"


def test_parts_are_counted_by_cell_and_kind_and_time_left_by_calls(tmp_path: Path) -> None:
    done = ("call_done", {"call": "capture m/d chunk 0", "measured": {"seconds": 4.0}})
    folder = folder_with(tmp_path / "run", ("run_started", STARTED), done)
    with held(folder):
        found = standing_of(folder)
    assert found.cells == {
        ("m", "d"): {"substitute": (0, 4), "capture": (0, 2), "similarity": (0, 1), "correlate": (0, 1)},
        ("m", "e"): {"capture": (0, 1), "similarity": (0, 1)},
    }
    assert found.parts == (0, 10)
    assert found.left == pytest.approx(2 * 4.0 + 2 * 4.0)
    assert standing_of(folder).left is None, "nothing runs any more"


def test_the_text_fits_80_columns() -> None:
    kinds = dict.fromkeys(
        (
            "finetune",
            "substitute",
            "verify",
            "generate",
            "capture",
            "similarity",
            "spectrum",
            "removal",
            "correlate",
            "judge",
        ),
        (5, 8),
    )
    cells = {("a-model-with-a-long-name", f"a-data-set-with-a-long-name-too-{n}"): kinds for n in range(60)}
    found = Standing(
        {"substitute": (1, 2)},
        (625, 1000),
        {f"substitute m/d {n}": "RuntimeError: " + "no memory left on the device, " * 9 for n in range(12)},
        "running",
        ["substitute m/d"],
        {"finetune m/d": {"step": 30, "of": 100, "split": "train", "loss": 1.25, "seconds": 3.0}},
        cells,
        "process 12345 on a-host, since 2026-05-04T11:00:00+00:00",
        NOW - timedelta(seconds=12),
        754.0,
    )
    lines = found.to_text(NOW).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "running: 62 % done (625 of 1,000 parts), about 13 min left, last activity 12 s"
    assert lines[1] == "  ago"
    assert lines[2] == "  process 12345 on a-host, since 2026-05-04T11:00:00+00:00"
    assert "finetune m/d: step 30 of 100, train loss 1.25" in lines
    assert "… and 20 more; --json lists them" in lines
    assert "… and 2 more; --json lists them" in lines
    assert found.to_json()["cells"][0]["parts"]["judge"] == {"done": 5, "all": 8}


def test_of_a_real_run_every_line_fits(tmp_path: Path, make_config: Any) -> None:
    api.run(make_config(tmp_path / "run"))
    text = api.status(tmp_path / "run").to_text()
    assert text.startswith("finished: 100 % done (")
    assert max(map(len, text.splitlines())) <= 80
    assert "m on first" in text
    assert "m on second" in text
