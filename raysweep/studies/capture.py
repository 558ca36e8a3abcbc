"""Capture: what every decoder layer puts out at one position of every example's prompt.

A layer's output is its block's own, before the model's final norm. Only prompt tokens are seen, so the figures do not
depend on any response. Encoders are captured like decoders; of an architecture that carries several streams (Gemma 3n) a
layer's state is all of them, one behind the other. The store and the similarity of what is captured are not this module's.

Shapes: L layers, N examples, D width; B examples of a batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import nn

from raysweep.data.batches import make_batches, pad
from raysweep.data.examples import Example
from raysweep.errors import InputError, nearest
from raysweep.models.adapter import Adapter, Shared, apply_block

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Pooling = Literal["first", "last", "mean"]
POOLINGS: tuple[str, ...] = get_args(Pooling)


@dataclass(frozen=True)
class Captured:
    """States [L, N, D] with the place each was taken at: token_pos, token_id [N] (−1 where many were pooled)."""

    states: torch.Tensor
    example_ids: np.ndarray
    token_pos: np.ndarray
    token_ids: np.ndarray


@torch.no_grad()
def capture_states(
    adapter: Adapter,
    examples: Sequence[Example],
    *,
    pooling: Pooling = "last",
    batch_tokens: int = 8192,
    progress: Callable[[int], None] | None = None,
    layers: Callable[[], Iterable[nn.Module]] | None = None,
) -> Captured:
    """Every block's output for every example, on the CPU.

    `last` and `first`: the state of that token of the prompt, in the model's own dtype, bit for bit; `first` is for
    encoders ([CLS]): in a causal model the first token has seen nothing but itself. `mean`: the mean over the prompt's
    tokens, special ones included, summed and kept in float32. `layers`, where given, are the blocks from elsewhere than the
    model (from disk): all batches then go through each together. Raises InputError for an unknown pooling.
    """
    if pooling not in POOLINGS:
        raise InputError(f"unknown pooling '{pooling}'; {nearest(pooling, POOLINGS)}")
    prompts = [e.tokens[: e.n_prompt] for e in examples]
    out: torch.Tensor | None = None
    sizes = [len(p) for p in prompts]
    batches = make_batches(sizes, batch_tokens, [adapter.table(size) for size in sizes])
    for together in [batches] if layers else [[indices] for indices in batches]:
        flights = [
            (indices, adapter.record(torch.from_numpy(pad([prompts[i] for i in indices])), [sizes[i] for i in indices]))
            for indices in together
        ]
        entering = [recording.states for _, recording in flights]
        shared: list[Shared] = [{} for _ in flights]
        for layer, block in enumerate(layers() if layers else adapter.blocks):
            for at, (indices, recording) in enumerate(flights):
                states = apply_block(block, entering[at], recording.calls[layer], shared[at])
                lengths = torch.tensor([sizes[i] for i in indices], device=states.device)
                pooled = _pool(_joined(states), lengths, pooling).cpu()
                if out is None:
                    out = torch.empty(adapter.n_layers, len(examples), pooled.shape[-1], dtype=pooled.dtype)
                out[layer, indices] = pooled
                entering[at] = states
        if progress:
            progress(sum(map(len, together)))
    if out is None:
        raise InputError("there are no examples to capture")
    place = {"first": [0] * len(prompts), "last": [size - 1 for size in sizes], "mean": [-1] * len(prompts)}[pooling]
    ids = [-1 if pooling == "mean" else p[at] for p, at in zip(prompts, place, strict=True)]
    return Captured(
        out,
        np.array([e.id for e in examples], dtype=np.int64),
        np.array(place, dtype=np.int32),
        np.array(ids, dtype=np.int64),
    )


def _joined(states: torch.Tensor) -> torch.Tensor:
    """[B, T, D] from [..., B, T, D]: streams side by side become one wider state."""
    return states if states.ndim == 3 else states.movedim(0, -2).flatten(-2)


def _pool(states: torch.Tensor, lengths: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """[B, D] from [B, T, D]; padding is behind position `lengths`."""
    if pooling == "first":
        return states[:, 0]
    if pooling == "last":
        return states[torch.arange(len(states), device=states.device), lengths - 1]
    real = torch.arange(states.shape[1], device=states.device)[None] < lengths[:, None]
    return (states.float() * real[..., None]).sum(1) / lengths[:, None]


def capture(
    model: PreTrainedModel | Adapter,
    examples: Sequence[Example],
    pooling: Pooling = "last",
    *,
    batch_tokens: int = 8192,
) -> torch.Tensor:
    """States [L, N, D] of every decoder layer's output at the chosen position of each example's prompt.

    In the model's own dtype for `last` and `first`, float32 for `mean`; on the CPU.
    """
    adapter = model if isinstance(model, Adapter) else Adapter(model)
    return capture_states(adapter, examples, pooling=pooling, batch_tokens=batch_tokens).states
