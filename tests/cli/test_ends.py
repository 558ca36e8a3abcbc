"""Ends that are not happy: failures, interrupts, and their exit codes."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
from command_line import ended, started

from raysweep.engine.events import read_events
from raysweep.engine.folder import RunFolder


def test_a_failed_task_gives_exit_code_1_and_the_rest_is_kept(config, raysweep, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("the device is gone\nsomewhere")

    with monkeypatch.context() as patch:
        patch.setattr("raysweep.engine.table_work.similarity_tables", broken)
        failed = raysweep("run", config)
    assert failed.code == 1
    lines = failed.err.splitlines()
    told = [line.partition("] ")[2] for line in lines if "the device is gone" in line]
    assert told == ["failed: similarity m/d: RuntimeError: the device is gone"], "one line for all its attempts"
    log = config.parent / "run" / "events.jsonl"
    assert lines[-1] == f"error: 2 tasks failed or depend on one that failed; tracebacks are in {log}"
    assert "Traceback" not in failed.err
    first, *answer, last = failed.out.splitlines()
    assert first.startswith("On m · d the tuned model is worse than its base: "), "it has random weights"
    assert sum(line.startswith("m on d: ") for line in answer) == 1
    assert "δ" not in failed.out
    assert last == f"report: {config.parent / 'run' / 'report' / 'index.html'}"
    (event,) = [e for e in read_events(config.parent / "run" / "events.jsonl") if e["event"] == "call_failed"]
    assert "in broken" in event["traceback"]
    told = raysweep("status", config.parent / "run").out
    assert told.startswith("finished: ")
    assert "\n  2 tasks failed\n" in told or "\n  1 task failed\n" in told
    assert told.endswith("\nfailed: similarity m/d: RuntimeError: the device is gone\n")
    mended = raysweep("run", config)
    assert mended.code == 0
    assert "δ" in mended.out


def test_a_signal_gives_its_exit_code_and_a_run_that_resumes(config, raysweep, tmp_path):
    """Ctrl-C, then SIGTERM, then SIGHUP: each successor gets in at once, and the last finishes with the same tables."""
    events = tmp_path / "run" / "events.jsonl"
    many = [
        "--set",
        "execution.fuse=false",
        "--set",
        "execution.chunk=1",
        "--set",
        "studies.substitution.widths=[2]",
        "--set",
        "datasets.0.limit=5",
    ]
    again = "committed work is kept; resume with: " + shlex.join(["raysweep", "run", str(config), *many]) + "\n"
    for number, words in (
        (signal.SIGINT, "interrupted"),
        (signal.SIGTERM, "ended by SIGTERM"),
        (signal.SIGHUP, "ended by SIGHUP"),
    ):
        before = events.read_text().count("chunk_committed") if events.exists() else 0
        process = started("run", config, *many, *(["--fresh"] if not before else []))
        while (events.read_text() if events.exists() else "").count("chunk_committed") <= before:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        sent = time.monotonic()
        process.send_signal(number)
        stopped = ended(process)
        assert time.monotonic() - sent < 10
        assert (stopped.code, stopped.out) == (128 + number, "")
        assert stopped.err.endswith(f"\n{words}; {again}")
        assert "Traceback" not in stopped.err
        last = list(read_events(events))[-1]
        assert (last["event"], last["signal"]) == ("run_interrupted", number.name)
    assert raysweep("status", tmp_path / "run").out.startswith("interrupted: ")

    resumed = raysweep("run", config, *many)
    assert resumed.code == 0
    whole = raysweep("run", config, *many, "--set", f"storage={tmp_path / 'whole'}")
    assert whole.code == 0, whole.err
    for path in sorted((tmp_path / "whole" / "results").glob("*.parquet")):
        assert pq.read_table(tmp_path / "run" / "results" / path.name).equals(pq.read_table(path)), path.name
    done = [key for event in read_events(events) if event["event"] == "chunk_committed" for key in event["keys"]]
    assert len(done) == len(set(done)) == json.loads(raysweep("status", tmp_path / "run", "--json").out)["parts"]["all"]


def test_an_interrupt_anywhere_gives_exit_code_130(config, raysweep, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("raysweep.engine.preparation.inspect", interrupted)
    for command, words in (("run", "nothing was run"), ("plan", "the command did not finish; run it again")):
        stopped = raysweep(command, config)
        assert (stopped.code, stopped.err) == (130, f"interrupted; {words}\n")
    assert not (config.parent / "run").exists()


def test_a_folder_in_use_gives_exit_code_3(config, raysweep):
    run = config.parent / "run"
    assert raysweep("run", config, "--set", "studies={similarity: {}}").code == 0
    with RunFolder(run).locked():
        for command in (("run", config), ("run", config, "--wait-at-most", 0.01), ("doctor", run)):
            refused = raysweep(*command)
            assert refused.code == 3
            assert "is in use by another raysweep (process " in refused.err
    assert raysweep("run", config, "--wait", "--set", "studies={similarity: {}}").code == 0


def test_the_command_is_kept_for_the_report(config, raysweep, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["raysweep"])
    assert raysweep("run", config, "--set", "name=a name".replace(" ", "-")).code == 0
    about = json.loads((config.parent / "run" / "plan.json").read_text())["about"]
    assert about["command"] == shlex.join(["raysweep", "run", str(config), "--set", "name=a-name"])


def test_as_a_module_and_as_a_script():
    script = Path(sys.executable).with_name("raysweep")
    for command in ([sys.executable, "-m", "raysweep"], [str(script)] if script.exists() else []):
        if command:
            told = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=60)
            assert told.returncode == 0
            for name in ("demo", "sweep", "init", "plan", "run", "status", "report", "correlate"):
                assert re.search(rf"^  {name} ", told.stdout, re.MULTILINE)
