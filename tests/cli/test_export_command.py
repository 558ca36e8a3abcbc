"""`raysweep export`: a run as the paper's files, read back by `raysweep correlate`."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from command_line import Result, content

from raysweep import api
from raysweep.store.places import location, put_bytes


def test_correlate_finds_the_runs_own_figures_in_what_is_exported(swept, raysweep, tmp_path):
    _, run = swept
    before = content(run)
    out = tmp_path / "out"
    told = raysweep("export", run, "--format", "paper", "--out", out)
    assert (told.code, told.err) == (0, "")
    assert told.out.startswith("wrote 10 files: ")
    assert content(run) == before
    [matrix] = out.glob("*/*_linear_cka.pt")
    correlation = pd.read_parquet(run / "results" / "correlation.parquet")
    assert sorted(correlation["width"]) == [1, 2]
    for row in correlation.itertuples():
        folder = out / row.model / row.dataset / f"width_{row.width}"
        neighbourhood = ["--neighbourhood", row.neighbourhood]
        told = raysweep("correlate", "--dynamics", matrix, "--losses", folder, *neighbourhood, "--json")
        assert told.code == 0
        figures = json.loads(told.out)["figures"]
        assert figures["spearman"] == pytest.approx(row.spearman, abs=1e-12)
        assert figures["n_layers"] == row.n_layers


@pytest.fixture(scope="module")
def spoken(world, tmp_path_factory):
    """A run of one width with the text of three records under each window, in a folder `run`."""
    substitution = {"widths": [2], "generate": {"examples": 3, "tokens": 4}}
    config = {
        "name": "mine",
        "models": [{"name": "m", "base": str(world / "base"), "tuned": {"d": str(world / "tuned")}}],
        "datasets": [{"name": "d", "path": str(world / "counts.jsonl"), "format": "gsm8k"}],
        "studies": {"substitution": substitution, "similarity": {}},
        "execution": {"chunk": 6, "device": "cpu"},
        "storage": str(tmp_path_factory.mktemp("spoken") / "run"),
    }
    return api.run(config)


def texts_at(spoken, place):
    """Compare the texts in files with those of the run."""
    texts = spoken.generation.set_index(["intervention", "example_id"])
    for start in range(4):
        lines = (place / "m" / "d" / f"prune_{start}.5.jsonl").read_text().split("\n")
        records = [json.loads(line) for line in lines[:12]]
        for example, record in enumerate(records[:3]):
            row = texts.loc[f"window {start}-{start + 1}", example]
            told = (record["Instrunction"], record["groundtruth"], record["output"])
            assert told == (row["prompt"], row["reference"], row["text"])
        assert [record["output"] for record in records[3:]] == [None] * 9


def test_texts_are_those_of_the_run(spoken, raysweep, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert raysweep("export", spoken.folder).code == 0
    texts_at(spoken, tmp_path / "run-paper")


def test_a_run_in_an_object_store_is_exported_to_a_folder(spoken, s3, raysweep, tmp_path):
    root = location(s3.url("spoken"), {"endpoint_url": s3.endpoint})
    for name in content(spoken.folder):
        path = spoken.folder / name
        if path.is_file():
            put_bytes(root / ("events/000001-aaaaaaaa.jsonl" if name == "events.jsonl" else name), path.read_bytes())
    arguments = [s3.url("spoken"), "--option", f"endpoint_url={s3.endpoint}", "--out", tmp_path / "out"]
    told = raysweep("export", *arguments)
    assert told == Result(0, f"wrote 5 files: {tmp_path / 'out'}\n", "")
    texts_at(spoken, tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["{run}", "--format", "csv"], "unknown format 'csv'; known: paper"),
        (["{run}", "--out", "{run}"], "--out '{run}' is not empty; give a new folder, or empty this one"),
        (["{run}", "--out", "s3://bucket/x"], "--out 's3://bucket/x' is a URL; files are exported to a local folder"),
        (["{run}/none"], "run folder '{run}/none' does not exist"),
        (["{run}/results"], "'{run}/results' is not a run folder (it has no events.jsonl and plan.json)"),
    ],
)
def test_export_refuses(swept, raysweep, arguments, told):
    _, run = swept
    before = content(run)
    said = raysweep("export", *(argument.format(run=run) for argument in arguments))
    assert said == Result(2, "", f"error: {told.format(run=run)}\n")
    assert content(run) == before
