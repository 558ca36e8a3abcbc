"""What is said of estimates: that they are, and figures of the comparison worked out by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from raysweep.report.estimates import compared, estimate_lines
from raysweep.report.summaries import of_one_estimator, paired_losses

LAYERS = 6


def rows(estimator: str, losses: dict[tuple[int, int], list[float]]) -> pd.DataFrame:
    """Two examples under each window [start, stop)."""
    parts = []
    for (start, stop), values in losses.items():
        layers = "" if start == stop else str(start) if stop - start == 1 else f"{start}-{stop - 1}"
        told = {"model": "m", "dataset": "d", "kind": "window", "layers": layers, "start": start, "stop": stop}
        more = {"width": stop - start, "centre": (start + stop - 1) / 2, "coefficient": 1.0, "estimator": estimator}
        parts.append(pd.DataFrame({**told, **more, "example_id": [0, 1], "n_tokens": 3, "loss": values}))
    return pd.concat(parts, ignore_index=True)


@pytest.fixture
def table() -> pd.DataFrame:
    """Windows of width 2: all estimated, three of them measured, beside the tuned model and all layers put back."""
    exact = {(0, 0): [1.0, 1.0], (0, 6): [5.0, 7.0], (0, 2): [2.0, 4.0], (2, 4): [3.0, 5.0], (3, 5): [1.0, 3.0]}
    estimate = {(0, 0): [1.0, 1.0], (0, 6): [9.0, 9.0], (0, 2): [2.0, 3.0], (1, 3): [2.0, 2.0], (2, 4): [3.0, 4.0]}
    return pd.concat([rows("exact", exact), rows("gradient", {**estimate, (3, 5): [2.0, 4.0]})], ignore_index=True)


def test_both_are_compared_by_their_means(table):
    found = compared(table).set_index("layers")
    assert list(found.index) == ["", "0-5", "0-1", "2-3", "3-4"]
    np.testing.assert_allclose(found["exact"], [1, 6, 3, 4, 2])
    np.testing.assert_allclose(found["estimate"], [1, 9, 2.5, 3.5, 3])


def test_an_example_without_a_loss_on_one_side_counts_on_neither(table):
    table.loc[(table["estimator"] == "exact") & (table["layers"] == "0-1") & (table["example_id"] == 1), "loss"] = (
        np.nan
    )
    found = compared(table).set_index("layers").loc["0-1"]
    assert (found["exact"], found["estimate"]) == (2.0, 2.0)


def test_the_sentence_has_the_sample_s_figures(table):
    """Off by −½, −½ and 1: 0 on average, Student's t of three; ranks 2, 3, 1 and 1, 3, 2."""
    (line,) = estimate_lines({"substitution": table})
    half = 4.302652729911275 * np.std([-0.5, -0.5, 1.0], ddof=1) / np.sqrt(3)
    assert "3 changes, drawn at random, were also measured exactly" in line
    assert "the rank correlation with the estimates is +0.50" in line
    assert (
        f"0.000 nats on average [−{half:.3f}, +{half:.3f}] and at most 1.000 in size; the exact losses range from 2.000 to 4.000"
        in line
    )


def test_without_a_sample_the_error_is_unknown(table):
    (line,) = estimate_lines({"substitution": table[table["estimator"] == "gradient"]})
    assert line.endswith("None of them was also measured exactly, so their error is unknown.")
    assert estimate_lines({"substitution": table[table["estimator"] == "exact"]}) == []


def test_curves_are_made_of_the_estimates(table):
    assert set(of_one_estimator(table)["estimator"]) == {"gradient"}
    paired = paired_losses(table)
    assert list(paired[(3, 5)]) == [2.0, 4.0]
    assert (1, 3) in paired.columns
    exact = table[table["estimator"] == "exact"]
    assert of_one_estimator(exact).equals(exact)
