"""benchmarks/gpu_check.py: its dry run on the CPU without most packages, what it finds, and what it reports."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ABSENT = (
    *("ray", "typer", "peft", "pydantic", "pandas", "scipy", "rich", "matplotlib", "datasets"),
    *("threadpoolctl", "requests", "upath", "ruptures"),
)
# Runs a script as `python SCRIPT …` does, in a process in which some packages are not installed.
WITHOUT = """
import runpy, sys

class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in absent else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

absent = set(sys.argv[1].split(","))
sys.meta_path[:] = map(Without, sys.meta_path)
sys.argv[:] = sys.argv[2:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    assert not absent & {name.partition(".")[0] for name in sys.modules}
"""


@pytest.fixture
def checks(monkeypatch):
    """The script as a module. transformers' settings for messages are as before afterwards."""
    from transformers.utils import logging

    monkeypatch.syspath_prepend(BENCHMARKS)
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    import gpu_check

    yield gpu_check
    logging.set_verbosity(before)
    if bars:
        logging.enable_progress_bar()


@pytest.fixture
def setup(checks, tmp_path):
    return checks.Setup("cpu", True, tmp_path, 60)


def test_the_dry_run_has_every_figure_without_other_packages(checks, tmp_path):
    out = tmp_path / "figures.json"
    script = [str(BENCHMARKS / "gpu_check.py"), "--device", "cpu", "--tiny", "--minutes", "30", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, ",".join(ABSENT), *script],
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS.parent)},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert {name: each["outcome"] for name, each in found["sections"].items()} == {
        section.name: "passed" for section in checks.SECTIONS
    }
    assert set(found["figures"]) == set(checks.FIGURES)
    needs_cuda = {name for name, figure in found["figures"].items() if figure["value"] is None}
    assert needs_cuda == {*checks.facts.SYNCHRONISATIONS, *checks.facts.STICKY}
    assert {found["figures"][name]["note"] for name in needs_cuda} == {"needs a CUDA device"}
    assert all(math.isfinite(figure["value"]) for figure in found["figures"].values() if figure["value"] is not None)
    lines = done.stdout.splitlines()
    assert len(lines) <= 40
    assert lines[-1] == f"0 of {len(checks.SECTIONS)} sections failed; all figures: {out}"


def test_a_device_that_computes_something_else_is_found_on_every_path(checks, setup, monkeypatch):
    """The second pair, which stands for the device's, and the checkpoints have other weights than the first."""
    pair_on, save_pair, with_noise = checks.models.pair_on, checks.models.save_pair, checks.models.with_noise
    made = []

    def noisy(models):
        return tuple(with_noise(model, 0.05) for model in models)

    def pair(device, models):
        made.append(pair_on(device, noisy(models) if made else models))
        return made[-1]

    monkeypatch.setattr(checks.models, "pair_on", pair)
    monkeypatch.setattr(checks.models, "save_pair", lambda models, folder: save_pair(noisy(models), folder))
    names = checks.correctness.names_of("llama")
    section = checks.Section("llama", lambda setup: checks.correctness.check_architecture(setup, "llama"), names)
    assert checks.run_section(setup, section)["outcome"] == "failed"
    assert {name for name in names if setup.figures[name].missed} == set(names)


def test_training_without_accelerate_is_reported_as_not_run(checks, setup, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "accelerate" else find_spec(name, *more)
    )
    sections = {section.name: section for section in checks.SECTIONS if "training" in section.name}
    assert len(sections) == 3
    outcomes = {name: checks.run_section(setup, section) for name, section in sections.items()}
    for name, section in sections.items():
        assert outcomes[name]["outcome"] == "not run"
        assert {setup.figures[figure].note for figure in section.figures} == {"not run: accelerate is not installed"}
    for name in checks.FIGURES:
        setup.figures.setdefault(name, checks.Figure(None))
    lines = checks.table(setup, outcomes)
    assert [line for line in lines if line.startswith("not run")] == [
        f"not run: {name} accelerate is not installed" for name in sections
    ]


def test_sections_are_skipped_with_a_reason_once_the_time_is_used_up(checks, tmp_path):
    setup = checks.Setup("cpu", True, tmp_path, 4)
    section = checks.Section("long", lambda setup: pytest.fail("it ran"), ("a figure",), seconds=5)
    assert checks.run_section(setup, section)["outcome"] == "not run"
    assert setup.figures["a figure"].note in (
        "not run: 4 s were left and it needs 5 s",
        "not run: 3 s were left and it needs 5 s",
    )


def test_a_failing_section_is_reported_and_the_next_one_runs(checks, tmp_path, monkeypatch, capsys):
    def fail(setup):
        raise RuntimeError("the device is on fire")

    sections = (
        checks.Section("first", fail, ("one",)),
        checks.Section("second", lambda setup: setup.add("two", 2.0, limit=1.0), ("two",)),
        checks.Section("third", lambda setup: setup.add("three", 0.5, limit=1.0), ("three",)),
        checks.Section("fourth", lambda setup: None, ("four",)),
    )
    monkeypatch.setattr(checks, "SECTIONS", sections)
    monkeypatch.setattr(checks, "FIGURES", ("one", "two", "three", "four", *checks.limits.FIGURES))
    monkeypatch.setattr(checks, "GROUPS", {})
    monkeypatch.setattr(checks.faulthandler, "dump_traceback_later", lambda *arguments, **more: None)
    monkeypatch.setattr(checks.faulthandler, "cancel_dump_traceback_later", lambda: None)
    out = tmp_path / "figures.json"
    assert checks.main(["--device", "cpu", "--tiny", "--out", str(out)]) == 1
    found = json.loads(out.read_text())
    outcomes = {name: section["outcome"] for name, section in found["sections"].items()}
    assert outcomes == {"first": "failed", "second": "failed", "third": "passed", "fourth": "failed"}
    assert found["figures"]["one"]["note"].endswith("RuntimeError: the device is on fire")
    assert found["figures"]["two"]["missed"]
    assert found["figures"]["four"]["note"] == "was not measured"
    assert "3 of 4 sections failed" in capsys.readouterr().out


def test_a_figure_that_is_not_a_number_exceeds_its_limit(checks):
    assert checks.Figure(math.nan, limit=1.0).missed
    assert not checks.Figure(None, limit=1.0).missed
    assert not checks.Figure(math.nan).missed


def test_a_missing_device_is_refused_before_anything_runs(checks, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with contextlib.suppress(SystemExit):
        checks.main(["--device", "cuda"])
        pytest.fail("it ran")
    assert "give --device cpu --tiny" in capsys.readouterr().err


def test_work_is_counted_in_real_tokens(checks, setup):
    """A layer of width 64 has 4 heads of 16, keys and values of 2 heads, and an MLP of 256."""
    model, _ = checks.models.large_models(setup)
    weights = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 256
    assert checks.speed.layer_flops(model, 3) == 2 * weights + 4 * 64 * 2
    both = checks.speed.applied_flops(model, [3, 5], 7)
    assert both == 7 * (3 * (2 * weights + 4 * 64 * 2) + 5 * (2 * weights + 4 * 64 * 3))
