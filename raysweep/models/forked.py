"""A block that stands for several at once: each row of a batch gets the output of the module that is its own.

Rows that differ in a layer's weights so pass a model together. Every module is called with all rows, so that masks, rotary
tables and whatever else an architecture passes serve as they are; where few tokens pass a layer, reading its weights is what
takes the time. Each module after the first has a cache of its own for its layer.

Shapes: B rows, T tokens, D width; streams side by side (Gemma 3n) come before B.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from raysweep.models.blocks import StandIn
from raysweep.models.kv_sharing import sharing_class
from raysweep.models.transfers import to_device

if TYPE_CHECKING:
    from transformers import Cache

Opened = Callable[[], AbstractContextManager[nn.Module]]


class UnknownCacheError(Exception):
    """The model keeps what it has seen in a way that cannot be had twice for one layer."""


class ForkedBlock(StandIn):
    """Stands where layer `layer`'s block stood.

    `modules` are opened for each call; `chosen` [B] has the index of each row's among them. Its forward raises
    UnknownCacheError where the model comes with a cache that is not transformers' usual one.
    """

    def __init__(self, block: nn.Module, layer: int, modules: Sequence[Opened], chosen: torch.Tensor) -> None:
        super().__init__(block)
        self._layer, self._opened, self._chosen = layer, modules, chosen
        self._rows: dict[torch.device, list[torch.Tensor]] = {}  # which rows [B] are each module's
        self._caches: WeakKeyDictionary[Cache, list[Cache]] = WeakKeyDictionary()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the first module returns, with each row's states [..., B, T, D] from its own."""
        sharing = sharing_class()
        shared = next((value for value in (*args, *kwargs.values()) if isinstance(value, sharing)), None)
        outs: list[Any] = []
        left: list[Any] = []  # shared keys and values, as each module leaves them
        for number, opened in enumerate(self._opened):
            kept = None if shared is None else sharing(shared)
            own = partial(self._own, number, kept)
            with opened() as module:
                outs.append(module(*map(own, args), **{name: own(value) for name, value in kwargs.items()}))
            left.append(kept)
        if shared is not None:
            for key in left[0]:
                shared[key] = tuple(
                    self._merged(of_one, 0) for of_one in zip(*(each[key] for each in left), strict=True)
                )
        first = outs[0]
        if isinstance(first, (tuple, list)):
            return (self._merged([out[0] for out in outs], -3), *first[1:])
        return self._merged(outs, -3)

    def _merged(self, tensors: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
        """Each row (along `dim`) from its own module's tensor."""
        merged = tensors[0]
        behind = [1] * (merged.ndim - 1 - dim % merged.ndim)
        for own, other in zip(self._rows_on(merged.device)[1:], tensors[1:], strict=True):
            merged = torch.where(own.view(-1, *behind), other.to(merged.device), merged)
        return merged

    def _rows_on(self, device: torch.device) -> list[torch.Tensor]:
        """Which rows [B] are each module's, copied to the device once and not for every token."""
        if device not in self._rows:
            chosen = to_device(self._chosen, device)
            self._rows[device] = [chosen == number for number in range(len(self._opened))]
        return self._rows[device]

    def _own(self, number: int, kept: Any, value: Any) -> Any:
        """What module `number` is called with in place of `value`."""
        from transformers.cache_utils import Cache

        if isinstance(value, Cache):
            return self._caches_of(value)[number]
        return kept if isinstance(value, sharing_class()) else value

    def _caches_of(self, cache: Cache) -> list[Cache]:
        """The cache that each module writes to: the model's own, and copies that differ in this layer, still empty, alone."""
        from transformers.cache_utils import DynamicCache

        if type(cache) is not DynamicCache:
            raise UnknownCacheError(type(cache).__name__)
        if cache not in self._caches:
            caches: list[Cache] = [cache]
            for _ in self._opened[1:]:
                twin = copy.copy(cache)
                twin.layers = list(cache.layers)
                if self._layer < len(twin.layers):  # the last layers of some have none, and use what is shared
                    twin.layers[self._layer] = copy.deepcopy(cache.layers[self._layer])
                caches.append(twin)
            self._caches[cache] = caches
        return self._caches[cache]
