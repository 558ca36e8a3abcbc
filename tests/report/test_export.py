"""Tables as the paper's files: what is in them, that they are read back to the same figures, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from synthetic import HOSTILE, RTL, make_tables

from raysweep.errors import InputError, RunError
from raysweep.report.export import check_format, export_paper
from raysweep.studies.measured import correlate_measured, read_dynamics, read_losses

TEXTS = (HOSTILE, f"{RTL}\u2028second line\nthird", "Average loss: 0.1")


def small_tables(**changes):
    usual = {"datasets": ("sums", "chat"), "n_layers": 10, "n_examples": 7, "widths": (3,), "texts": TEXTS}
    return make_tables(**{**usual, **changes})


def records_of(path):
    """The records of a file and its last two lines; lines are told apart by line feeds alone."""
    *records, total, average = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return [json.loads(record) for record in records], total, average


def test_a_folder_a_cell_and_a_matrix_a_metric(tmp_path):
    tables = small_tables(models=("tiny", "big"), metrics=("cka_linear", "cka_rbf"))
    done = export_paper(tables, tmp_path / "new" / "out")
    expected = {
        f"{model}/{data}/prune_{c}.jsonl" for model in ("tiny", "big") for data in ("sums", "chat") for c in range(1, 9)
    }
    expected |= {
        f"{model}/{data}_{kernel}_cka.pt"
        for model in ("tiny", "big")
        for data in ("sums", "chat")
        for kernel in ("linear", "kernel")
    }
    assert set(done.files) == expected
    assert done.notes == ()
    found = {p.relative_to(done.folder).as_posix() for p in done.folder.rglob("*") if p.is_file()}
    assert found == expected
    assert [path.name for path in done.folder.parent.iterdir()] == ["out"]
    assert done.to_text() == f"wrote 40 files: {tmp_path / 'new' / 'out'}"


def test_records_carry_losses_and_the_windows_own_texts(tmp_path):
    tables = small_tables()
    generation = tables["generation"]
    generation["text"] += " under " + generation["intervention"]
    out = export_paper(tables, tmp_path / "out").folder
    records, total, average = records_of(out / "tiny" / "chat" / "prune_7.jsonl")
    rows = tables["substitution"].query("dataset == 'chat' and start == 6 and stop == 9")
    losses = rows.sort_values("example_id")["loss"].tolist()
    assert [record["loss"] for record in records] == losses
    assert float(total.removeprefix("Total loss: ")) == pytest.approx(math.fsum(losses), rel=1e-14)
    assert float(average.removeprefix("Average loss: ")) == pytest.approx(math.fsum(losses) / 7, rel=1e-14)
    assert [list(record) for record in records] == [["Instrunction", "groundtruth", "output", "loss"]] * 7
    assert [record["output"] for record in records] == [f"{text} under window 6-8" for text in TEXTS] + [None] * 4
    assert records[1]["Instrunction"] == "Question 1: what is six times seven?"
    assert records[1]["groundtruth"] == "42"
    untold, _, _ = records_of(out / "tiny" / "chat" / "prune_2.jsonl")  # no text was generated under this window
    assert [record["output"] for record in untold] == [None] * 7
    assert untold[1]["groundtruth"] == "42"


def test_texts_are_null_without_generation(tmp_path):
    tables = small_tables()
    del tables["generation"]
    records, _, _ = records_of(export_paper(tables, tmp_path / "out").folder / "tiny" / "sums" / "prune_1.jsonl")
    assert {(r["Instrunction"], r["groundtruth"], r["output"]) for r in records} == {(None, None, None)}


def test_matrices_are_plain_tensors_with_every_digit(tmp_path):
    tables = small_tables(metrics=("cka_linear", "cka_rbf"))
    tables["similarity"] = tables["similarity"].sample(frac=1, random_state=0)
    between = tables["similarity"].head(5).assign(other="another", value=7.0)
    tables["similarity"] = pd.concat([tables["similarity"], between], ignore_index=True)
    out = export_paper(tables, tmp_path / "out").folder
    S_LL = torch.load(out / "tiny" / "sums_kernel_cka.pt", weights_only=True)
    assert (S_LL.shape, S_LL.dtype) == ((10, 10), torch.float64)
    rows = tables["similarity"].query("dataset == 'sums' and metric == 'cka_rbf' and other.isna()")
    assert len(rows) == 100
    for row in rows.itertuples():
        assert S_LL[row.layer_i, row.layer_j] == row.value


@pytest.mark.parametrize("widths", [(3,), (2, 3)])
def test_reading_back_gives_the_correlation_of_the_tables(tmp_path, widths):
    tables = small_tables(widths=widths, n_layers=14, metrics=("cka_linear", "cka_rbf"))
    out = export_paper(tables, tmp_path / "out").folder
    assert len(tables["correlation"]) == 4 * len(widths)
    for row in tables["correlation"].itertuples():
        kernel = {"cka_linear": "linear", "cka_rbf": "kernel"}[row.metric]
        folder = out / row.model / row.dataset / (f"width_{row.width}" if len(widths) > 1 else "")
        dynamics = read_dynamics(out / row.model / f"{row.dataset}_{kernel}_cka.pt", row.neighbourhood)
        found = correlate_measured(dynamics, read_losses(folder))
        assert found.figures["spearman"] == pytest.approx(row.spearman, abs=1e-12)
        assert found.figures["n_layers"] == row.n_layers == 14 - row.width + 1
        assert found.centres == [start + (row.width - 1) / 2 for start in range(14 - row.width + 1)]


def test_nan_losses_stay_and_are_left_out_of_the_mean(tmp_path):
    tables = small_tables()
    losses = tables["substitution"]
    losses.loc[losses["example_id"] == 3, "loss"] = math.nan
    path = export_paper(tables, tmp_path / "out").folder / "tiny" / "sums" / "prune_4.jsonl"
    records, _, average = records_of(path)
    assert [index for index, record in enumerate(records) if math.isnan(record["loss"])] == [3]
    known = [record["loss"] for record in records if not math.isnan(record["loss"])]
    assert float(average.removeprefix("Average loss: ")) == pytest.approx(sum(known) / 6, rel=1e-14)
    curve = read_losses(path.parent)
    assert curve.values[3] == pytest.approx(np.mean(known), rel=1e-14)
    assert "prune_4.jsonl: 1 of 7 losses are NaN and left out" in curve.notes


def test_other_changes_are_no_windows(tmp_path):
    tables = small_tables()
    plain = export_paper(tables, tmp_path / "plain").folder
    window = tables["substitution"].query("start == 2 and stop == 5")
    others = [window.assign(kind="attention", loss=9.0), window.assign(coefficient=0.5, loss=9.0)]
    as_set = window.assign(kind="set", layers="2,3,4", start=pd.NA, stop=pd.NA, centre=math.nan, loss=9.0)
    substitution = pd.concat([as_set, *others, tables["substitution"]], ignore_index=True)
    tables["substitution"] = substitution.astype({"start": "Int64", "stop": "Int64"})
    changed = export_paper(tables, tmp_path / "changed").folder
    for path in plain.rglob("*.jsonl"):
        assert (changed / path.relative_to(plain)).read_bytes() == path.read_bytes()
    assert len(list(changed.rglob("*.jsonl"))) == 16


def test_exact_losses_count_where_there_are_estimates_too(tmp_path):
    tables = small_tables()
    exact = tables["substitution"]
    tables["substitution"] = pd.concat([exact.assign(estimator="gradient", loss=9.0), exact], ignore_index=True)
    done = export_paper(tables, tmp_path / "out")
    assert done.notes == ()
    records, _, _ = records_of(done.folder / "tiny" / "sums" / "prune_4.jsonl")
    assert max(record["loss"] for record in records) < 9
    tables["substitution"] = exact.assign(estimator="gradient")
    assert (
        "tiny on sums, windows of 3 consecutive layers: losses are estimates"
        in export_paper(tables, tmp_path / "b").notes
    )


def test_what_the_files_do_not_say_is_told(tmp_path):
    tables = small_tables(datasets=("sums",))
    losses = tables["substitution"]
    tables["substitution"] = losses[~((losses["start"] == 2) & (losses["stop"] == 5) & (losses["example_id"] > 3))]
    tables["correlation"]["n_layers"] -= 2
    del tables["similarity"]
    assert export_paper(tables, tmp_path / "out").notes == (
        "tiny on sums, windows of 3 consecutive layers: some have 4 records, others 7; the run is not finished",
        "tiny on sums, windows of 3 consecutive layers: the run's own correlation leaves out centres at both ends; "
        "correlate with --drop-ends 1 to have the same",
        "the run has no CKA: no *_cka.pt are written",
    )


def test_an_empty_folder_is_taken_and_others_are_refused(tmp_path):
    tables = small_tables()
    out = tmp_path / "out"
    out.mkdir()
    export_paper(tables, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"--out '.*out' is not empty; give a new folder, or empty this one"):
        export_paper(tables, out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(InputError, match=r"link' is a file or a link; give a new folder"):
        export_paper(tables, tmp_path / "link")
    with pytest.raises(InputError, match=r"prune_1.jsonl' is a file or a link; give a new folder"):
        export_paper(tables, out / "tiny" / "sums" / "prune_1.jsonl")


@pytest.mark.parametrize("kept", [[], ["similarity"], ["similarity", "substitution"]])
def test_a_run_without_swept_windows_is_refused(tmp_path, kept):
    tables = {name: table for name, table in small_tables().items() if name in kept}
    if "substitution" in tables:
        tables["substitution"] = tables["substitution"].query("width == 0 or width == 10")
    with pytest.raises(InputError, match=r"the run has no losses of windows to export; give it studies\.substitution"):
        export_paper(tables, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)  # the matrices, after every file of losses
    with pytest.raises(RunError, match=r"out' cannot be written to: No space left on device; nothing was written"):
        export_paper(small_tables(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_format_is_refused():
    check_format("paper")
    with pytest.raises(InputError, match=r"unknown format 'papers'; did you mean 'paper'\?"):
        check_format("papers")
