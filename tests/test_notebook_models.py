"""Calls on loaded models as notebooks have them: right by the models' own forward, or refused; and given back as they came.

The reference swaps modules between the two models and runs one unpadded example at a time; it knows nothing of the package.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from architectures import plain_loss
from torch import nn

import raysweep as rs

LAYERS = 4
WINDOWS = [(0, 0), (0, 2), (1, 3), (2, 3), (0, 4)]
TOLERANCE = 1e-5
pytestmark = pytest.mark.filterwarnings("ignore:.*checkpointing.* is deprecated:FutureWarning")  # transformers' own


@pytest.fixture
def pair(tiny_pair: Any) -> tuple[Any, Any]:
    base, tuned = tiny_pair("llama", LAYERS)
    return base, tuned


@pytest.fixture(scope="module")
def examples(random_examples: Any) -> list[rs.Example]:
    found: list[rs.Example] = random_examples(4, longest=18)
    return found


@contextmanager
def swapped(base: Any, tuned: Any, layers: range) -> Iterator[Any]:
    """The tuned model with the base's own modules in the place of these layers."""
    real = list(tuned.model.layers)
    try:
        for layer in layers:
            tuned.model.layers[layer] = base.model.layers[layer]
        yield tuned
    finally:
        for layer, module in enumerate(real):
            tuned.model.layers[layer] = module


def by_swapping(base: Any, tuned: Any, examples: list[rs.Example]) -> np.ndarray:
    """Losses [W, N] of the windows."""
    losses = []
    for window in WINDOWS:
        with swapped(base, tuned, range(*window)) as model:
            losses.append([plain_loss(model, example) for example in examples])
    return np.array(losses)


def losses_of(table: pd.DataFrame) -> np.ndarray:
    """The same of a table."""
    return np.stack([table[(table["start"] == a) & (table["stop"] == z)]["loss"] for a, z in WINDOWS])


