"""Replaying a model's blocks one by one against the model's own forward, which is the oracle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import DECODERS, build
from torch import nn
from transformers import LlamaForCausalLM, LlamaModel, PreTrainedModel

from raysweep.errors import InputError
from raysweep.models.adapter import Adapter, BlockCall, apply_block
from raysweep.models.blocks import find_blocks, find_body
from raysweep.models.checkpoint import describe
from raysweep.models.loading import load_model

KINDS = ("llama", "gpt2", "qwen3", "falcon")
Build = Callable[..., PreTrainedModel]


def tokens(rows: int = 3, length: int = 17, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 320, (rows, length), generator=torch.Generator().manual_seed(seed))


def replay(adapter: Adapter, batch: torch.Tensor) -> torch.Tensor:
    recording = adapter.record(batch)
    states = recording.states
    for block, call in zip(adapter.blocks, recording.calls, strict=True):
        states = apply_block(block, states, call)
    return adapter.logits(states.flatten(0, 1)).unflatten(0, batch.shape)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [4, 6])
def test_replay_is_the_models_own_forward_bit_for_bit(kind: str, layers: int, tiny: Build) -> None:
    model = tiny(kind, layers)
    batch = tokens()
    with torch.no_grad():
        own = model(input_ids=batch, use_cache=False).logits
    assert own.std() > 0.1, "logits that hardly differ would prove nothing"
    assert torch.equal(replay(Adapter(model), batch), own)


@pytest.mark.parametrize("kind", KINDS)
def test_every_blocks_output_is_the_hidden_state_that_transformers_reports(kind: str, tiny: Build) -> None:
    model = tiny(kind)
    adapter, batch = Adapter(model), tokens()
    with torch.no_grad():
        reported = model(input_ids=batch, use_cache=False, output_hidden_states=True).hidden_states
    recording = adapter.record(batch)
    assert torch.equal(recording.states, reported[0])
    states = recording.states
    for layer, (block, call) in enumerate(zip(adapter.blocks, recording.calls, strict=True)):
        states = apply_block(block, states, call)
        if layer + 1 < adapter.n_layers:  # transformers reports the last one behind the final norm
            assert torch.equal(states, reported[layer + 1])


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_found_where_the_architecture_keeps_them(kind: str, tiny: Build, block_path: dict[str, str]) -> None:
    model = tiny(kind, 5)
    adapter = Adapter(model)
    assert adapter.blocks is model.get_submodule(block_path[kind])
    assert adapter.block_path == block_path[kind]
    assert adapter.n_layers == 5
    assert not model.training


@pytest.mark.parametrize(("kind", "is_tuple"), [("llama", False), ("gpt2", False), ("qwen3", False), ("falcon", True)])
def test_both_kinds_of_block_output_occur_among_the_tested_models(kind: str, is_tuple: bool, tiny: Build) -> None:
    kinds = []
    model = tiny(kind)
    find_blocks(model)[0].register_forward_hook(lambda module, args, output: kinds.append(isinstance(output, tuple)))
    with torch.no_grad():
        model(input_ids=tokens(), use_cache=False)
    assert kinds == [is_tuple]


@pytest.mark.parametrize("kind", KINDS)
def test_use_leaves_modules_weights_and_hooks_as_they_were(kind: str, tiny: Build) -> None:
    model = tiny(kind)
    find_blocks(model)[1].register_forward_hook(lambda module, args, output: None)
    before = [(name, id(module), type(module)) for name, module in model.named_modules()]
    weights = [(name, id(p), p.detach().clone()) for name, p in model.named_parameters()]
    replay(Adapter(model), tokens())
    assert [(name, id(module), type(module)) for name, module in model.named_modules()] == before
    assert hooks(model) == 1, "only the test's own hook"
    for (name, identity, value), (other, parameter) in zip(weights, model.named_parameters(), strict=True):
        assert (name, identity) == (other, id(parameter))
        assert torch.equal(value, parameter)


def test_blocks_come_back_after_an_exception_in_the_models_forward(tiny: Build) -> None:
    model = tiny("llama")
    adapter = Adapter(model)
    real = list(adapter.blocks)
    norm = model.model.norm.register_forward_pre_hook(lambda module, args: (_ for _ in ()).throw(OSError("torn")))
    with pytest.raises(OSError, match="torn"):
        adapter.record(tokens())
    assert [a is b for a, b in zip(adapter.blocks, real, strict=True)] == [True] * 4
    with pytest.raises(OSError, match="torn"):
        adapter.logits(torch.zeros(2, 16))
    assert [a is b for a, b in zip(adapter.blocks, real, strict=True)] == [True] * 4
    norm.remove()
    head = model.lm_head.register_forward_pre_hook(lambda module, args: (_ for _ in ()).throw(OSError("torn")))
    with pytest.raises(OSError, match="torn"):
        adapter.logits(torch.zeros(2, 16))
    assert isinstance(model.model, LlamaModel), "the stand-in is gone"
    head.remove()
    with torch.no_grad():
        assert torch.equal(replay(adapter, tokens()), model(input_ids=tokens(), use_cache=False).logits)


def test_logits_take_each_state_by_itself(tiny: Build) -> None:
    adapter = Adapter(tiny("qwen3"))
    states = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    together = adapter.logits(states)
    assert together.shape == (5, 320)
    alone = torch.cat([adapter.logits(state[None]) for state in states])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [*KINDS, "gemma2", "cohere2", "opt"])
def test_a_direct_head_call_has_the_bits_and_gradients_of_a_replay(kind: str) -> None:
    adapter = Adapter(build(DECODERS[kind]))
    found = []
    for hook in (None, lambda module, args, output: None):
        if hook is not None:  # a hook on what a direct call skips
            find_body(adapter.model).register_forward_hook(hook)
        assert adapter.calls_head_directly == (hook is None)
        states = torch.randn(5, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
        logits = adapter.logits(states)
        found.append((logits, *torch.autograd.grad(logits.square().sum(), states)))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


def test_a_direct_head_call_runs_neither_embedding_nor_rotary_tables(tiny: Build) -> None:
    model, called = tiny("llama"), []
    adapter = Adapter(model)
    for name, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda module, args, output, name=name: called.append(name))
    adapter.logits(torch.zeros(2, 16))
    assert called == ["model.norm", "lm_head"]


@pytest.mark.parametrize("place", ["model", "model.norm", "lm_head"])
def test_hooks_around_the_blocks_change_logits_whenever_they_were_added(place: str, tiny: Build) -> None:
    model, batch = tiny("llama"), tokens()
    early = Adapter(model)

    def shift(module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, torch.Tensor):
            return output + 1
        return type(output)(last_hidden_state=output.last_hidden_state + 1)

    model.get_submodule(place).register_forward_hook(shift)
    with torch.no_grad():
        own = model(input_ids=batch, use_cache=False).logits
    for adapter in (early, Adapter(model)):
        assert torch.equal(replay(adapter, batch), own)
        assert adapter.calls_head_directly == (place != "model")


def test_a_norm_that_is_replaced_is_used(tiny: Build) -> None:
    model, batch = tiny("llama"), tokens()
    adapter = Adapter(model)
    model.model.norm = nn.LayerNorm(16)
    with torch.no_grad():
        assert torch.equal(replay(adapter, batch), model(input_ids=batch, use_cache=False).logits)


class _ScalesItsEnd(LlamaModel):
    """A decoder that does more behind its norm than modules show."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        out.last_hidden_state = 2 * out.last_hidden_state
        return out


