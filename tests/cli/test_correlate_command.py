"""`raysweep correlate`: figures measured elsewhere."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import Result, ended, started
from scipy import stats

DELTA = [0.97, 0.95, 0.80, 0.82, 0.96, 0.91]
LOSS = {1: 1.2, 2: 1.9, 3: 1.7, 4: 1.1, 9: 1.0}


@pytest.fixture
def measured(tmp_path):
    """CSV files of δ by layer and loss by centre, as options."""
    pd.DataFrame({"layer": range(6), "delta": DELTA}).to_csv(tmp_path / "delta.csv", index=False)
    pd.DataFrame({"centre": LOSS.keys(), "loss": LOSS.values()}).to_csv(tmp_path / "loss.csv", index=False)
    return ["--dynamics", tmp_path / "delta.csv", "--losses", tmp_path / "loss.csv"]


def test_correlate_as_json(measured):
    told = ended(started("correlate", *measured, "--json"))
    assert (told.code, told.err) == (0, "")
    found = json.loads(told.out)
    expected = stats.spearmanr(DELTA[1:5], [LOSS[centre] for centre in (1, 2, 3, 4)]).statistic
    assert found["figures"]["spearman"] == pytest.approx(expected, abs=1e-12)
    assert found["centres"] == [1, 2, 3, 4]
    assert (found["only_dynamics"], found["only_losses"]) == ([0, 5], [9])


def test_correlate_in_words(measured, raysweep):
    told = raysweep("correlate", *measured)
    assert (told.code, told.err) == (0, "")
    expected = stats.spearmanr(DELTA[1:5], [LOSS[centre] for centre in (1, 2, 3, 4)]).statistic
    assert told.out.startswith(f"Spearman       {expected:+.6f} over 4 centres (1 to 4)\n")
    assert "layers without a loss: 0, 5\n" in told.out
    assert "centres without a δ: 9" in told.out


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({1: "gone.csv"}, "error: file 'gone.csv' does not exist"),
        ({1: "gone.pt"}, "error: dynamics file 'gone.pt' does not exist"),
        ({3: "gone"}, "error: file 'gone' does not exist"),
        ({4: "--neighbourhood", 5: "2"}, "error: --neighbourhood 2: it must be odd, because it is centred on a layer"),
    ],
)
def test_correlate_refuses(measured, raysweep, change, told):
    arguments = dict(enumerate(measured)) | change
    assert raysweep("correlate", *arguments.values()) == Result(2, "", f"{told}\n")


@pytest.fixture
def cells(tmp_path):
    """Two cells in the paper's form; the losses of a third are torn."""
    root, random = tmp_path / "cells", np.random.default_rng(0)
    for dataset in ("x", "y", "z"):
        folder = root / "m" / dataset
        folder.mkdir(parents=True)
        torch.save(torch.from_numpy(np.corrcoef(random.normal(size=(9, 20)))), root / "m" / f"{dataset}_linear_cka.pt")
        for centre in range(1, 8):
            (folder / f"prune_{centre}.jsonl").write_text(json.dumps({"loss": random.uniform()}) + "\n")
    (root / "m" / "z" / "prune_3.jsonl").write_text('{"loss": \n')
    return root


@pytest.mark.parametrize("options", [[], ["--drop-ends", 1, "--no-diagonal", "--neighbourhood", 5]])
def test_many_cells_have_the_numbers_of_each_alone(cells, raysweep, options):
    told = raysweep("correlate", "--dynamics", cells, "--losses", cells, "--json", *options)
    assert (told.code, told.err) == (1, ""), "one cell failed"
    found = json.loads(told.out)
    assert [cell["dataset"] for cell in found["cells"]] == ["x", "y", "z"]
    for cell in found["cells"][:2]:
        alone = raysweep("correlate", "--dynamics", cell["dynamics"], "--losses", cell["losses"], "--json", *options)
        assert json.loads(alone.out) == cell["correlated"]
        assert len(cell["correlated"]["centres"]) == (5 if options else 7)
    assert "prune_3.jsonl, line 1 is torn" in found["cells"][2]["reason"]
    assert raysweep("correlate", "--cells", cells, "--json", *options) == told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--cells", "a", "--losses", "b"], "error: --cells already names both; remove --dynamics and --losses"),
        (
            ["--dynamics", "a.csv"],
            "error: give --dynamics and --losses, or --cells with a folder that has both for many cells",
        ),
        (["--cells", "gone"], "error: folder 'gone' does not exist"),
        (
            ["--cells", "x", "--no-diagonal", "--neighbourhood", "1"],
            "error: --neighbourhood 1 contains only the layer itself; without the diagonal give 3 or more",
        ),
    ],
)
def test_correlate_many_refuses(raysweep, arguments, told):
    assert raysweep("correlate", *arguments) == Result(2, "", f"{told}\n")
