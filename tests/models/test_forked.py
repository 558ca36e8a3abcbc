"""Rows through modules of their own, against each row through its own module alone."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import KVSharingDict
from transformers.models.llama import LlamaConfig

from raysweep.models.forked import ForkedBlock, UnknownCacheError

CHOSEN = [0, 2, 1, 2, 0]


class Block(nn.Module):
    """States times a number, in a tuple; what is shared is added to them, and left times the number."""

    kind = "full"

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, hidden_states: torch.Tensor, shared: Any = None, past_key_values: Any = None) -> Any:
        out = hidden_states * self.factor
        if shared is not None and "full" in shared:
            out = out + shared["full"][0].sum(dim=-1, keepdim=True)
        if shared is not None:
            shared["full"] = (out.flatten(0, -4).sum(dim=0) if out.ndim > 3 else out,)
        if past_key_values is not None:
            keys, _ = past_key_values.update(out[:, None], out[:, None], 1)
            out = out + keys.sum(dim=2)
        return out, None


def forked(blocks: list[Block], layer: int = 1) -> ForkedBlock:
    return ForkedBlock(blocks[0], layer, [partial(nullcontext, block) for block in blocks], torch.tensor(CHOSEN))


@pytest.fixture
def blocks() -> list[Block]:
    return [Block(factor) for factor in (2.0, float("nan"), -3.0)]


@pytest.mark.parametrize("streams", [(), (3,)])
def test_each_row_gets_what_its_own_module_makes_of_it(blocks: list[Block], streams: tuple[int, ...]) -> None:
    states = torch.randn(*streams, len(CHOSEN), 4, 6)
    out, rest = forked(blocks)(states)
    assert rest is None
    for row, choice in enumerate(CHOSEN):
        torch.testing.assert_close(
            out[..., row, :, :], states[..., row, :, :] * blocks[choice].factor, equal_nan=True, rtol=0, atol=0
        )


def test_it_looks_like_the_block_and_owns_no_weight(blocks: list[Block]) -> None:
    made = forked(blocks)
    assert (made.kind, made.factor) == ("full", 2.0)
    assert list(made.parameters()) == []
    with pytest.raises(AttributeError):
        _ = made.nothing


def test_what_blocks_share_is_each_rows_own(blocks: list[Block]) -> None:
    blocks[1] = Block(5.0)
    states, shared = torch.randn(len(CHOSEN), 4, 6), KVSharingDict()
    made = forked(blocks)
    once, _ = made(states, shared)
    twice, _ = made(once, shared=shared)
    for row, choice in enumerate(CHOSEN):
        alone = KVSharingDict()
        first, _ = blocks[choice](states[row : row + 1], alone)
        second, _ = blocks[choice](first, alone)
        torch.testing.assert_close(twice[row], second[0])
        torch.testing.assert_close(shared["full"][0][row], alone["full"][0][0])


def test_each_module_has_a_cache_of_its_own(blocks: list[Block]) -> None:
    blocks[1] = Block(5.0)
    config = LlamaConfig(num_hidden_layers=2)
    steps = [torch.randn(len(CHOSEN), length, 6) for length in (1, 1, 1)]
    for _ in range(2):  # another cache begins empty again
        made, cache = forked(blocks), DynamicCache(config=config)
        found = [made(states, past_key_values=cache)[0] for states in steps]
        assert cache.get_seq_length(1) == 3
        for row, choice in enumerate(CHOSEN):
            own = DynamicCache(config=config)
            for states, out in zip(steps, found, strict=True):
                expected, _ = blocks[choice](states[row : row + 1], past_key_values=own)
                torch.testing.assert_close(out[row], expected[0])


def test_a_cache_of_another_kind_is_told(blocks: list[Block]) -> None:
    cache = StaticCache(config=LlamaConfig(num_hidden_layers=2), max_cache_len=8)
    with pytest.raises(UnknownCacheError, match="StaticCache"):
        forked(blocks)(torch.zeros(len(CHOSEN), 1, 6), past_key_values=cache)