def test_a_decoder_that_does_more_behind_its_blocks_is_replayed(tiny: Build) -> None:
    model, batch = tiny("llama"), tokens()
    model.model.__class__ = _ScalesItsEnd
    adapter = Adapter(model)
    assert not adapter.calls_head_directly
    with torch.no_grad():
        assert torch.equal(replay(adapter, batch), model(input_ids=batch, use_cache=False).logits)


def test_no_block_is_computed_while_recording(tiny: Build) -> None:
    adapter = Adapter(tiny("llama"))
    called = []
    for block in adapter.blocks:
        block.self_attn.register_forward_hook(lambda module, args, output: called.append(1))
    adapter.record(tokens())
    assert called == []


class _SkipsOne(LlamaForCausalLM):
    """A model whose decoder leaves its third block out."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        blocks = self.model.layers
        self.model.layers = nn.ModuleList([*blocks[:2], *blocks[3:]])
        try:
            return super().forward(*args, **kwargs)
        finally:
            self.model.layers = blocks


class _MixesBetween(LlamaForCausalLM):
    """A model that does something of its own between two blocks, which no block call shows."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        block = self.model.layers[1]
        hook = block.register_forward_pre_hook(lambda module, entering: (2 * entering[0], *entering[1:]))
        try:
            return super().forward(*args, **kwargs)
        finally:
            hook.remove()


