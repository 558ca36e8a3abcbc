"""What block calls need in memory, and how many tokens a batch may have so that they fit. Bytes.

Plans and workers share this arithmetic: plans take a checkpoint's shapes (engine/room.py), workers the loaded model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from raysweep.models.memory import room_left
from raysweep.models.sizes import eager_heads, experts_per_token, widest_product

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from raysweep.models.adapter import Adapter


@dataclass(frozen=True)
class TokenBytes:
    """What a layer makes of one token: its `state`, the `widest` product, and for each token that it attends to a value of a
    `mask`, and with scores of attention `seen`."""

    state: int
    widest: int
    mask: int
    seen: int

    @classmethod
    def of(cls, *, width: int, widest: int, heads: int, size: int) -> TokenBytes:
        """Those of a state of `width` values of `size` bytes.

        `heads` are those of eager attention, which keeps scores before and after their softmax (computed in float32), 0 of any
        other.
        """
        return cls(width * size, widest * size, size, size + heads * (2 * size + 4))

    @classmethod
    def of_model(cls, adapter: Adapter) -> TokenBytes:
        """Those of a loaded or streamed model."""
        one = adapter.record(torch.zeros(1, 1, dtype=torch.int64)).states
        text = adapter.model.config.get_text_config()
        shapes = {name: weight.shape for name, weight in adapter.blocks.named_parameters()}
        widest = widest_product(shapes, experts_per_token(text))
        return cls.of(width=one.numel(), widest=widest, heads=eager_heads(text), size=one.element_size())

    def call(self, tokens: int, length: int) -> int:
        """What a block call on padded texts of `length` makes: states in and out, the MLP's products, masks and scores."""
        return tokens * (2 * self.state + 4 * self.widest + length * self.seen)

    def block_call(self, tokens: int, length: int, states: int, batch_tokens: int) -> int:
        """What one block call of a sweep makes.

        A call has as many copies of the batch's `tokens` as `batch_tokens` hold, at most one for each of its `states`.
        """
        return self.call(min(max(batch_tokens, tokens), tokens * states), length)

    def at_work(self, tokens: int, length: int, states: int, batch_tokens: int) -> int:
        """What the batch at work in a sweep needs beside its states that wait: those behind the layer, and a block call."""
        return tokens * states * self.state + self.block_call(tokens, length, states, batch_tokens)


def cache_values(config: PreTrainedConfig, n_layers: int) -> int:
    """Keys and values that a model keeps of one token while it writes text; `config` is the language model's."""
    heads = getattr(config, "num_attention_heads", None) or 1
    kept = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // _most(heads)
    return 2 * n_layers * _most(kept) * _most(width)


def _most(value: int | Sequence[int]) -> int:
    """The value, or the largest if a config lists one for each layer."""
    return value if isinstance(value, int) else max(value)


def room_on(*adapters: Adapter, memory: int | None = None) -> int | None:
    """What states and calls may take on the models' GPUs, on the one with the least; None if they are on none."""
    devices = {str(weight.device) for a in adapters for weight in a.model.parameters()} | {
        str(a.device) for a in adapters
    }
    return min((room_left(device, memory) for device in devices if device.startswith("cuda")), default=None)


def fitting_tokens(batch_tokens: int, lengths: Sequence[int], room: int, need: Callable[[int, int], int]) -> int:
    """The padded tokens of a batch: `batch_tokens`, halved until a batch of texts of these lengths fits into `room`.

    `need` gives the bytes for a batch of so many padded tokens and calls of at most so many. The result is never less than
    the longest text, because that one needs its memory in any batch.
    """
    longest = max(lengths, default=0)

    def fits(tokens: int) -> bool:
        return need(min(max(tokens, longest), len(lengths) * longest), tokens) <= room

    while batch_tokens > longest and not fits(batch_tokens):
        batch_tokens = max(longest, batch_tokens // 2)
    return batch_tokens
