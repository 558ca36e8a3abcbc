"""Run folders and checkpoints whose names look like patterns, URLs, or chains of file systems."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from raysweep.api import correlate_files, correlate_folders, examine, export_run, open_run, status
from raysweep.engine.driver import drive
from raysweep.planned import plan_run

NAMES = ["[v2] 100% a?b #1", "s3:a::b{c}* %20 & ü"]


@pytest.mark.parametrize(("name", "absolute"), [(NAMES[0], True), (NAMES[1], False)])
def test_a_run_folder_of_any_name(name, absolute, finished, tables_of, same_tables, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished.folder.root, tmp_path / name / "run")
    run = (tmp_path if absolute else Path()) / name / "run"
    opened = open_run(str(run))
    same_tables({key: opened.tables[key] for key in tables_of(finished)}, tables_of(finished), exactly=True)
    assert opened.report.is_file()
    assert status(str(run)).to_text().startswith("finished")
    assert not examine(str(run), checksums=True).left
    export_run(str(run), str(run.parent / "exported"))
    cells = correlate_folders(run.parent / "exported")
    assert len(cells.cells) == 1
    assert not cells.failed
    losses, dynamics = (run / f"results/{table}.parquet" for table in ("substitution", "dynamics"))
    rows = pd.read_parquet(losses.absolute()).query("width == 2").groupby("centre", as_index=False)["loss"].mean()
    rows.to_csv(run.parent / "losses.csv", index=False)
    pd.read_parquet(dynamics.absolute()).query("dataset == 'first'").to_parquet(
        (run.parent / "delta.parquet").absolute()
    )
    assert len(correlate_files(run.parent / "delta.parquet", run.parent / "losses.csv").centres) > 3


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_and_records_of_any_name(
    name, make_config, finished, tables_of, same_tables, world, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(world, tmp_path / name)
    places = (f"models.0.base='{name}/base'", f"models.0.tuned.first='{name}/tuned'")
    records = tuple(f"datasets.{i}.path='{name}/{set_}.jsonl'" for i, set_ in enumerate(("first", "second")))
    config = make_config(f"{name}/run", *places, *records)
    same_tables(tables_of(drive(config)), tables_of(finished))
    assert all(done == n for done, n in plan_run(config).tasks.values())
