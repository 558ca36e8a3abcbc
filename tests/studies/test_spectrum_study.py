"""The table spectrum: every measure by its plain formula, and the reason of every value that there is not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import torch
from plain_study import walk

import raysweep as rs
from raysweep.errors import InputError
from raysweep.studies.spectrum import spectrum


def plain(states: np.ndarray, components: tuple[int, ...]) -> dict[tuple[int, int | None, str], float]:
    """Every value of the table, from covariance matrices, scipy's angles and numpy's correlation of scores."""
    values: dict[tuple[int, int | None, str], float] = {}
    bases, scores = [], []
    for layer, X in enumerate(states):
        centred = X - X.mean(0)
        variances, directions = np.linalg.eigh(np.cov(X.T))
        variances, directions = variances[::-1].clip(0), directions[:, ::-1]
        bases.append(directions)
        scores.append(centred @ directions)
        sigma = np.sqrt(variances)
        p = sigma / sigma.sum()
        values |= {
            (layer, None, "examples"): len(X),
            (layer, None, "effective_rank"): math.exp(-(p * np.log(p)).sum()),
            (layer, None, "participation_ratio"): variances.sum() ** 2 / (variances**2).sum(),
            (layer, None, "stable_rank"): variances.sum() / variances[0],
        }
        for k in components:
            values |= {
                (layer, k, "explained_share"): variances[k - 1] / variances.sum(),
                (layer, k, "explained_cumulative"): variances[:k].sum() / variances.sum(),
                (layer, k, "relative_gap"): 1 - (variances[k] / variances[k - 1] if k < len(variances) else 0),
            }
    for layer in range(len(states)):
        for step in (-2, -1, 1, 2):
            if not 0 <= layer + step < len(states):
                continue
            for k in components:
                a, b = scores[layer][:, :k], scores[layer + step][:, :k]
                whitened = [s @ np.linalg.inv(scipy.linalg.sqrtm(s.T @ s).real) for s in (a, b)]
                correlations = np.sqrt(np.linalg.eigvalsh(whitened[0].T @ whitened[1] @ whitened[1].T @ whitened[0]))
                angles = scipy.linalg.subspace_angles(bases[layer][:, :k], bases[layer + step][:, :k])
                values[layer, k, f"cca{step:+d}"] = correlations.mean()
                values[layer, k, f"overlap{step:+d}"] = (np.cos(angles) ** 2).mean()
    return values


def indexed(table: pd.DataFrame) -> pd.DataFrame:
    return table.set_index(["layer", table["components"].fillna(0), "measure"])


def cell(table: pd.DataFrame, layer: int, k: int, measure: str) -> tuple[float, str | None]:
    row = indexed(table).loc[(layer, k, measure)]
    return row["value"], None if pd.isna(row["reason"]) else row["reason"]


def test_every_value_by_its_plain_formula() -> None:
    states = walk(layers=5, examples=40, width=12) * torch.logspace(0.5, -0.5, 12, dtype=torch.float64) + 7
    table = rs.spectrum(states, components=(1, 3, 10))
    assert list(table.columns) == ["layer", "components", "measure", "value", "reason"]
    expected = plain(states.numpy(), (1, 3, 10))
    found = {
        (int(row.layer), None if pd.isna(row.components) else int(row.components), str(row.measure)): row.value
        for row in table.itertuples()
    }
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-8, abs=1e-8), key
    assert list(table["measure"].unique()) == [
        *("examples", "effective_rank", "participation_ratio", "stable_rank"),
        *("explained_share", "explained_cumulative", "relative_gap"),
        *("cca+1", "cca+2", "overlap+1", "overlap+2", "cca-1", "overlap-1", "cca-2", "overlap-2"),
    ]


def test_arrays_tensors_sequences_and_iterators_give_the_same() -> None:
    states = walk(layers=3, examples=20, width=8)
    table = spectrum(states, (1, 2))
    for given in (states.numpy(), list(states), tuple(states.numpy()), iter(states)):
        pd.testing.assert_frame_equal(spectrum(given, (1, 2)), table)


def test_a_constant_layer_is_nan_with_the_reason_and_so_is_what_it_would_share() -> None:
    states = walk(layers=3, examples=20, width=8)
    states[1] = 4.25
    table = spectrum(states, (1, 2))
    reason = "all examples have the same state at layer 1"
    for k, measure in ((0, "effective_rank"), (1, "explained_share"), (2, "relative_gap"), (2, "cca-1")):
        value, told = cell(table, 1, k, measure)
        assert math.isnan(value)
        assert told == reason
    assert cell(table, 0, 1, "overlap+1")[1] == reason
    assert cell(table, 0, 1, "overlap+2")[1] is None
    of_one = table[(table["layer"] == 1) & (table["components"].notna())]
    assert of_one["value"].isna().all()
    assert not (table["value"].isna() & table["reason"].isna()).any(), "no NaN is without a reason"


def test_more_components_than_there_are() -> None:
    few = walk(layers=2, examples=6, width=8)
    table = spectrum(few, (5, 6))
    assert cell(table, 0, 5, "cca+1")[0] == pytest.approx(1), "all centred examples have in common"
    assert cell(table, 0, 6, "cca+1")[1] == "layer 0 has 5 components: 6 examples have 5 components at most"
    narrow = walk(layers=2, examples=30, width=3)
    assert cell(spectrum(narrow, (4,)), 1, 4, "explained_share")[1] == (
        "layer 1 has 3 components: the states have 3 dimensions"
    )
    flat = walk(layers=1, examples=30, width=8)
    flat[..., 2:] = flat[..., :1]
    assert cell(spectrum(flat, (3,)), 0, 3, "explained_cumulative")[1] == (
        "layer 0 has 2 components: the rest is no larger than the rounding of the states"
    )


def test_components_of_equal_size_are_told_and_not_compared() -> None:
    square = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]).repeat(50, 1)
    states = torch.stack([square, square * torch.tensor([1.0, 0.98]), square * torch.tensor([3.0, 1.0])])
    table = spectrum(states, (1, 2))
    value, told = cell(table, 0, 1, "cca+1")
    assert math.isnan(value)
    assert told is not None
    assert told.startswith("components 1 and 2 of layer 0 are equally large to within rounding")
    assert cell(table, 1, 1, "cca-1")[1] == told
    assert told.endswith("so that the first 1 are not determined")
    assert cell(table, 0, 2, "cca+1")[0] == pytest.approx(1), "both together are determined"
    value, told = cell(table, 1, 1, "relative_gap")
    assert value == pytest.approx(1 - 0.98**2, rel=1e-5)
    assert told == (
        "component 2 is within 0.04 of component 1, and 200 examples determine variances only to 0.1, so other "
        "examples may swap the two"
    )
    assert cell(table, 1, 1, "cca+1") == (pytest.approx(1), None)
    assert cell(table, 2, 1, "relative_gap") == (pytest.approx(8 / 9), None)


def test_examples_that_are_not_finite_are_left_out_of_all_and_counted() -> None:
    states = walk(layers=3, examples=20, width=8)
    broken = states.clone()
    broken[1, 4, 2], broken[2, 9] = torch.nan, torch.inf
    keep = [n for n in range(20) if n not in (4, 9)]
    table, expected = spectrum(broken, (1, 2)), spectrum(states[:, keep], (1, 2))
    pd.testing.assert_series_equal(table["value"], expected["value"])
    told = [cell(table, layer, 0, "examples") for layer in range(3)]
    assert told == [
        (18, "0 of 20 examples have states that are not finite at this layer; 2 are left out of every layer"),
        (18, "1 of 20 examples have states that are not finite at this layer; 2 are left out of every layer"),
        (18, "1 of 20 examples have states that are not finite at this layer; 2 are left out of every layer"),
    ]
    broken[1, :, 3] = torch.inf
    with pytest.raises(InputError, match=r"^20 of 20 examples have states that are not finite \(from layer 1 on\)"):
        spectrum(broken)


def test_layers_of_unlike_width_share_examples_and_no_directions() -> None:
    states = walk(layers=2, examples=20, width=8)
    table = spectrum([states[0], states[1, :, :5]], (2,))
    assert cell(table, 0, 2, "cca+1")[0] > 0.5
    value, told = cell(table, 0, 2, "overlap+1")
    assert math.isnan(value)
    assert told == "layer 0 has 8 dimensions and layer 1 has 5"


@pytest.mark.parametrize(
    ("states", "components", "said"),
    [
        (np.ones((2, 3)), (1,), r"layer 0: states of shape \(3,\); expected \[N, D\] with N at least 2"),
        (np.ones((2, 1, 3)), (1,), r"layer 0: states of shape \(1, 3\); expected \[N, D\] with N at least 2"),
        ([np.ones((3, 2)), np.ones((4, 2))], (1,), "layer 1 has 4 examples, layer 0 has 3"),
        ([], (1,), "no layers"),
    ],
)
def test_refusals(states: Any, components: tuple[int, ...], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}$"):
        spectrum(states, components)


@pytest.mark.parametrize(
    ("components", "told"),
    [((), r"\[\]"), ([1, 0], r"\[1, 0\]"), ((2, 2), r"\[2, 2\]"), ([True], r"\[True\]"), ([1.5], r"\[1.5\]")],
)
def test_components_that_are_no_numbers_of_components_are_refused(components: Any, told: str) -> None:
    with pytest.raises(
        InputError, match=f"^components must be different numbers, 1 or more, and at least one; got {told}$"
    ):
        spectrum(np.ones((2, 3, 3)), components)


def test_components_may_be_one_number_a_range_or_an_array() -> None:
    states = np.random.default_rng(0).normal(size=(2, 6, 4))
    expected = spectrum(states, (1, 2))
    for given in (range(1, 3), np.array([1, 2]), [np.int64(1), 2]):
        pd.testing.assert_frame_equal(spectrum(states, given), expected)
    pd.testing.assert_frame_equal(spectrum(states, 2), spectrum(states, [2]))
    pd.testing.assert_frame_equal(spectrum([layer.tolist() for layer in states], (1, 2)), expected)
