"""Substituted blocks: the donor's own objects while the context lasts, the model's own after it, whatever happened."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from raysweep.models.blocks import find_blocks
from raysweep.models.surgery import substitute

Pairs = Callable[..., tuple[PreTrainedModel, PreTrainedModel]]


def identities(model: PreTrainedModel) -> list[tuple[str, int]]:
    return [(name, id(thing)) for name, thing in [*model.named_modules(), *model.named_parameters()]]


def test_the_donors_blocks_stand_in_while_the_context_lasts_and_no_longer(tiny_pair: Pairs) -> None:
    base, tuned = tiny_pair("llama", 5)
    before, donors = identities(tuned), identities(base)
    weights = {name: p.detach().clone() for name, p in tuned.named_parameters()}
    ours, theirs = list(find_blocks(tuned)), list(find_blocks(base))
    with substitute(find_blocks(tuned), find_blocks(base), [3, 1, 1]):
        stand = list(find_blocks(tuned))
        assert [stand[i] is theirs[i] for i in range(5)] == [False, True, False, True, False]
        assert [stand[i] is ours[i] for i in range(5)] == [True, False, True, False, True]
    assert identities(tuned) == before
    assert identities(base) == donors
    assert all(torch.equal(weights[name], p) for name, p in tuned.named_parameters())


def test_blocks_come_back_after_an_exception(tiny_pair: Pairs) -> None:
    base, tuned = tiny_pair("gpt2", 4)
    before = identities(tuned)

    def fail() -> None:
        with substitute(find_blocks(tuned), find_blocks(base), range(4)):
            assert identities(tuned) != before
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    assert identities(tuned) == before


@pytest.mark.parametrize("layer", [-1, 4])
def test_a_layer_that_is_not_there_changes_nothing(layer: int, tiny_pair: Pairs) -> None:
    base, tuned = tiny_pair("llama", 4)
    before = identities(tuned)
    with (
        pytest.raises(IndexError, match=f"layer {layer} is not among 4 layers and 4 donor layers"),
        substitute(find_blocks(tuned), find_blocks(base), [0, layer]),
    ):
        pytest.fail("the context was entered")
    assert identities(tuned) == before


def test_the_tuned_models_own_forward_runs_with_the_donors_block(tiny_pair: Pairs) -> None:
    base, tuned = tiny_pair("qwen3", 4)
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        untouched = tuned(input_ids=tokens, use_cache=False).logits
        with substitute(find_blocks(tuned), find_blocks(base), [2]):
            substituted = tuned(input_ids=tokens, use_cache=False).logits
        source = dict(base.named_parameters())
        for name, parameter in tuned.named_parameters():
            if name.startswith("model.layers.2."):
                parameter.copy_(source[name])
        copied = tuned(input_ids=tokens, use_cache=False).logits
    assert torch.equal(substituted, copied)
    assert not torch.allclose(substituted, untouched, atol=1e-2)
