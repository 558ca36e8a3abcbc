"""A model is given back as it came, whatever was done with it and however that ended."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from raysweep.models.adapter import Adapter
from raysweep.models.borrowed import borrowed, plain_outputs

Build = Callable[..., PreTrainedModel]


def end_badly(context: AbstractContextManager[None], look: Callable[[], object]) -> None:
    with context:
        look()
        raise KeyError


def test_every_modules_own_mode_comes_back_after_an_error_too(tiny: Build) -> None:
    for prepare in (
        lambda model: model.train(),
        lambda model: model.eval(),
        lambda model: model.model.layers[1].mlp.train(),
        lambda model: model.train().model.layers[2].eval(),
    ):
        model = tiny("llama")
        prepare(model)
        before = [module.training for module in model.modules()]
        modes: list[bool] = []
        with pytest.raises(KeyError):
            end_badly(borrowed(model), lambda: modes.extend(m.training for m in model.modules()))  # noqa: B023
        assert modes == [False] * len(before)
        assert [module.training for module in model.modules()] == before


def test_a_module_whose_mode_is_more_than_a_flag_is_put_back_by_itself(tiny: Build) -> None:
    class Merging(torch.nn.Linear):
        merged = False

        def train(self, mode: bool = True) -> Any:
            self.merged = not mode
            return super().train(mode)

    model = tiny("llama")
    model.model.layers[0].mlp.up_proj = Merging(16, 40, bias=False)
    model.train()
    with borrowed(model):
        assert model.model.layers[0].mlp.up_proj.merged
    assert not model.model.layers[0].mlp.up_proj.merged
    assert model.model.layers[0].mlp.up_proj.training


def test_compiled_layers_are_replaced_for_the_time_being_only(tiny: Build) -> None:
    model = tiny("llama")
    layers = model.model.layers
    inner = layers[1]
    layers[1] = wrapper = torch.compile(inner, backend="eager")
    layers[2].compile(backend="eager")
    call = layers[2]._compiled_call_impl
    seen: list[Any] = []
    with pytest.raises(KeyError):
        end_badly(borrowed(model), lambda: seen.extend([layers[1], layers[2]._compiled_call_impl]))
    assert seen == [inner, None]
    assert layers[1] is wrapper
    assert layers[2]._compiled_call_impl is call


def test_flags_of_a_config_are_plain_for_the_time_being_only(tiny: Build) -> None:
    config = tiny("llama").config
    config.output_hidden_states, config.return_dict = True, False
    seen: list[Any] = []
    with pytest.raises(KeyError):
        end_badly(plain_outputs([config]), lambda: seen.extend([config.output_hidden_states, config.return_dict]))
    assert seen == [False, True]
    assert (config.output_hidden_states, config.return_dict) == (True, False)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "falcon"])
@pytest.mark.parametrize(
    "flags",
    [{"output_hidden_states": True}, {"output_hidden_states": [1]}, {"return_dict": False}, {"use_cache": False}],
    ids=str,
)
def test_the_configs_flags_do_not_change_what_the_adapter_reads(tiny: Build, kind: str, flags: dict[str, Any]) -> None:
    plain, model = Adapter(tiny(kind)), tiny(kind)
    for name, value in flags.items():
        setattr(model.config, name, value)
    adapter = Adapter(model)
    tokens = torch.arange(12).reshape(2, 6)
    ours, theirs = adapter.record(tokens).states, plain.record(tokens).states
    assert torch.equal(adapter.logits(ours[:, -1]), plain.logits(theirs[:, -1]))
    assert {name: getattr(model.config, name) for name in flags} == flags
    assert not any(module._forward_hooks for module in model.modules()), "transformers would have left some"


@pytest.mark.filterwarnings("ignore:.*checkpointing.* is deprecated:FutureWarning")  # transformers' own
def test_gradient_checkpointing_does_not_disturb(tiny: Build) -> None:
    model = tiny("llama")
    expected = Adapter(copy.deepcopy(model)).record(torch.arange(6)[None]).states
    model.gradient_checkpointing_enable()
    model.train()
    with borrowed(model):
        assert torch.equal(Adapter(model).record(torch.arange(6)[None]).states, expected)
    assert model.training
    assert model.is_gradient_checkpointing
