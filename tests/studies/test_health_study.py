"""The table health, and examples that cannot be compared."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from plain_study import tables, walk

from raysweep.errors import InputError
from raysweep.studies.health import finite_examples, health_table


def warnings_of(rows: pd.DataFrame) -> dict[tuple[int, str], str]:
    return {index: text for index, text in rows["warning"].items() if not pd.isna(text)}


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
            "top_component_weight": variances[0] ** 2 / (variances**2).sum(),
            "top_dimension_share": (centred**2).sum(0).max() / (centred**2).sum(),
            "n_over_d": 200 / 8,
        }
        for measure, value in expected.items():
            assert rows.loc[(layer, measure), "value"] == pytest.approx(value, rel=1e-9)
    assert rows.xs("outlier_dimensions", level="measure")["value"].tolist() == [0, 0, 1, 0]
    warned = warnings_of(rows)
    assert set(warned) == {
        (1, "mean_to_rms"),
        (1, "cka_next_trimmed"),
        (2, "top_component_weight"),
        (2, "top_dimension_share"),
        (3, "top_component_weight"),
    }
    assert warned[2, "top_dimension_share"] == (
        f"top_dimension_share is {rows.loc[(2, 'top_dimension_share'), 'value']:.4g}, above 0.5: "
        "one dimension carries most of the variance"
    )
    assert warned[1, "mean_to_rms"].endswith("above 0.999: the states hardly differ between examples")
    plain, trimmed = (rows.loc[(1, name), "value"] for name in ("cka_next", "cka_next_trimmed"))
    assert warned[1, "cka_next_trimmed"] == (
        "without the dimensions that vary more than 6 times as much as others CKA with the next layer is "
        f"{trimmed:.3f}, with them {plain:.3f}: the plain one is mostly theirs"
    )


def test_examples_that_stand_out_are_named_as_the_source_counts_them() -> None:
    states = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 30, 20)))
    states[0, 3] = torch.nan  # left out, so that places are not ids
    states[1, 7, 11] = 3000.0
    finite = finite_examples(states)
    ids = np.arange(100, 130)
    rows = health_table(states[:, torch.from_numpy(finite.all(axis=0))], finite, ids).set_index(["layer", "measure"])
    warned = warnings_of(rows)
    assert set(warned) == {
        *((0, "not_finite"), (1, "massive_ratio"), (1, "longest_ratio"), (1, "effective_examples")),
        *((1, "top_dimension_share"), (1, "top_component_weight"), (0, "cka_next_trimmed")),
    }
    assert rows.loc[(1, "massive_example"), "value"] == 107
    assert " (dimension 11 of example 107), above 1000: a massive activation" in warned[1, "massive_ratio"]
    assert " (example 107), above 10: one example's state is far longer" in warned[1, "longest_ratio"]
    assert warned[1, "effective_examples"] == (
        "effective_examples is 1.07 of 29, below 10 %: a few examples far from the others decide the similarity"
    )


def test_few_examples_for_what_the_states_vary_in() -> None:
    states = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 30, 400)))
    rows = health_table(states, finite_examples(states)).set_index(["layer", "measure"])
    value = rows.loc[(0, "cka_floor"), "value"]
    assert value == pytest.approx(400 / 430, rel=0.02)
    warned = warnings_of(rows)
    assert set(warned) == {(0, "cka_floor"), (1, "cka_floor")}
    assert warned[0, "cka_floor"].startswith(f"cka_floor is {value:.4g}, above 0.5: biased CKA would be as high with a")


def test_what_has_no_value_has_a_reason() -> None:
    states = torch.from_numpy(np.random.default_rng(0).standard_normal((5, 30, 20)))
    states[1] = 0.0
    states[3] = states[3, 0].clone()
    states[4, :, 1:] = 1.0
    rows = health_table(states, finite_examples(states)).set_index(["layer", "measure"])
    undefined = rows["value"].isna()
    assert rows.loc[undefined, "warning"].notna().all()
    told = rows.loc[undefined, "warning"].to_dict()
    assert told[1, "mean_to_rms"] == "all states are zero"
    assert told[1, "massive_ratio"] == told[1, "longest_ratio"] == "half of the values are zero, or more"
    assert told[3, "participation_ratio"] == told[3, "cka_next"] == "all examples have the same state"
    assert told[2, "cka_next"] == "all examples have the same state at the next layer"
    assert (4, "cka_next") not in rows.index, "the last layer has no next"


def test_no_two_finite_examples_leave_nothing_to_compare() -> None:
    states = torch.ones(3, 4, 5)
    states[1:, 1:] = torch.nan
    with pytest.raises(InputError) as caught:
        finite_examples(states)
    assert str(caught.value) == (
        "3 of 4 examples have states that are not finite (from layer 1 on), so no two can be compared; the model "
        "overflows in this dtype, so use another"
    )
    states[1:, 1] = 1.0
    assert finite_examples(states).sum(axis=1).tolist() == [4, 2, 2]
