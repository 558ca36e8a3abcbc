"""Changes to a loaded model that are always undone: context managers that restore in `finally`."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from raysweep.errors import InputError


@contextmanager
def substitute(blocks: nn.ModuleList, donors: nn.ModuleList, layers: Iterable[int]) -> Iterator[None]:
    """Put the donor's blocks in the place of `layers` (indices from 0) while the context lasts; no weight is copied.

    Raises IndexError for a layer that either list lacks, before anything is changed.
    """
    chosen = sorted(set(layers))
    for index in chosen:
        if not 0 <= index < min(len(blocks), len(donors)):
            raise IndexError(f"layer {index} is not among {len(blocks)} layers and {len(donors)} donor layers")
    real = {index: blocks[index] for index in chosen}
    try:
        for index in chosen:
            blocks[index] = donors[index]
        yield
    finally:
        for index, block in real.items():
            blocks[index] = block


@contextmanager
def mixed(block: nn.Module, donor: nn.Module, names: Sequence[str]) -> Iterator[nn.Module]:
    """The block itself, with the donor's children of these names while the context lasts; no weight is copied.

    Raises AttributeError for a name that either lacks, before anything is changed.
    """
    real = {name: block.get_submodule(name) for name in names}
    given = {name: donor.get_submodule(name) for name in names}
    try:
        for name, module in given.items():
            setattr(block, name, module)
        yield block
    finally:
        for name, module in real.items():
            setattr(block, name, module)


@torch.no_grad()
def interpolated(block: nn.Module, donor: nn.Module, share: float, names: Sequence[str] | None = None) -> nn.Module:
    """A new block whose weights are (1 − share) · the block's + share · the donor's; neither of the two is changed.

    `names` are the children to interpolate; the others are the block's. Sums are made in float32
    (float64 of float64) and rounded once. Raises InputError for weights that are offloaded or no floating values.
    """
    kept = {id(module.config): module.config for module in block.modules() if hasattr(module, "config")}
    for name, weight in block.named_parameters():
        if weight.is_meta or not weight.is_floating_point():
            what = "offloaded" if weight.is_meta else f"of {weight.dtype}"
            raise InputError(
                f"{type(block).__name__} has the weight {name}, which is {what} and cannot be interpolated; leave "
                "`coefficients` out, or load the model whole in a floating dtype"
            )
    made = copy.deepcopy(block, kept)  # a config is no part of a layer, and stays the one it is
    theirs = donor.state_dict()
    for name, weight in made.state_dict().items():  # buffers that are stored are weights, too
        if weight.is_floating_point() and (names is None or name.partition(".")[0] in names):
            exact = torch.promote_types(weight.dtype, torch.float32)
            other = theirs[name].to(device=weight.device, dtype=exact)
            weight.copy_((1 - share) * weight.to(exact) + share * other)
    return made