def state_of(model: Any) -> dict[str, Any]:
    """Everything about a model that a call might leave changed."""
    parameters = list(model.named_parameters())
    return {
        "modules": [(name, id(module), module.training) for name, module in model.named_modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
        "compiled": [m._compiled_call_impl for m in model.modules()],
        "parameters": [(name, id(p), p.requires_grad, p.data_ptr(), p.detach().sum().item()) for name, p in parameters],
        "grads": [None if p.grad is None else (id(p.grad), p.grad.sum().item()) for _, p in parameters],
        "config": model.config.to_dict(),
    }


# --- a model is given back as it came -----------------------------------------------------------------------------


def with_dropout(model: Any) -> None:
    model.train()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5


def partly_training(model: Any) -> None:
    model.model.layers[1].mlp.train()


def checkpointing(model: Any) -> None:
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    model.train()


def with_gradients(model: Any) -> None:
    tokens = torch.arange(8)[None]
    model(input_ids=tokens, labels=tokens).loss.backward()
    model.model.layers[2].requires_grad_(False)


def of_states(model: Any) -> None:
    model.config.output_hidden_states = True


def of_tuples(model: Any) -> None:
    model.config.return_dict = False
    model.config.use_cache = False


def after_states(model: Any) -> None:
    """transformers leaves its own hooks on the layers."""
    model(torch.arange(4)[None], output_hidden_states=True)


def compiled_in_place(model: Any) -> None:
    model.compile(backend="eager")
    model.model.layers[1].compile(backend="eager")


def compiled_layers(model: Any) -> None:
    for layer in range(LAYERS):
        model.model.layers[layer] = torch.compile(model.model.layers[layer], backend="eager")


PREPARATIONS = [
    with_dropout, partly_training, checkpointing, with_gradients, of_states, of_tuples, after_states, compiled_in_place,
    compiled_layers,
]  # fmt: skip


@pytest.mark.parametrize("prepare", PREPARATIONS, ids=lambda prepare: prepare.__name__)
def test_losses_are_the_plain_models_and_nothing_is_left_changed(
    prepare: Callable[[Any], None], pair: tuple[Any, Any], examples: list[rs.Example]
) -> None:
    expected = by_swapping(*pair, examples)
    for model in pair:
        prepare(model)
    before = [state_of(model) for model in pair]
    np.testing.assert_allclose(losses_of(rs.sweep_windows(*pair, examples, WINDOWS)), expected, rtol=0, atol=TOLERANCE)
    assert [state_of(model) for model in pair] == before
    asked: dict[str, Any] = {"widths": 1, "modules": "mlp", "coefficients": 0.5, "reverse": True}
    rs.sweep(*pair, examples, **asked)
    estimated = rs.estimate(*pair, examples, **asked)
    untouched = estimated[estimated["width"] == 0]["loss"].iloc[: len(examples)]
    np.testing.assert_allclose(untouched, expected[0], rtol=0, atol=TOLERANCE)
    rs.capture(pair[0], examples)
    rs.critical_layers(pair[0], examples, resamples=5)
    assert [state_of(model) for model in pair] == before


@pytest.mark.parametrize("prepare", PREPARATIONS, ids=lambda prepare: prepare.__name__)
def test_nothing_is_left_changed_by_a_call_that_is_refused(
    prepare: Callable[[Any], None], pair: tuple[Any, Any], examples: list[rs.Example]
) -> None:
    base, tuned = pair
    for model in pair:
        prepare(model)
    before = [state_of(model) for model in pair]
    for refused in (
        lambda: rs.sweep_windows(base, tuned, examples, [(3, 9)]),
        lambda: rs.sweep(base, tuned, examples, widths=9),
        lambda: rs.estimate(base, tuned, [{"question": "a"}], widths=1),
        lambda: rs.capture(base, []),
        lambda: rs.critical_layers(base, examples, top=9),
    ):
        with pytest.raises(rs.InputError):
            refused()
    assert [state_of(model) for model in pair] == before


def test_settings_that_differ_are_computed_and_named(tiny_pair: Any, tiny: Any, examples: list[rs.Example]) -> None:
    base, _ = tiny_pair("llama", LAYERS)
    tuned = tiny("llama", LAYERS, hidden_act="relu")
    tuned.load_state_dict(base.state_dict())
    with pytest.warns(UserWarning, match=r"different settings: hidden_act \(base 'silu', tuned 'relu'\)"):
        table = rs.sweep_windows(base, tuned, examples, WINDOWS)
    assert np.abs(losses_of(table) - by_swapping(base, tuned, examples)).max() <= TOLERANCE


def test_an_adapter_leaves_its_model_in_evaluation_mode_and_a_call_takes_care_of_it(
    pair: tuple[Any, Any], examples: list[rs.Example]
) -> None:
    expected = by_swapping(*pair, examples)
    with_dropout(pair[1])
    adapter = rs.Adapter(pair[1])
    assert not pair[1].training
    pair[1].train()
    np.testing.assert_allclose(
        losses_of(rs.sweep_windows(pair[0], adapter, examples, WINDOWS)), expected, atol=TOLERANCE
    )
    assert pair[1].training


@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, lambda model: torch.compile(model, backend="eager"), rs.Adapter],
    ids=["parallel", "compiled", "adapter"],
)
def test_wrapped_models_give_the_same_losses(wrap: Any, pair: tuple[Any, Any], examples: list[rs.Example]) -> None:
    expected = by_swapping(*pair, examples)
    found = rs.sweep_windows(pair[0], wrap(pair[1]), examples, WINDOWS)
    np.testing.assert_allclose(losses_of(found), expected, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(rs.capture(wrap(pair[1]), examples), rs.capture(pair[1], examples), rtol=0, atol=0)


def test_an_offloaded_model_gives_the_same_losses(pair: tuple[Any, Any], examples: list[rs.Example]) -> None:
    from accelerate import cpu_offload

    expected = by_swapping(*pair, examples)
    offloaded = copy.deepcopy(pair[1])
    cpu_offload(offloaded, execution_device=torch.device("cpu"))
    assert next(offloaded.parameters()).is_meta
    found = rs.sweep_windows(pair[0], offloaded, examples, WINDOWS)
    np.testing.assert_allclose(losses_of(found), expected, rtol=0, atol=TOLERANCE)


def test_gradients_are_taken_in_inference_mode_too(pair: tuple[Any, Any], examples: list[rs.Example]) -> None:
    expected = rs.estimate(*pair, examples, widths=1)
    with torch.inference_mode():
        pd.testing.assert_frame_equal(rs.estimate(*pair, examples, widths=1), expected)


# --- somebody else's hooks ----------------------------------------------------------------------------------------


def halve(module: nn.Module, args: Any, output: Any) -> Any:
    return output * 0.5


def replace_forward(module: Any) -> None:
    forward = module.forward
    module.forward = lambda *args, **kwargs: forward(*args, **kwargs) * 0.5


ALTERATIONS: dict[str, Callable[[Any], object]] = {
    "layer": lambda model: model.model.layers[2].register_forward_hook(halve),
    "layer's input": lambda model: model.model.layers[2].register_forward_pre_hook(
        lambda m, args: (args[0] * 2, *args[1:])
    ),
    "inside a layer": lambda model: model.model.layers[2].mlp.register_forward_hook(halve),
    "forward": lambda model: replace_forward(model.model.layers[2]),
    "forward inside": lambda model: replace_forward(model.model.layers[2].mlp),
    "embedding": lambda model: model.model.embed_tokens.register_forward_hook(halve),
    "norm": lambda model: model.model.norm.register_forward_hook(halve),
    "head": lambda model: model.lm_head.register_forward_hook(halve),
}


@pytest.mark.parametrize("where", ALTERATIONS)
def test_a_layer_brings_its_hooks_along_also_if_its_weights_are_the_bases(
    where: str, tiny: Any, examples: list[rs.Example]
) -> None:
    base, tuned = tiny("llama", LAYERS), tiny("llama", LAYERS)
    with torch.no_grad():
        for parameter in tuned.model.layers[0].parameters():  # all others are frozen
            parameter += 0.1 * torch.randn_like(parameter)
    plain = by_swapping(base, tuned, examples)
    ALTERATIONS[where](tuned)
    expected = by_swapping(base, tuned, examples)
    assert np.abs(expected - plain).max() > 100 * TOLERANCE
    np.testing.assert_allclose(
        losses_of(rs.sweep_windows(base, tuned, examples, WINDOWS)), expected, rtol=0, atol=TOLERANCE
    )
    reverse = rs.sweep(base, tuned, examples, widths=LAYERS, reverse=True)
    reverse = reverse[(reverse["kind"] == "reverse") & (reverse["width"] == 0)]["loss"]
    np.testing.assert_allclose(reverse, [plain_loss(base, e) for e in examples], rtol=0, atol=TOLERANCE)


def test_what_is_made_of_weights_is_refused_on_layers_with_hooks(
    pair: tuple[Any, Any], examples: list[rs.Example]
) -> None:
    pair[0].model.layers[1].mlp.register_forward_hook(halve)
    for call, what in (
        (lambda: rs.estimate(*pair, examples, widths=1), "estimate"),
        (lambda: rs.sweep(*pair, examples, widths=1, coefficients=0.5), "coefficients"),
    ):
        with pytest.raises(
            rs.InputError, match=rf"^base has .* in layer 1, and {what} is computed from the weights.*remove them first"
        ):
            call()
    assert len(rs.sweep(*pair, examples, widths=1, modules=["mlp", "attention"])) > 0


def at_the_end(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
    return torch.cat([output[:, :-1], output[:, -1:] * 0], dim=1)


def in_the_first_row(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
    return torch.cat([output[:1] * 0.5, output[1:]])


def at_random(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
    return output + torch.randn_like(output)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("hook", [at_the_end, in_the_first_row, at_random])
def test_hooks_that_treat_tokens_or_rows_unlike_are_refused(
    hook: Any, dtype: torch.dtype, pair: tuple[Any, Any], examples: list[rs.Example]
) -> None:
    for model in pair:
        model.to(dtype)
    pair[1].model.layers[2].register_forward_hook(halve)
    assert len(rs.sweep_windows(*pair, examples, WINDOWS)) > 0
    pair[1].model.layers[2].register_forward_hook(hook)
    with pytest.raises(rs.InputError, match=r"cannot be swept layer by layer: .*\(model\.layers\.2 has hooks"):
        rs.sweep_windows(*pair, examples, WINDOWS)


# --- two models ---------------------------------------------------------------------------------------------------


def test_every_call_on_a_pair_refuses_shared_weights_and_mixed_dtypes(
    pair: tuple[Any, Any], examples: list[rs.Example]
) -> None:
    base, tuned = pair
    shared = copy.deepcopy(tuned)
    shared.model.layers[1] = base.model.layers[1]
    for call in (
        lambda base, tuned: rs.sweep_windows(base, tuned, examples, WINDOWS),
        lambda base, tuned: rs.sweep(base, tuned, examples, widths=1),
        lambda base, tuned: rs.estimate(base, tuned, examples, widths=1),
    ):
        for other, told in (
            (base, "the same model object"),
            (rs.Adapter(base), "the same model object"),
            (shared, "share the memory of 9 weights"),
            (copy.deepcopy(tuned).bfloat16(), "different dtypes"),
            (None, "^tuned is of type NoneType; give a loaded transformers model, a raysweep.Adapter, or the name"),
        ):
            with pytest.raises(rs.InputError, match=told):
                call(base, other)


def test_identical_models_are_a_warning(pair: tuple[Any, Any], examples: list[rs.Example]) -> None:
    with pytest.warns(UserWarning, match="^base and tuned are identical: every weight is the same"):
        found = rs.sweep_windows(pair[0], copy.deepcopy(pair[0]), examples, WINDOWS)
    assert found.groupby("example_id")["loss"].nunique().tolist() == [1] * len(examples)


def test_components_are_not_removed_from_compiled_models(pair: tuple[Any, Any]) -> None:
    directions = np.eye(2, 16)
    for model in (torch.compile(pair[0], backend="eager"), pair[1]):
        pair[1].compile(backend="eager")
        with pytest.raises(rs.InputError, match=r"is compiled \(.*\), and compiled code ignores hooks"):  # noqa: SIM117
            with rs.removed(model, 1, directions):
                pass
    for given, told in (
        ([], "components_KD is empty"),
        ("x", "components_KD is of type str"),
        ([1.0] * 16, "a row each"),
    ):
        with pytest.raises(rs.InputError, match=told), rs.removed(pair[0], 1, given):
            pass
    with rs.removed(pair[0], np.int64(1), directions.tolist()):  # type: ignore[arg-type]
        assert len(pair[0].model.layers[1]._forward_hooks) == 1


# --- short texts --------------------------------------------------------------------------------------------------


def test_results_print_in_a_line(pair: tuple[Any, Any], random_examples: Any) -> None:
    examples = random_examples(9)
    found = rs.critical_layers(pair[0], {"one": examples, "two": examples}, top=2, resamples=20)
    shown = {
        "Adapter": rs.Adapter(pair[0]),
        "Example": examples[0],
        "Critical": found,
        "DatasetChoice": found.datasets["one"],
        "Agreement": found.agreement,
        "MinibatchCKA": rs.MinibatchCKA(),
        "Exclude": rs.Exclude(phrases=("as an AI",), values=("x" * 500,), column="a"),
    }
    for name, value in shown.items():
        text = repr(value)
        assert text.startswith(f"{name}("), text
        assert len(text) < 250, text
        assert "\n" not in text
        assert "array(" not in text
    layer = found.layers[0]
    assert f"layers {layer} (δ {found.delta[layer]:.3f}, stability {found.stability[layer]:.2f})" in repr(found)
    assert "2 data sets" in repr(found)
    assert repr(rs.Adapter(pair[0])) == "Adapter(LlamaForCausalLM, 4 layers, predicts tokens, torch.float32, cpu)"
