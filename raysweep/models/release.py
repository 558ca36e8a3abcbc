"""Giving memory back: what an exception's frames hold, what only a collection finds, what torch keeps for itself.

A model that is spread over devices, a trained one, and what a thread raised are in reference cycles. Python's collector finds
these some time later, too late for a device that has room for one model.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any
from weakref import ref

import torch
from torch import nn


class Watched:
    """Models that are about to be dropped, without keeping them: `is_alive` says whether any of their tensors still is."""

    def __init__(self, models: Iterable[nn.Module]) -> None:
        self._tensors = [ref(tensor) for model in models for tensor in _tensors(model)]

    @property
    def is_alive(self) -> bool:
        """Whether a weight of the models is still in memory."""
        return any(tensor() is not None for tensor in self._tensors)


def _tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def free_memory(*, collect: bool = True) -> None:
    """Collect what is in reference cycles (0.1 to 0.3 s), and give the memory that torch keeps on GPUs back to the driver.

    Other processes on the same GPU can use it then.
    """
    if collect:
        gc.collect()
    cuda: Any = torch.cuda
    if cuda.is_initialized():
        with suppress(torch.AcceleratorError):  # of a device that failed: not what this is about
            cuda.empty_cache()


def drop_locals(error: BaseException) -> None:
    """Clear the variables of the finished frames of an exception, and of those that it comes from: they hold tensors.

    Its traceback still has every line. What nested functions captured goes only with the exception.
    """
    waiting: list[BaseException | None] = [error]
    seen = set[int]()
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        traceback = each.__traceback__
        while traceback is not None:
            try:
                traceback.tb_frame.clear()
                _ = traceback.tb_frame.f_locals  # a copy that somebody looked at follows
            except RuntimeError:  # it is still running
                pass
            traceback = traceback.tb_next
        waiting += [each.__cause__, each.__context__]
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions
