"""The table health, and examples that cannot be compared."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from plain_study import tables, walk

from raysweep.errors import InputError
from raysweep.studies.health import finite_examples


def test_health_measures_are_plain_and_warn_above_their_limits() -> None:
    states = walk(layers=4, examples=200, width=8)
    states[1] += 500.0  # hardly any difference between examples beside the mean
    states[2, :, 5] *= 50.0  # an outlier dimension
    direction = torch.ones(8, dtype=torch.float64) / 8**0.5
    states[3] += 60.0 * torch.linspace(-1, 1, 200, dtype=torch.float64)[:, None] * direction
    rows = tables(states, ("cka_linear",))["health"].set_index(["layer", "measure"])
    for layer, X in enumerate(states.numpy()):
        centred = X - X.mean(0)
        variances = np.linalg.svd(centred, compute_uv=False) ** 2
        expected = {
            "mean_to_rms": np.linalg.norm(X.mean(0)) / np.sqrt((X**2).sum(1).mean()),
            "top_component_share": variances[0] / variances.sum(),
            "top_dimension_share": (centred**2).sum(0).max() / (centred**2).sum(),
            "n_over_d": 200 / 8,
        }
        for measure, value in expected.items():
            assert rows.loc[(layer, measure), "value"] == pytest.approx(value, rel=1e-9)
    warned = {index: text for index, text in rows["warning"].items() if not pd.isna(text)}
    assert set(warned) == {
        (1, "mean_to_rms"),
        (2, "top_component_share"),
        (2, "top_dimension_share"),
        (3, "top_component_share"),
    }
    assert warned[2, "top_dimension_share"] == (
        f"top_dimension_share is {rows.loc[(2, 'top_dimension_share'), 'value']:.4g}, above 0.9: "
        "one dimension carries nearly all variance"
    )
    assert warned[1, "mean_to_rms"].endswith("above 0.999: the states hardly differ between examples")
    assert warned[3, "top_component_share"].endswith("above 0.9: one direction carries nearly all variance")


def test_no_two_finite_examples_leave_nothing_to_compare() -> None:
    states = torch.ones(3, 4, 5)
    states[1:, 1:] = torch.nan
    with pytest.raises(InputError) as caught:
        finite_examples(states)
    assert str(caught.value) == (
        "3 of 4 examples have states that are not finite (from layer 1 on), so that no two can be compared; the model overflows "
        "in this dtype: choose another"
    )
    states[1:, 1] = 1.0
    assert finite_examples(states).sum(axis=1).tolist() == [4, 2, 2]
