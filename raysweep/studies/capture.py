"""Capture: what every decoder layer puts out at one position of every example's prompt.

A layer's output is its block's own, before the model's final norm. Only prompt tokens are seen, so the figures do not
depend on any response. Encoders are captured like decoders; of an architecture that carries several streams (Gemma 3n) a
layer's state is all of them, one behind the other. The store and the similarity of what is captured are not this module's.

Shapes: L layers, N examples, D width; B examples of a batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import nn

from raysweep.data.batches import make_batches, pad
from raysweep.data.examples import Example
from raysweep.errors import InputError, nearest
from raysweep.models.adapter import Adapter, Shared, apply_block
from raysweep.models.transfers import to_device

Pooling = Literal["first", "last", "mean"]
POOLINGS: tuple[str, ...] = get_args(Pooling)


@dataclass(frozen=True, repr=False)
class Captured:
    """States [L, N, D] with the place each was taken at: token_pos, token_id [N] (−1 where many were pooled)."""

    states: torch.Tensor
    example_ids: np.ndarray
    token_pos: np.ndarray
    token_ids: np.ndarray

    def __repr__(self) -> str:
        return f"Captured(states {list(self.states.shape)}, {self.states.dtype})"


class Collector:
    """Gathers every block's output for some examples, while the blocks are handed in from the first to the last.

    Who has the blocks at hand for another purpose (a sweep, for which they come from disk) hands them to a `Flight` on the
    way, and they are needed once for both. Raises InputError for an unknown pooling.
    """

    def __init__(self, adapter: Adapter, examples: Sequence[Example], pooling: Pooling, batch_tokens: int) -> None:
        if pooling not in POOLINGS:
            raise InputError(f"unknown pooling '{pooling}'; {nearest(pooling, POOLINGS)}")
        self.adapter, self.examples, self.pooling = adapter, examples, pooling
        self.prompts = [e.tokens[: e.n_prompt] for e in examples]
        sizes = [len(p) for p in self.prompts]
        self.batches = make_batches(sizes, batch_tokens, [adapter.table(size) for size in sizes])
        self._batch_tokens = batch_tokens
        self._out: torch.Tensor | None = None

    @property
    def ids(self) -> set[int]:
        """The examples' ids."""
        return {example.id for example in self.examples}

    def tokens_kept(self, ids: Collection[int]) -> int:
        """How many states [D] are in memory while the examples with these ids are gathered, about."""
        sizes = [example.n_prompt for example in self.examples if example.id in ids]
        return len(sizes) * (max(sizes) + self.adapter.n_layers) if sizes else 0

    def flight(self, ids: Collection[int], batch_tokens: int | None = None) -> Flight:
        """The examples with these ids, in batches (of `batch_tokens`, if less) that go through each block together."""
        chosen = [index for index, example in enumerate(self.examples) if example.id in ids]
        sizes = [len(self.prompts[index]) for index in chosen]
        budget = min(self._batch_tokens, batch_tokens or self._batch_tokens)
        batches = make_batches(sizes, budget, [self.adapter.table(size) for size in sizes])
        return Flight(self, [[chosen[place] for place in batch] for batch in batches])

    def put(self, layers: int | slice, indices: Sequence[int], pooled: torch.Tensor) -> None:
        """Keep the states of the examples at these places: [B, D] of one layer, or [L, B, D] of a slice of them."""
        if self._out is None:
            shape = (self.adapter.n_layers, len(self.examples), pooled.shape[-1])
            self._out = torch.empty(shape, dtype=pooled.dtype)
        self._out[layers, indices] = pooled

    def captured(self) -> Captured:
        """What was gathered; every example must have been in a flight that saw all blocks."""
        if self._out is None:
            raise InputError("there are no examples to capture")
        sizes = [len(p) for p in self.prompts]
        place = {"first": [0] * len(sizes), "last": [size - 1 for size in sizes], "mean": [-1] * len(sizes)}[
            self.pooling
        ]
        ids = [-1 if self.pooling == "mean" else p[at] for p, at in zip(self.prompts, place, strict=True)]
        return Captured(
            self._out,
            np.array([e.id for e in self.examples], dtype=np.int64),
            np.array(place, dtype=np.int32),
            np.array(ids, dtype=np.int64),
        )


class Flight:
    """Batches of a collector's examples on their way through the blocks."""

    def __init__(self, collector: Collector, batches: Sequence[list[int]]) -> None:
        self._collector, self._batches = collector, batches
        sizes = [len(prompt) for prompt in collector.prompts]
        self._recordings = [
            collector.adapter.record(
                torch.from_numpy(pad([collector.prompts[i] for i in indices])), [sizes[i] for i in indices]
            )
            for indices in batches
        ]
        self._entering = [recording.states for recording in self._recordings]
        self._shared: list[Shared] = [{} for _ in batches]
        self._lengths = [torch.tensor([sizes[i] for i in indices]) for indices in batches]
        self._on_device: dict[int, torch.Tensor] = {}  # by batch: what was pooled so far, [L, B, D]

    @torch.no_grad()
    def take(self, layer: int, block: nn.Module) -> None:
        """Send every batch through the block of this layer, the one behind the last that was taken."""
        for at, indices in enumerate(self._batches):
            states = apply_block(block, self._entering[at], self._recordings[at].calls[layer], self._shared[at])
            self._lengths[at] = to_device(self._lengths[at], states.device)
            self._keep(at, layer, indices, _pool(_joined(states), self._lengths[at], self._collector.pooling))
            self._entering[at] = states

    def _keep(self, at: int, layer: int, indices: Sequence[int], pooled: torch.Tensor) -> None:
        """Keep what a layer gave a batch, [B, D]. All layers leave a device in one copy, behind the last: the host waits once."""
        if pooled.device.type == "cpu":
            self._collector.put(layer, indices, pooled)
            return
        n_layers = self._collector.adapter.n_layers
        if layer == 0:
            self._on_device[at] = pooled.new_empty(n_layers, *pooled.shape)
        self._on_device[at][layer] = pooled
        if layer == n_layers - 1:
            self._collector.put(slice(None), indices, self._on_device.pop(at).cpu())


@torch.no_grad()
def capture_states(
    adapter: Adapter,
    examples: Sequence[Example],
    *,
    pooling: Pooling = "last",
    batch_tokens: int = 8192,
    layers: Callable[[], Iterable[nn.Module]] | None = None,
) -> Captured:
    """Every block's output for every example, on the CPU.

    `last` and `first`: the state of that token of the prompt, in the model's own dtype, bit for bit; `first` is for
    encoders ([CLS]): in a causal model the first token has seen nothing but itself. `mean`: the mean over the prompt's
    tokens, special ones included, summed and kept in float32. `layers`, where given, are the blocks from elsewhere than the
    model (from disk): all batches then go through each together. Raises InputError for an unknown pooling.
    """
    collector = Collector(adapter, examples, pooling, batch_tokens)
    for together in [collector.batches] if layers else [[indices] for indices in collector.batches]:
        flight = Flight(collector, together)
        for layer, block in enumerate(layers() if layers else adapter.blocks):
            flight.take(layer, block)
    return collector.captured()


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
    return states.float().masked_fill(~real[..., None], 0).sum(1) / lengths[:, None]
