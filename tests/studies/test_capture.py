"""Captured states against forward hooks on the model's blocks, one unpadded example at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from raysweep.data.examples import Example
from raysweep.errors import InputError
from raysweep.models.adapter import Adapter
from raysweep.notebook import capture
from raysweep.studies.capture import _pool, capture_states

KINDS = ("llama", "gpt2", "qwen3", "falcon")
Build = Callable[..., PreTrainedModel]
Draw = Callable[..., list[Example]]


def hooked(model: PreTrainedModel, examples: Sequence[Example], block_path: str) -> list[list[torch.Tensor]]:
    """Every block's output [T, D] for every example's prompt alone: [L][N]."""
    blocks = model.get_submodule(block_path)
    out: list[list[torch.Tensor]] = [[] for _ in blocks]

    def note(layer: int) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: object, output: object) -> None:
            states = output[0] if isinstance(output, tuple) else output
            assert isinstance(states, torch.Tensor)
            out[layer].append(states[0].clone())

        return hook

    handles = [block.register_forward_hook(note(layer)) for layer, block in enumerate(blocks)]
    for example in examples:
        with torch.no_grad():
            model(input_ids=torch.from_numpy(example.tokens[: example.n_prompt])[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return out


def last(states: list[list[torch.Tensor]]) -> torch.Tensor:
    return torch.stack([torch.stack([state[-1] for state in of_layer]) for of_layer in states])


@pytest.mark.parametrize("kind", KINDS)
def test_last_is_the_state_of_the_last_prompt_token(
    kind: str, tiny: Build, random_examples: Draw, block_path: dict[str, str]
) -> None:
    model, examples = tiny(kind, 5), random_examples(9)
    states = capture(model, examples, "last", batch_tokens=100)
    assert states.shape == (5, 9, 16)
    assert states.dtype == torch.float32
    torch.testing.assert_close(states, last(hooked(model, examples, block_path[kind])), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_mean_is_over_the_prompts_tokens_alone(
    kind: str, tiny: Build, random_examples: Draw, block_path: dict[str, str]
) -> None:
    model, examples = tiny(kind), random_examples(9)
    states = hooked(model, examples, block_path[kind])
    expected = torch.stack([torch.stack([state.double().mean(0) for state in of_layer]) for of_layer in states])
    found = capture(model, examples, "mean", batch_tokens=100)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_kept_bit_for_bit(
    kind: str, tiny: Build, random_examples: Draw, block_path: dict[str, str]
) -> None:
    model, examples = tiny(kind).to(torch.bfloat16), random_examples(6)
    states = capture(
        model, examples, "last", batch_tokens=1
    )  # alone, as the hooked ones: rounding depends on the batch
    assert states.dtype == torch.bfloat16
    assert torch.equal(states, last(hooked(model, examples, block_path[kind])))


def test_the_mean_of_bfloat16_states_is_summed_in_float32(tiny: Build, random_examples: Draw) -> None:
    model, examples = tiny("llama").to(torch.bfloat16), random_examples(6, longest=60)
    states = hooked(model, examples, "model.layers")
    expected = torch.stack([torch.stack([state.double().mean(0) for state in of_layer]) for of_layer in states])
    found = capture(model, examples, "mean", batch_tokens=1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_padding_does_not_change_a_state(kind: str, pooling: str, tiny: Build, random_examples: Draw) -> None:
    adapter, examples = Adapter(tiny(kind)), random_examples(9, longest=40)
    alone = capture(adapter, examples, pooling, batch_tokens=1)
    for budget in (64, 65_536):
        padded = capture(adapter, examples, pooling, batch_tokens=budget)
        torch.testing.assert_close(padded, alone, rtol=1e-5, atol=1e-5)


def test_what_overflows_at_a_padded_place_is_not_in_the_mean() -> None:
    states = torch.tensor([[[1.0, 2], [3, 4], [torch.inf, torch.nan]], [[5, 6], [7, 8], [9, 10]]]).half()
    pooled = _pool(states, torch.tensor([2, 3]), "mean")
    torch.testing.assert_close(pooled, torch.tensor([[2.0, 3], [7, 8]]))


def test_the_response_is_not_seen(tiny: Build, random_examples: Draw) -> None:
    adapter, examples = Adapter(tiny("llama")), random_examples(5)
    cut = [replace(e, tokens=np.concatenate([e.tokens[: e.n_prompt], [7]])) for e in examples]
    assert torch.equal(capture(adapter, examples), capture(adapter, cut))


def test_the_last_layers_state_is_taken_before_the_final_norm(tiny: Build, random_examples: Draw) -> None:
    model, examples = tiny("llama"), random_examples(3)
    states = capture(model, examples)[-1]
    for example, state in zip(examples, states, strict=True):
        prompt = torch.from_numpy(example.tokens[: example.n_prompt])[None]
        with torch.no_grad():
            out = model(input_ids=prompt, use_cache=False, output_hidden_states=True)
            behind_norm = out.hidden_states[-1][0, -1]
            torch.testing.assert_close(model.model.norm(state), behind_norm, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(state, behind_norm, atol=0.1)


def test_where_each_state_was_taken_is_told(tiny: Build, random_examples: Draw) -> None:
    adapter, examples = Adapter(tiny("llama")), random_examples(5)
    captured = capture_states(adapter, examples, batch_tokens=64)
    assert captured.example_ids.tolist() == [e.id for e in examples]
    assert captured.token_pos.tolist() == [e.n_prompt - 1 for e in examples]
    assert captured.token_ids.tolist() == [int(e.tokens[e.n_prompt - 1]) for e in examples]
    pooled = capture_states(adapter, examples, pooling="mean", batch_tokens=64)
    assert pooled.example_ids.tolist() == [e.id for e in examples]
    assert set(pooled.token_pos.tolist()) == set(pooled.token_ids.tolist()) == {-1}


def test_an_unknown_pooling_is_refused_with_the_nearest(tiny: Build, random_examples: Draw) -> None:
    with pytest.raises(InputError, match=r"^unknown pooling 'lats'; did you mean 'last'\?$"):
        capture(tiny("llama", 2), random_examples(1), "lats")


def test_nothing_to_capture_is_refused(tiny: Build) -> None:
    with pytest.raises(InputError, match="there are no examples to capture"):
        capture_states(Adapter(tiny("llama", 2)), [])
