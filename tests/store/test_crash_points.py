"""Run folders, trainings and exports after a kill, a power cut or a failing call at every point: they resume, or say by name why not.

Every call that the real code makes on a path of the folder is a point (file_calls.py). What is computed stands in for models.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pandas as pd
import pyarrow as pa
import pytest
from file_calls import ERRORS, Cut, failing, recorded, unseen

from raysweep.engine.calls import Commit
from raysweep.engine.disk import failures_told
from raysweep.engine.events import CHUNK_COMMITTED, read_events
from raysweep.engine.folder import RunFolder
from raysweep.engine.graph import Graph
from raysweep.engine.run_log import log_unlogged, open_log
from raysweep.engine.training_work import _kept
from raysweep.errors import RaysweepError
from raysweep.report.export import export_paper
from raysweep.store.artifacts import publish_file, sweep_temporaries
from raysweep.store.whole_folder import publish_folder
from raysweep.studies.training_checkpoints import mark_whole, start_from

Tables = dict[str, list[float]]


def run(root: Path) -> Tables:
    """A run of two chunks with states beside their tables, as the driver and a worker do it; the rows of each part."""
    with failures_told(root):
        folder = RunFolder(root)
        folder.check_usable()
        folder.make()
        with folder.locked(), open_log(folder, None) as log:
            sweep_temporaries(root)
            folder.forget_broken()
            folder.write_plan("name: x", Graph(()), {})
            log_unlogged(folder, log)
            done = folder.committed()
            for n in range(2):
                if f"part-{n}" not in done:
                    _chunk(folder, n, log.emit)
        return _tables(folder)


def _chunk(folder: RunFolder, n: int, emit: Callable[..., None]) -> None:
    states = folder.activations("m", "d")
    file = f"layer=000/part-{os.urandom(4).hex()}.arrow"
    entry = publish_file(states, file, lambda path: path.write_bytes(b"states %d" % n), rows=1)
    table = pa.table({"part": [f"part-{n}"] * 2, "loss": [n + 0.25, n + 0.5]})
    folder.check_held()
    kept = folder.commit(Commit(f"c-{n}", (f"part-{n}",), table, (entry,), {"folder": "activations/m/d"}), {"n": n})
    emit(CHUNK_COMMITTED, commit=kept.name, keys=list(kept.parts))


def _tables(folder: RunFolder) -> Tables:
    for manifest in folder.chunks.manifests():
        for entry in manifest.files:
            assert (folder.activations("m", "d") / entry.path).read_bytes() == b"states %d" % int(manifest.name[-1])
    return {key: folder.chunks.read_parts([key])["loss"].to_pylist() for key in sorted(folder.committed())}


def batches(root: Path) -> Tables:
    """A run of three chunks that are committed together, as the driver does it; the rows of each part."""
    with failures_told(root):
        folder = RunFolder(root)
        folder.make()
        with folder.locked(), open_log(folder, None) as log:
            sweep_temporaries(root)
            folder.forget_broken()
            folder.write_plan("name: x", Graph(()), {})
            log_unlogged(folder, log)
            done = folder.committed()
            new = [n for n in range(3) if f"part-{n}" not in done]
            tables = [pa.table({"part": [f"part-{n}"], "loss": [n + 0.25]}) for n in new]
            commits = [Commit(f"c-{n}", (f"part-{n}",), table) for n, table in zip(new, tables, strict=True)]
            if commits:
                folder.check_held()
            for kept in folder.commit_all([(commit, {"n": commit.name}) for commit in commits]):
                log.emit(CHUNK_COMMITTED, commit=kept.name, keys=list(kept.parts))
        return _tables(folder)


def train(root: Path) -> Tables:
    """A training of two steps whose weights are kept, as a worker and the driver do it; the weights of each step."""
    with failures_told(root):
        folder, key = RunFolder(root), "k" * 32
        folder.make()
        with folder.locked(), open_log(folder, None) as log:
            folder.forget_broken()
            folder.write_plan("name: x", Graph(()), {})
            log_unlogged(folder, log)
            if key not in folder.committed():
                work = folder.training(key)
                work.mkdir(parents=True, exist_ok=True)
                files = _train(work, root / "checkpoints" / "m")
                table = pa.table({"part": [key], "loss": [0.5]})
                kept = folder.commit(Commit("t", (key,), table, tuple(files), {"folder": "checkpoints/m"}), {})
                log.emit(CHUNK_COMMITTED, commit=kept.name, keys=list(kept.parts))
                folder.forget_training(key)
    with unseen():
        found = sorted((root / "checkpoints").rglob("weights"))
        return {path.parent.name: [float(path.read_text())] for path in found}


def _train(work: Path, kept: Path) -> list[object]:
    """Each step's weight is one more than the last; a torn or missing one would show."""
    start = start_from(work, "this")
    weight = int((start / "weights").read_text()) if start else 0
    for step in range(weight + 1, 3):
        _write(work / f"step-{step}", step)
        checkpoint = work / f"checkpoint-{step}"
        checkpoint.mkdir()
        (checkpoint / "weights").write_text(str(step))
        mark_whole(checkpoint, "this")
    _write(work / "final", 2)
    return [entry for name in ("step-1", "step-2", "final") for entry in _kept(work / name, kept, name)]


