"""`raysweep correlate`: figures measured elsewhere."""

from __future__ import annotations

import json

import pandas as pd
import pytest
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
        ({4: "--neighbourhood", 5: "2"}, "error: --neighbourhood 2: it has a layer in its middle, so it is odd"),
    ],
)
def test_correlate_refuses(measured, raysweep, change, told):
    arguments = dict(enumerate(measured)) | change
    assert raysweep("correlate", *arguments.values()) == Result(2, "", f"{told}\n")
