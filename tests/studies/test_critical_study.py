"""Critical layers of a base model, their stability, and the lists for training."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from plain_study import plain_delta, plain_matrix
from transformers import PreTrainedModel

from raysweep.data.examples import Example
from raysweep.errors import InputError
from raysweep.models.adapter import Adapter
from raysweep.notebook import capture
from raysweep.numerics.resampling import half_samples
from raysweep.studies.critical import Critical, critical_layers


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


def test_several_data_sets_are_chosen_from_together_and_compared(
    model: PreTrainedModel, random_examples: Callable[..., list[Example]]
) -> None:
    sets = {"one": random_examples(20), "two": random_examples(16, seed=1)}
    alone = {name: critical_layers(model, examples, top=3, resamples=40) for name, examples in sets.items()}
    seen: list[str] = []
    found = critical_layers(model, sets, top=3, resamples=40, progress=seen.append)
    assert seen == ["one", "two"]
    delta = (alone["one"].delta + alone["two"].delta) / 2
    np.testing.assert_allclose(found.delta, delta, atol=1e-12)
    assert found.layers == sorted(np.argsort(delta)[:3].tolist())
    np.testing.assert_allclose(found.stability, (alone["one"].stability + alone["two"].stability) / 2, atol=1e-12)
    for name, choice in found.datasets.items():
        assert choice.layers == alone[name].layers
        np.testing.assert_allclose(choice.stability, alone[name].stability)
        assert choice.n_examples == len(sets[name])
    common = len(set(alone["one"].layers) & set(alone["two"].layers))
    assert found.agreement is not None
    assert found.agreement.common == common
    assert found.agreement.chance == pytest.approx(0.9)
    assert found.agreement.value == pytest.approx((common - 0.9) / (3 - 0.9))
    assert alone["one"].agreement is None
    own = [name for name, _ in model.named_parameters() if name.startswith(tuple(found.freeze_list()))]
    assert list(found.parameters) == own


def test_the_diagonal_is_left_out_on_the_half_samples_too(
    model: PreTrainedModel, random_examples: Callable[..., list[Example]]
) -> None:
    examples = random_examples(20)
    states = capture(model, examples).double().numpy()
    found = critical_layers(model, examples, top=3, resamples=30, seed=2, diagonal=False)

    def plain(states: np.ndarray) -> np.ndarray:
        S = plain_matrix(states, "cka_linear")
        np.fill_diagonal(S, np.nan)
        return np.array([np.nanmean(S[i, max(0, i - 1) : i + 2]) for i in range(10)])

    np.testing.assert_allclose(found.delta, plain(states), atol=1e-6)
    counts = np.zeros(10)
    for keep in half_samples(20, 30, 2):
        counts[np.argsort(plain(states[:, keep]))[:3]] += 1
    np.testing.assert_allclose(found.stability, counts / 30, atol=1 / 30)


def test_no_data_set_is_refused_and_one_that_cannot_be_compared_is_named(
    model: PreTrainedModel, random_examples: Callable[..., list[Example]]
) -> None:
    with pytest.raises(InputError, match="no data set is given"):
        critical_layers(model, {})
    adapter = Adapter(model)
    with torch.no_grad():
        model.model.layers[3].mlp.down_proj.weight.fill_(torch.inf)
    with pytest.raises(
        InputError, match=r"^data set 'two': 9 of 9 examples have states that are not finite \(from layer 3"
    ):
        critical_layers(adapter, {"two": random_examples(9), "one": random_examples(9)})