def _write(folder: Path, weight: int) -> None:
    part, aside = folder.with_name(f"{folder.name}.part"), folder.with_name("aside")
    for left in (part, aside):
        shutil.rmtree(left, ignore_errors=True)
        left.mkdir()
    (part / "weights").write_text(str(weight))
    publish_folder(part, folder, aside=aside)


def export(root: Path) -> Tables:
    """An export, as the command writes it; a second one is not needed if the first is there."""
    windows = [(0, 1, 0.5), (1, 2, 0.75), (0, 2, 1.0)]
    rows = [
        {"start": start, "stop": stop, "centre": (start + stop - 1) / 2, "layers": f"{start}-{stop}", "loss": loss}
        | {
            "model": "m",
            "dataset": "d",
            "kind": "window",
            "width": stop - start,
            "coefficient": 1.0,
            "estimator": "exact",
        }
        | {"example_id": 0, "n_tokens": 1}
        for start, stop, loss in windows
    ]
    out = root / "out"
    with failures_told(root):
        if not out.exists() or not any(out.iterdir()):
            export_paper({"substitution": pd.DataFrame(rows)}, out)
    with unseen():
        found = sorted(path for path in out.rglob("*") if path.is_file())
        return {path.name: [json.loads(line)["loss"] for line in path.read_text().splitlines()[:-2]] for path in found}


WORK = {"run": run, "batches": batches, "training": train, "export": export}


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A folder in memory where there is one: thousands of small folders are made and removed."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture(params=WORK)
def work(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Tables]:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # file_calls.py models it
    return WORK[request.param]


def check(root: Path, expected: Tables, again: Callable[[Path], Tables], point: str) -> None:
    """What is left resumes to the same tables, and each commit is logged once."""
    assert again(root) == expected, point
    log = [event for event in read_events(root / "events.jsonl") if event["event"] == CHUNK_COMMITTED]
    assert set(Counter(event["commit"] for event in log).values()) <= {1}, point


def test_a_kill_or_a_power_cut_after_any_call_is_resumed_from(work: Callable[[Path], Tables], in_memory: Path) -> None:
    (in_memory / "whole").mkdir()
    with recorded(in_memory / "whole") as found:
        expected = work(in_memory / "whole")
    assert len(found.moments) > 15
    generator = random.Random(0)
    for n, moment in enumerate(found.moments):
        for cut in get_args(Cut):
            root = in_memory / f"{n}-{cut}"
            moment.leave(root, cut, generator)
            check(root, expected, work, f"{cut} after call {n}, {moment.call}")
            shutil.rmtree(root)


def attempt(work: Callable[[Path], Tables], root: Path) -> Tables | None:
    """What it makes; None where it ends in words that name the folder."""
    try:
        return work(root)
    except RaysweepError as error:
        if str(root) not in str(error):
            raise
        return None


@pytest.mark.parametrize("number", ERRORS, ids=["EIO", "ENOSPC", "EPERM"])
def test_any_call_may_fail(work: Callable[[Path], Tables], in_memory: Path, number: int) -> None:
    (in_memory / "whole").mkdir()
    with failing(in_memory / "whole", number, 0) as counted:
        expected = work(in_memory / "whole")
    assert counted.calls > 50
    for n in range(1, counted.calls + 1):
        root = in_memory / str(n)
        root.mkdir()
        with failing(root, number, n) as failed:
            found = attempt(work, root)
            assert found in (expected, None), failed.failed
        check(root, expected, work, failed.failed)
        shutil.rmtree(root)
