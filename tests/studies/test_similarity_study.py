"""The similarity, dynamics and health tables against plain CKA written here, and the choice of critical layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from plain_study import METRICS, plain_cka, plain_delta, plain_kernel, plain_matrix, tables, walk

from raysweep.errors import InputError
from raysweep.numerics.measures.registry import MEASURES, Parameters, similarity
from raysweep.numerics.resampling import half_samples, jackknife_interval
from raysweep.studies.similarity import similarity_matrix, similarity_tables


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_tables_hold_plain_cka_and_its_local_means(metric: str, dtype: torch.dtype) -> None:
    states = walk().to(dtype)
    S = plain_matrix(states.double().numpy(), metric)
    made = tables(states, (metric,), neighbourhood=5)
    similarity, dynamics = made["similarity"], made["dynamics"]
    found = similarity.pivot_table(index="layer_i", columns="layer_j", values="value").to_numpy()
    np.testing.assert_allclose(found, S, rtol=0, atol=1e-10)
    np.testing.assert_allclose(similarity_matrix(states, metric), S, rtol=0, atol=1e-10)
    delta = plain_delta(S, 5)
    np.testing.assert_allclose(dynamics["delta"], delta, rtol=0, atol=1e-10)
    assert dynamics["rank"].tolist() == (np.argsort(np.argsort(delta)) + 1).tolist()
    assert (dynamics["neighbourhood"] == 5).all()


def test_each_metric_has_its_rows() -> None:
    made = tables(walk())
    assert made["similarity"].groupby("metric", sort=False).size().to_dict() == dict.fromkeys(METRICS, 49)
    assert made["dynamics"].groupby("metric", sort=False).size().to_dict() == dict.fromkeys(METRICS, 7)
    assert list(made["similarity"].columns) == [
        *("other", "metric", "layer_i", "layer_j", "value", "ci_low", "ci_high", "reason")
    ]
    assert list(made["dynamics"].columns) == [
        *("metric", "neighbourhood", "layer", "delta", "ci_low", "ci_high", "rank", "rank_low", "rank_high", "chosen")
    ]
    assert list(made["health"].columns) == ["layer", "measure", "value", "warning"]
    assert made["similarity"]["other"].isna().all()
    assert made["similarity"]["reason"].isna().all()


@pytest.mark.parametrize("metric", METRICS)
def test_intervals_are_the_jackknifes_and_ranks_those_of_half_samples(metric: str) -> None:
    states = walk(layers=6, examples=24)
    made = tables(states, (metric,))
    kernels = [plain_kernel(X, "rbf" if metric == "cka_rbf" else "linear") for X in states.numpy()]

    def cka_of(keep: np.ndarray) -> np.ndarray:  # the whole sample's bandwidth
        return plain_cka([K[np.ix_(keep, keep)] for K in kernels], metric == "cka_linear_debiased")

    everyone = np.arange(24)
    S = cka_of(everyone)
    one = np.stack([cka_of(np.setdiff1d(everyone, [a])) for a in everyone])
    two = np.stack([cka_of(np.setdiff1d(everyone, [a, a + 12])) for a in range(12)])
    similarity, dynamics = made["similarity"], made["dynamics"]
    expected = jackknife_interval(S.ravel(), one.reshape(24, -1), two.reshape(12, -1))
    np.testing.assert_allclose(similarity[["ci_low", "ci_high"]].T, expected, rtol=0, atol=1e-8)
    assert (similarity.loc[similarity["layer_i"] != similarity["layer_j"], "ci_high"] < 1).all()
    delta = plain_delta(S, 3)
    expected = jackknife_interval(delta, *[np.stack([plain_delta(s, 3) for s in some]) for some in (one, two)])
    np.testing.assert_allclose(dynamics[["ci_low", "ci_high"]].T, expected, rtol=0, atol=1e-8)
    assert ((dynamics["ci_low"] < dynamics["delta"]) & (dynamics["delta"] < dynamics["ci_high"])).all()

    halves = np.stack([plain_delta(cka_of(np.flatnonzero(keep)), 3) for keep in half_samples(24, 40, 3)])
    ranks = np.sort(np.argsort(np.argsort(halves, axis=1), axis=1) + 1, axis=0)
    np.testing.assert_array_equal(dynamics["rank_low"], ranks[0])  # the first of 40, for 2.5 %
    np.testing.assert_array_equal(dynamics["rank_high"], ranks[38])
    np.testing.assert_allclose(dynamics["chosen"], (ranks == 1).mean(axis=0))


def test_narrow_layers_that_are_alike_have_their_intervals() -> None:
    """Enough examples that products are of dimensions; the second layer is the first one, multiplied."""
    states = walk(layers=3, examples=300).float()
    states[1] = 1.7 * states[0]
    similarity = tables(states, ("cka_linear", "cka_linear_debiased"))["similarity"]
    alike = similarity[(similarity["layer_i"] == 0) & (similarity["layer_j"] == 1)]
    np.testing.assert_allclose(alike[["value", "ci_low", "ci_high"]], 1, rtol=0, atol=1e-9)


def test_seven_examples_are_too_few_for_intervals() -> None:
    made = tables(walk(examples=7))
    assert made["dynamics"]["delta"].notna().all()
    assert made["dynamics"][["ci_low", "ci_high", "rank_low", "rank_high", "chosen"]].isna().to_numpy().all()
    assert made["similarity"][["ci_low", "ci_high"]].isna().to_numpy().all()


def test_a_layer_with_one_state_for_all_examples_is_nan_with_its_reason() -> None:
    states = walk(layers=5)
    states[0] = states[0, 0]
    states[3] = states[3, 0]
    made = tables(states, ("cka_linear", "cka_rbf"))
    for _, rows in made["similarity"].groupby("metric"):
        rows = rows.set_index(["layer_i", "layer_j"])
        nan = rows.index[rows["value"].isna()].to_list()
        assert nan == [(i, j) for i in range(5) for j in range(5) if {i, j} & {0, 3}]
        assert rows["reason"].notna().to_list() == rows["value"].isna().to_list()
        assert rows.loc[(0, 2), "reason"] == ("all examples have the same state at layer 0, so its similarity is 0/0")
        assert rows.loc[(3, 0), "reason"] == (
            "all examples have the same state at layer 0 and 3, so its similarity is 0/0"
        )
    linear = made["dynamics"][made["dynamics"]["metric"] == "cka_linear"].set_index("layer")
    assert linear["delta"].isna().to_list() == [True, True, True, True, True], "each is beside a constant layer"
    assert linear["rank"].isna().all()
    assert linear["ci_low"].isna().all()


def test_a_layer_without_delta_has_no_rank_and_the_others_are_ranked_among_themselves() -> None:
    states = walk(layers=6)
    states[0] = states[0, 0]
    dynamics = tables(states, ("cka_linear",))["dynamics"]
    delta = plain_delta(plain_matrix(states[1:].numpy(), "cka_linear"), 3)[1:]
    assert dynamics["rank"].isna().to_list() == [True, True, False, False, False, False]
    assert dynamics["rank"].to_list()[2:] == (np.argsort(np.argsort(delta)) + 1).tolist()
    assert dynamics["ci_low"].isna().to_list() == [True, True, False, False, False, False]


def test_few_examples_in_few_directions_have_no_debiased_similarity_and_the_reason_is_told() -> None:
    states = walk(layers=3, examples=5, width=2)
    states[1] = 0  # five states, all equally far apart but for one pair: no unbiased variance
    states[1, :, 0] = torch.tensor([1.0, 0, 0, 0, 0])
    S = plain_matrix(states.numpy(), "cka_linear")
    similarity = tables(states, ("cka_linear_debiased",))["similarity"].set_index(["layer_i", "layer_j"])
    assert np.isfinite(S).all(), "the biased one is defined"
    assert np.isnan(similarity.loc[(1, 1), "value"])
    assert similarity.loc[(1, 1), "reason"].startswith("the unbiased variance of a layer is not positive: too few ex")


def test_an_unknown_metric_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"^unknown metric 'cka_linaer'; did you mean 'cka_linear'\?$"):
        similarity_matrix(walk(), "cka_linaer")


@pytest.mark.parametrize("metric", [name for name in MEASURES if name not in METRICS])
def test_every_other_measure_has_its_values_its_delta_and_no_interval(metric: str) -> None:
    """The measures themselves are held to plain ones in tests/numerics; δ of a distance is the mean of 1 − distance."""
    states, parameters = walk(), Parameters(components=4, neighbours=6, variance=0.8)
    made = similarity_tables(
        states, metrics=("cka_linear", metric), neighbourhood=3, resamples=10, seed=0, parameters=parameters
    )
    rows = made["similarity"][made["similarity"]["metric"] == metric]
    S = similarity(states, metric, components=4, neighbours=6, variance=0.8)
    np.testing.assert_array_equal(rows["value"].to_numpy().reshape(7, 7), S)
    assert rows["reason"].isna().all()
    likeness = 1 - S if metric in ("angular", "block_influence") else S
    np.testing.assert_array_equal(similarity_matrix(states, metric, parameters), likeness)
    dynamics = made["dynamics"][made["dynamics"]["metric"] == metric]
    np.testing.assert_allclose(dynamics["delta"], plain_delta(likeness, 3), rtol=0, atol=1e-12)
    assert dynamics["rank"].tolist() == (np.argsort(np.argsort(dynamics["delta"])) + 1).tolist()
    assert dynamics[["ci_low", "ci_high"]].isna().to_numpy().all()


def test_a_pair_without_a_value_has_its_reason_in_the_table() -> None:
    states = walk(layers=4, examples=9)
    similarity = tables(states, ("mutual_knn",))["similarity"]
    assert similarity["value"].isna().all()
    assert (
        similarity["reason"]
        .eq("of 9 examples all others are among the 10 nearest; give 12 or more, or ask for fewer neighbours")
        .all()
    )
    states[2] = states[2, 0]
    similarity = tables(states, ("rsa",))["similarity"].set_index(["layer_i", "layer_j"])
    assert similarity["reason"].notna().tolist() == similarity["value"].isna().tolist()
    assert similarity.loc[(1, 2), "reason"] == "all examples have the same state at layer 2, so its similarity is 0/0"
