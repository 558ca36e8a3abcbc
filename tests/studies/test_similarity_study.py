"""The similarity, dynamics and health tables against plain CKA written here, and the choice of critical layers."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import PreTrainedModel

from raysweep.data.examples import Example
from raysweep.errors import InputError
from raysweep.models.adapter import Adapter
from raysweep.numerics.resampling import half_samples
from raysweep.studies.similarity import (
    Critical,
    critical_layers,
    finite_examples,
    similarity_matrix,
    similarity_tables,
)

METRICS = ("cka_linear", "cka_rbf", "cka_linear_debiased")


def walk(layers: int = 7, examples: int = 30, width: int = 10, seed: int = 0) -> torch.Tensor:
    """States that drift from layer to layer by steps of unlike size."""
    rng = np.random.default_rng(seed)
    steps = rng.uniform(0.2, 1.5, layers)
    states = [rng.normal(size=(examples, width))]
    for step in steps[1:]:
        states.append(states[-1] + step * rng.normal(size=(examples, width)))
    return torch.from_numpy(np.stack(states))


def plain_kernel(X: np.ndarray, kernel: str) -> np.ndarray:
    if kernel == "linear":
        return np.asarray(X @ X.T)
    d2 = ((X[:, None] - X[None]) ** 2).sum(-1)
    positive = np.sort(d2[d2 > 0])
    return np.asarray(np.exp(-d2 / (2 * positive[(len(positive) - 1) // 2])))


def plain_cka(kernels: list[np.ndarray], debiased: bool = False) -> np.ndarray:
    n = len(kernels[0])
    H = np.eye(n) - 1 / n

    def hsic(K: np.ndarray, M: np.ndarray) -> float:
        if not debiased:
            return float(np.trace(H @ K @ H @ M))
        K, M = K - np.diag(np.diag(K)), M - np.diag(np.diag(M))  # Song et al. (2012), equation 5
        total = np.trace(K @ M) + K.sum() * M.sum() / ((n - 1) * (n - 2)) - 2 * (K.sum(0) @ M.sum(1)) / (n - 2)
        return float(total)

    F = np.array([[hsic(K, M) for M in kernels] for K in kernels])
    return np.asarray(F / np.sqrt(np.outer(np.diag(F), np.diag(F))))


def plain_matrix(states: np.ndarray, metric: str) -> np.ndarray:
    kernels = [plain_kernel(X, "rbf" if metric == "cka_rbf" else "linear") for X in states]
    return plain_cka(kernels, metric == "cka_linear_debiased")


def plain_delta(S: np.ndarray, neighbourhood: int) -> np.ndarray:
    reach = neighbourhood // 2
    near = range(-reach, reach + 1)
    return np.array([np.mean([S[i, i + o] for o in near if 0 <= i + o < len(S)]) for i in range(len(S))])


def tables(
    states: torch.Tensor, metrics: tuple[str, ...] = METRICS, neighbourhood: int = 3, resamples: int = 40
) -> dict[str, pd.DataFrame]:
    return similarity_tables(states, metrics=metrics, neighbourhood=neighbourhood, resamples=resamples, seed=3)


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
        *("metric", "neighbourhood", "layer", "delta", "ci_low", "ci_high", "rank")
    ]
    assert list(made["health"].columns) == ["layer", "measure", "value", "warning"]
    assert made["similarity"]["other"].isna().all()
    assert made["similarity"]["reason"].isna().all()


@pytest.mark.parametrize("metric", ["cka_linear", "cka_rbf"])
def test_the_interval_is_that_of_half_samples_moved_onto_the_estimate(metric: str) -> None:
    states = walk(layers=5, examples=24)
    dynamics = tables(states, (metric,))["dynamics"]
    delta = plain_delta(plain_matrix(states.numpy(), metric), 3)
    kernels = [plain_kernel(X, "rbf" if metric == "cka_rbf" else "linear") for X in states.numpy()]
    halves = np.stack(
        [
            plain_delta(plain_cka([K[np.ix_(keep, keep)] for K in kernels]), 3)  # the whole sample's bandwidth
            for keep in half_samples(24, 40, 3)
        ]
    )
    low, high = np.quantile(halves, [0.025, 0.975], axis=0) + delta - halves.mean(0)
    np.testing.assert_allclose(dynamics["ci_low"], low, rtol=0, atol=1e-9)
    np.testing.assert_allclose(dynamics["ci_high"], high, rtol=0, atol=1e-9)
    assert (dynamics["ci_low"] < dynamics["delta"]).all()
    assert (dynamics["delta"] < dynamics["ci_high"]).all()


@pytest.mark.parametrize(("metric", "examples"), [("cka_linear", 7), ("cka_linear_debiased", 30)])
def test_there_is_no_interval_where_none_can_be_had(metric: str, examples: int) -> None:
    dynamics = tables(walk(examples=examples), (metric,))["dynamics"]
    assert dynamics["delta"].notna().all()
    assert dynamics[["ci_low", "ci_high"]].isna().to_numpy().all()


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


def test_an_unknown_metric_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"^unknown metric 'cka_linaer'; did you mean 'cka_linear'\?$"):
        similarity_matrix(walk(), "cka_linaer")


# critical layers


@pytest.fixture
def model(tiny: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    """Ten layers, of which two change their input far more than the others."""
    built = tiny("llama", 10)
    with torch.no_grad():
        for layer, block in enumerate(built.model.layers):
            size = 1.0 if layer in (4, 7) else 0.1
            block.self_attn.o_proj.weight.mul_(size)
            block.mlp.down_proj.weight.mul_(size)
    return built


def test_critical_layers_are_those_of_smallest_delta_and_their_stability_is_counted(
    model: PreTrainedModel, random_examples: Callable[..., list[Example]]
) -> None:
    examples, outputs = random_examples(20), []
    handles = [
        b.register_forward_hook(lambda m, a, out: outputs.append(out[0, -1].numpy())) for b in model.model.layers
    ]
    for example in examples:
        with torch.no_grad():
            model(input_ids=torch.from_numpy(example.tokens[: example.n_prompt])[None], use_cache=False)
    for handle in handles:
        handle.remove()
    states = np.array(outputs).reshape(20, 10, -1).swapaxes(0, 1).astype(np.float64)

    found = critical_layers(model, examples, top=3, resamples=60, seed=5)
    delta = plain_delta(plain_matrix(states, "cka_linear"), 3)
    np.testing.assert_allclose(found.delta, delta, rtol=0, atol=1e-5)
    assert found.layers == sorted(np.argsort(delta)[:3].tolist())
    counts = np.zeros(10)
    for keep in half_samples(20, 60, 5):
        counts[np.argsort(plain_delta(plain_matrix(states[:, keep], "cka_linear"), 3))[:3]] += 1
    np.testing.assert_allclose(found.stability, counts / 60, atol=1 / 60)
    assert found.stability.sum() == pytest.approx(3)
    assert ((found.stability > 0) & (found.stability < 1)).any(), "else every half-sample chooses alike"


def test_a_fifth_of_the_layers_is_chosen_by_default(
    model: PreTrainedModel, random_examples: Callable[..., list[Example]]
) -> None:
    assert len(critical_layers(model, random_examples(9), resamples=5).layers) == 2


def test_few_examples_have_no_stability(model: PreTrainedModel, random_examples: Callable[..., list[Example]]) -> None:
    found = critical_layers(Adapter(model), random_examples(7), top=3, resamples=5)
    assert len(found.layers) == 3
    assert np.isnan(found.stability).all()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_lists_for_training_name_the_critical_layers_only(
    kind: str, tiny: Callable[..., PreTrainedModel], block_path: dict[str, str]
) -> None:
    from peft import LoraConfig, get_peft_model

    model = tiny(kind, 12)
    critical = Critical([1, 10], np.zeros(12), np.zeros(12), Adapter(model).block_path)
    assert critical.freeze_list() == [f"{block_path[kind]}.1.", f"{block_path[kind]}.10."]
    frozen = [n for n, _ in model.named_parameters() if n.startswith(tuple(critical.freeze_list()))]
    per_block = sum(1 for _ in model.get_submodule(block_path[kind])[1].parameters())
    assert len(frozen) == 2 * per_block
    targets = {"llama": ["q_proj"], "gpt2": ["c_attn"]}[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own, about transformers and GPT-2's transposed layers
        lora = get_peft_model(model, LoraConfig(r=2, target_modules=targets, **critical.peft_config()))
    trained = {n for n, p in lora.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2
    assert {n.split(f"{block_path[kind]}.")[1].split(".")[0] for n in trained} == {"1", "10"}


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
