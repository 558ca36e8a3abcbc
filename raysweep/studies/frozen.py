"""Whether a training left alone what it had to: each tensor's digest before and after."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raysweep.errors import RunError

if TYPE_CHECKING:
    import torch
    from torch import nn

_MOST_NAMED = 5


@dataclass(frozen=True)
class Kept:
    """`frozen` tensors are bit for bit what they were, `changed` ones were trained; `unchanged` ones should have been.

    A trained tensor stays as it was where it gets no gradient (the expert that no token goes to), or where a step is
    smaller than its dtype can tell.
    """

    frozen: int
    changed: int
    unchanged: tuple[str, ...] = ()


def own_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """A model's parameters and the buffers that a checkpoint has, by name; what is tied is there once."""
    stored = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in stored}
    return {**{name: parameter.detach() for name, parameter in model.named_parameters()}, **buffers}


def digests(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Each tensor's digest: of dtype, shape and bits."""
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(tensors, pool.map(_digest, tensors.values()), strict=True))


def _digest(tensor: torch.Tensor) -> str:
    import torch

    found = hashlib.sha256(f"{tensor.dtype}{list(tensor.shape)}".encode())
    found.update(tensor.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def compare(before: Mapping[str, str], after: Mapping[str, str], trained: Collection[str]) -> Kept:
    """What became of the tensors of `before`, of which those in `trained` were trained.

    Raises RunError where a frozen one moved, or is gone, naming it, and where no trained one changed.
    """
    moved = [name for name in before if name not in trained and after.get(name) != before[name]]
    if moved:
        more = f" and {len(moved) - _MOST_NAMED} more" if len(moved) > _MOST_NAMED else ""
        raise RunError(
            f"{len(moved)} tensors that should stay frozen have changed: {', '.join(moved[:_MOST_NAMED])}{more}; the "
            "training is not the one requested, and is discarded"
        )
    unchanged = tuple(name for name in before if name in trained and after.get(name) == before[name])
    n_trained = sum(name in trained for name in before)
    if len(unchanged) == n_trained:
        raise RunError(
            f"none of the {n_trained} trained tensors changed: is the learning rate 0, or too small for their dtype?"
        )
    return Kept(len(before) - n_trained, n_trained - len(unchanged), unchanged)
