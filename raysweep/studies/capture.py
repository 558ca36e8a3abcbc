"""Capture: what every decoder layer puts out at one position of every example's prompt.

A layer's output is its block's own, before the model's final norm. Only prompt tokens are seen, so the figures do not
depend on any response. Encoders are captured like decoders; of an architecture that carries several streams (Gemma 3n) a
layer's state is all of them, one behind the other. The store and the similarity of what is captured are not this module's.

Shapes: L layers, N examples, D width; B examples of a batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch

from raysweep.data.batches import make_batches, pad
from raysweep.data.examples import Example
from raysweep.errors import InputError, nearest
from raysweep.models.adapter import Adapter, apply_block

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
) -> Captured:
    """Every block's output for every example, on the CPU.

    `last` and `first`: the state of that token of the prompt, in the model's own dtype, bit for bit; `first` is for
    encoders ([CLS]): in a causal model the first token has seen nothing but itself. `mean`: the mean over the prompt's
    tokens, special ones included, summed and kept in float32. Raises InputError for an unknown pooling.
    """
    if pooling not in POOLINGS:
        raise InputError(f"unknown pooling '{pooling}'; {nearest(pooling, POOLINGS)}")
    prompts = [e.tokens[: e.n_prompt] for e in examples]
    out: torch.Tensor | None = None
    sizes = [len(p) for p in prompts]
    for indices in make_batches(sizes, batch_tokens, [adapter.table(size) for size in sizes]):
        tokens = torch.from_numpy(pad([prompts[i] for i in indices]))
        lengths = [sizes[i] for i in indices]
        recording = adapter.record(tokens, lengths)
        states = recording.states
        for layer, (block, call) in enumerate(zip(adapter.blocks, recording.calls, strict=True)):
            states = apply_block(block, states, call)
            pooled = _pool(_joined(states), torch.tensor(lengths, device=states.device), pooling).cpu()
            if out is None:
                out = torch.empty(adapter.n_layers, len(examples), pooled.shape[-1], dtype=pooled.dtype)
            out[layer, indices] = pooled
        if progress:
            progress(len(indices))
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
