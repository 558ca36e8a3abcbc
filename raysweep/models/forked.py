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
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import Cache

Opened = Callable[[], AbstractContextManager[nn.Module]]


class UnknownCacheError(Exception):
    """The model keeps what it has seen in a way that cannot be had twice for one layer."""


class ForkedBlock(nn.Module):
    """Stands where layer `layer`'s block stood, and looks like it.

    `modules` are opened for each call; `chosen` [B] has the index of each row's among them. Its forward raises
    UnknownCacheError where the model comes with a cache that is not transformers' usual one.
    """

    def __init__(self, block: nn.Module, layer: int, modules: Sequence[Opened], chosen: torch.Tensor) -> None:
        super().__init__()
        object.__setattr__(self, "block", block)  # not registered: it owns no parameters
        self._layer, self._modules_of_rows, self._chosen = layer, modules, chosen
        self._caches: WeakKeyDictionary[Cache, list[Cache]] = WeakKeyDictionary()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["block"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the first module returns, with each row's states [..., B, T, D] from its own."""
        from transformers.cache_utils import KVSharingDict

        shared = [value for value in (*args, *kwargs.values()) if isinstance(value, KVSharingDict)]
        theirs: list[list[KVSharingDict]] = []
        first: Any = None
        for number, opened in enumerate(self._modules_of_rows):
            copies = [KVSharingDict(each) for each in shared]
            theirs.append(copies)
            own = self._own(number, dict(zip(map(id, shared), copies, strict=True)))
            with opened() as module:
                out = module(*map(own, args), **{name: own(value) for name, value in kwargs.items()})
            if number == 0:
                first = out
                states: torch.Tensor = out[0] if isinstance(out, (tuple, list)) else out
            else:
                other = out[0] if isinstance(out, (tuple, list)) else out
                states = self._merged(states, other, number, states.ndim - 3)
        for place, each in enumerate(shared):
            for key in {key for copies in theirs for key in copies[place]}:
                merged = theirs[0][place][key]
                for number, copies in enumerate(theirs[1:], 1):
                    pairs = zip(merged, copies[place][key], strict=True)
                    merged = tuple(self._merged(a, b, number, 0) for a, b in pairs)
                each[key] = merged
        return (states, *first[1:]) if isinstance(first, (tuple, list)) else states

    def _merged(self, ours: torch.Tensor, other: torch.Tensor, number: int, dim: int) -> torch.Tensor:
        """`ours`, with the rows (along `dim`) of module `number` from `other`."""
        theirs = (self._chosen == number).to(ours.device)
        return torch.where(theirs.view(-1, *[1] * (ours.ndim - dim - 1)), other.to(ours.device), ours)

    def _own(self, number: int, shared: dict[int, Any]) -> Callable[[Any], Any]:
        """What module `number` is called with in place of each argument."""
        from transformers import Cache

        def own(value: Any) -> Any:
            if isinstance(value, Cache):
                return self._caches_of(value)[number]
            return shared.get(id(value), value)

        return own

    def _caches_of(self, cache: Cache) -> list[Cache]:
        """The cache that each module writes to: the model's own, and copies that differ in this layer, still empty, alone."""
        from transformers import DynamicCache

        if type(cache) is not DynamicCache:
            raise UnknownCacheError(type(cache).__name__)
        if cache not in self._caches:
            caches: list[Cache] = [cache]
            for _ in self._modules_of_rows[1:]:
                twin = copy.copy(cache)
                twin.layers = list(cache.layers)
                if self._layer < len(twin.layers):
                    twin.layers[self._layer] = copy.deepcopy(cache.layers[self._layer])
                caches.append(twin)
            self._caches[cache] = caches
        return self._caches[cache]
