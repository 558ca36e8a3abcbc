"""Many cells measured elsewhere: every one as the reader of one cell has it, and as a run has it; what fails, fails alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from raysweep.errors import InputError
from raysweep.studies.correlation import correlate_cell
from raysweep.studies.measured import correlate_measured, read_dynamics, read_losses
from raysweep.studies.measured_cells import correlate_cells
from raysweep.studies.similarity import similarity_matrix

LAYERS, EXAMPLES, WIDTH = 14, 12, 3


def states_of(seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(LAYERS, EXAMPLES, 9, generator=random, dtype=torch.float64).cumsum(0)


def losses_of(seed: int) -> pd.DataFrame:
    """Rows of the substitution table for all windows of three layers."""
    random = np.random.default_rng(seed)
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "kind": "window",
                    "coefficient": 1.0,
                    "estimator": "exact",
                    "width": WIDTH,
                    "centre": start + 1.0,
                    "example_id": range(EXAMPLES),
                    "loss": random.uniform(0.5, 2, EXAMPLES),
                }
            )
            for start in range(LAYERS - WIDTH + 1)
        ]
    )


def write_losses(folder: Path, losses: pd.DataFrame) -> None:
    folder.mkdir(parents=True)
    for centre, rows in losses.groupby("centre"):
        lines = [json.dumps({"output": None, "loss": loss}) for loss in rows["loss"]]
        (folder / f"prune_{centre:g}.jsonl").write_text("\n".join(lines) + "\nAverage loss: 9\n")


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """Two models on two data sets, as `export` writes them; one matrix more than losses."""
    root = tmp_path / "cells"
    for seed, (model, dataset) in enumerate([("big", "x"), ("big", "y"), ("tiny", "x"), ("tiny", "y")]):
        write_losses(root / model / dataset, losses_of(seed))
        torch.save(similarity(seed), root / model / f"{dataset}_linear_cka.pt")
    torch.save(similarity(9), root / "tiny" / "y_kernel_ckares.pt")
    torch.save(similarity(9), root / "tiny" / "spare_linear_cka.pt")
    return root


def similarity(seed: int) -> torch.Tensor:
    return torch.from_numpy(np.asarray(similarity_matrix(states_of(seed), "cka_linear")))


@pytest.mark.parametrize(("drop_ends", "diagonal"), [(0, True), (1, True), (2, False)])
def test_every_cell_has_the_figures_of_a_run_and_of_one_cell_alone(cells: Path, drop_ends: int, diagonal: bool) -> None:
    found = correlate_cells(cells, cells, drop_ends=drop_ends, diagonal=diagonal)
    linear = [each for each in found.cells if each.cell.kernel == "linear"]
    names = [("big", "x"), ("big", "y"), ("tiny", "x"), ("tiny", "y")]
    assert [(each.cell.model, each.cell.dataset) for each in linear] == names
    for seed, each in enumerate(linear):
        assert each.found is not None
        run = correlate_cell(
            states_of(seed),
            np.arange(EXAMPLES),
            losses_of(seed),
            metrics=["cka_linear"],
            neighbourhood=3,
            resamples=2,
            seed=0,
            drop_ends=drop_ends,
            diagonal=diagonal,
        ).iloc[0]
        assert each.found.figures["spearman"] == pytest.approx(run["spearman"], abs=1e-12)
        assert each.found.figures["n_layers"] == run["n_layers"] == LAYERS - WIDTH + 1 - 2 * drop_ends
        dynamics = read_dynamics(each.cell.dynamics, diagonal=diagonal)
        alone = correlate_measured(dynamics, read_losses(each.cell.losses), drop_ends=drop_ends)
        assert each.found.to_json() == alone.to_json()
    assert [each.cell.kernel for each in found.cells] == ["kernel"] + ["linear"] * 4
    assert found.notes == (f"{cells / 'tiny' / 'spare_linear_cka.pt'}: no losses of this cell",)


def test_the_table_has_models_by_data_sets(cells: Path) -> None:
    found = correlate_cells(cells, cells)
    lines = found.to_text().splitlines()
    at = lines.index("Spearman's ρ of δ and loss (linear CKA)")
    assert lines[at + 1].split() == ["model", "x", "y"]
    values = [each.found.figures["spearman"] for each in found.cells[1:] if each.found]
    assert [row.split() for row in lines[at + 2 : at + 4]] == [
        ["big", *(f"{value:+.6f}" for value in values[:2])],
        ["tiny", *(f"{value:+.6f}" for value in values[2:])],
    ]


def test_folders_apart_for_each_side_and_for_each_width(cells: Path, tmp_path: Path) -> None:
    apart = tmp_path / "losses"
    for width in (3, 5):
        write_losses(apart / "x" / f"width_{width}", losses_of(width))
    found = correlate_cells(cells / "big", apart)
    assert [(each.cell.model, each.cell.dataset, each.cell.width) for each in found.cells] == [
        ("big", "x", 3),
        ("big", "x", 5),
    ]
    assert found.notes == (f"{cells / 'big' / 'y_linear_cka.pt'}: no losses of this cell",)


def test_a_cell_that_cannot_be_read_fails_alone(cells: Path) -> None:
    (cells / "big" / "x" / "prune_4.jsonl").write_text('{"loss": 1.0}\n{"loss": \n')
    (cells / "tiny" / "x_linear_cka.pt").write_bytes(b"no tensor")
    found = correlate_cells(cells, cells)
    assert [(each.cell.model, each.cell.dataset) for each in found.failed] == [("big", "x"), ("tiny", "x")]
    assert "prune_4.jsonl, line 2 is torn" in str(found.failed[0].reason)
    assert "n/a: tiny on x (linear): " in found.to_text()
    assert sum(each.found is not None for each in found.cells) == 3


def test_folders_that_hold_no_cell(cells: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"folder .*gone. does not exist"):
        correlate_cells(tmp_path / "gone", cells)
    with pytest.raises(
        InputError, match=r"has prune_\*.jsonl itself: for many cells give the folder that has a folder"
    ):
        correlate_cells(cells, cells / "big" / "x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no cell has both sides: .* of none, losses in .* of big/x, big/y, tiny/x"):
        correlate_cells(tmp_path / "empty", cells)
    torch.save(similarity(0), cells / "big" / "x_linear_ckares.pt")
    with pytest.raises(InputError, match="are of the same model, data set and kernel"):
        correlate_cells(cells, cells)


def test_what_cannot_be_left_out(cells: Path, tmp_path: Path) -> None:
    losses = read_losses(cells / "big" / "x")
    dynamics = read_dynamics(cells / "big" / "x_linear_cka.pt")
    with pytest.raises(InputError, match="--drop-ends 5 leaves 2 of 12 centres; at least three"):
        correlate_measured(dynamics, losses, drop_ends=5)
    assert correlate_measured(dynamics, losses, drop_ends=1).notes == ("centres left out at the ends: 1, 12",)
    pd.DataFrame({"layer": [0, 1, 2], "delta": [1.0, 2.0, 3.0]}).to_csv(tmp_path / "d.csv", index=False)
    with pytest.raises(InputError, match="contains δ itself; --no-diagonal applies only to an L × L matrix"):
        read_dynamics(tmp_path / "d.csv", diagonal=False)