class _TwiceThrough(LlamaModel):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(inputs_embeds=super().forward(*args, **kwargs).last_hidden_state, use_cache=False)


class _CallsTwice(LlamaForCausalLM):
    """A model that goes through its blocks twice."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = _TwiceThrough(config)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (_SkipsOne, r"_SkipsOne cannot be swept layer by layer: its forward calls 3 of its 4 blocks"),
        (
            _MixesBetween,
            r"_MixesBetween cannot be swept .*: replaying its blocks produces logits that differ by .* from",
        ),
        (_CallsTwice, r"_CallsTwice cannot be swept layer by layer: its forward makes 8 block calls for 4 blocks"),
    ],
)
def test_a_model_that_does_not_just_call_its_blocks_is_refused(kind: Any, message: str, tiny: Build) -> None:
    model = kind(tiny("llama").config)
    real = list(model.model.layers)
    with pytest.raises(InputError, match=message):
        Adapter(model)
    assert [a is b for a, b in zip(model.model.layers, real, strict=True)] == [True] * 4
    assert hooks(model) == 0


def test_a_model_without_a_list_of_blocks_is_refused(tiny: Build) -> None:
    model = tiny("llama", 4)
    model.model.layers = nn.ModuleList(list(model.model.layers)[:3])
    with pytest.raises(InputError, match=r"LlamaForCausalLM has no list of 4 blocks that raysweep can find"):
        Adapter(model)


def test_damaged_weights_are_refused_as_such(tiny: Build) -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[3] = torch.nan
    with pytest.raises(InputError, match=r"logits that are not finite in torch.float32; its weights are damaged"):
        Adapter(model)


def test_a_block_that_returns_something_else_is_refused() -> None:
    class Odd(nn.Module):
        def forward(self, states: torch.Tensor) -> Any:
            return {"states": states}

    with pytest.raises(InputError, match=r"Odd returned dict, but states of shape \(1, 2, 3\) were expected"):
        apply_block(Odd(), torch.zeros(1, 2, 3), BlockCall((), {}))


def test_layers_offloaded_to_disk_replay_as_resident_ones(tiny: Build, tmp_path: Path) -> None:
    tiny("llama", 4).save_pretrained(tmp_path)
    checkpoint = describe(str(tmp_path))
    parts = ["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"]
    placed = dict.fromkeys(parts, "cpu") | {f"model.layers.{i}": "disk" if i in (1, 2) else "cpu" for i in range(4)}
    resident, spread = load_model(checkpoint), load_model(checkpoint, device_map=placed)
    devices = [next(block.parameters()).device.type for block in find_blocks(spread)]
    assert devices == ["cpu", "meta", "meta", "cpu"], "offloaded weights are only read for their layer's call"
    adapter = Adapter(spread)
    assert torch.equal(replay(adapter, tokens()), replay(Adapter(resident), tokens()))
    assert [next(block.parameters()).device.type for block in find_blocks(spread)] == devices


def test_a_model_whose_embedding_is_offloaded_takes_tokens_on_the_cpu(tiny: Build, tmp_path: Path) -> None:
    tiny("llama", 2).save_pretrained(tmp_path)
    checkpoint = describe(str(tmp_path))
    placed = {"model.embed_tokens": "disk", "model.layers": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    adapter = Adapter(load_model(checkpoint, device_map=placed | {"lm_head": "cpu"}))
    assert adapter.device == torch.device("cpu")
    assert torch.equal(replay(adapter, tokens()), replay(Adapter(load_model(checkpoint)), tokens()))
