"""Changes to a loaded model that are always undone: context managers that restore in `finally`."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, get_args

import torch
from numpy.typing import ArrayLike
from torch import nn

from raysweep.errors import InputError, nearest
from raysweep.models.adapter import Adapter
from raysweep.models.blocks import find_blocks
from raysweep.models.given import A_MODEL, is_compiled
from raysweep.models.machine_errors import is_machine_error
from raysweep.models.transfers import to_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Mode = Literal["project", "paper"]
Positions = Literal["last", "all"]
MODES: tuple[str, ...] = get_args(Mode)
POSITIONS: tuple[str, ...] = get_args(Positions)


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
                f"{type(block).__name__} has the weight {name}, which is {what} and cannot be interpolated; remove "
                "`coefficients`, or load the model completely in a floating-point dtype"
            )
    made = copy.deepcopy(block, kept)  # a config is no part of a layer, and stays the one it is
    theirs = donor.state_dict()
    for name, weight in made.state_dict().items():  # buffers that are stored are weights, too
        if weight.is_floating_point() and (names is None or name.partition(".")[0] in names):
            exact = torch.promote_types(weight.dtype, torch.float32)
            other = theirs[name].to(device=weight.device, dtype=exact)
            weight.copy_((1 - share) * weight.to(exact) + share * other)
    return made


def orthonormal_rows(components_KD: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis [K', D] of the span of the rows [K, D], float64 on the CPU; K' ≤ K is the span's dimension.

    Raises InputError for what is no matrix or not finite.
    """
    rows_KD = torch.as_tensor(components_KD).detach().to("cpu", torch.float64)
    if rows_KD.ndim != 2 or not rows_KD.isfinite().all():
        what = f"a tensor of shape {tuple(rows_KD.shape)}" if rows_KD.ndim != 2 else "values that are not finite"
        raise InputError(f"components are finite directions [K, D], a row each; got {what}")
    if not rows_KD.numel():
        return rows_KD[:0]
    # a direction counts the same whatever its length
    scale_K1 = rows_KD.norm(dim=1, keepdim=True)
    _, sizes_K, basis_KD = torch.linalg.svd(rows_KD / scale_K1.where(scale_K1 > 0, 1), full_matrices=False)
    rounding = max(rows_KD.shape) * torch.finfo(torch.float64).eps * max(1.0, float(sizes_K[0]))
    spanned: torch.Tensor = basis_KD[sizes_K > rounding]
    return spanned


def part_within(states: torch.Tensor, basis_KD: torch.Tensor, mean_D: torch.Tensor | None = None) -> torch.Tensor:
    """The part of states [..., D] in the subspace that has this orthonormal basis [K, D]: Σ_k ⟨h − mean, c_k⟩ c_k.

    From the origin where there is no mean. In float64, so that what is left is no more than the rounding of the states.
    """
    basis_KD = basis_KD.to(device=states.device, dtype=torch.float64)
    from_mean = states.double() if mean_D is None else states.double() - mean_D.to(states.device, torch.float64)
    return (from_mean @ basis_KD.T) @ basis_KD


def _as_tensor(name: str, given: ArrayLike | torch.Tensor) -> torch.Tensor:
    """Numbers in lists or arrays as a tensor. Raises InputError for an empty list, and for what is no array of numbers."""
    if isinstance(given, Sequence) and not len(given):
        raise InputError(f"{name} is empty; give at least one direction")
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        if is_machine_error(error):
            raise
        raise InputError(f"{name} is of type {type(given).__name__}, not an array of numbers: {error}") from error


@contextmanager
def removed(
    model: PreTrainedModel | Adapter,
    layer: int,
    components_KD: ArrayLike | torch.Tensor,
    *,
    mode: Mode = "project",
    positions: Positions | slice = "last",
    stored_D: ArrayLike | torch.Tensor | None = None,
    mean_D: ArrayLike | torch.Tensor | None = None,
) -> Iterator[None]:
    """Remove directions from what a decoder layer puts out, while the context lasts.

    Only the block is hooked; no weight changes. Directions need not be orthogonal or of unit length; only their span counts.

    Args:
        model: A loaded transformers model, or an `Adapter`.
        layer: The layer, from 0.
        components_KD: The directions [K, D].
        mode: `"project"` subtracts each state's own part in their span, so that its inner product with each direction is 0.
            `"paper"` subtracts the part of `stored_D` instead, the same at every step.
        positions: `"last"` changes the last token of each pass, which in generation with a cache is the prompt's last token and
            every token after it; `"all"` changes every token; a slice changes those tokens of a pass.
        stored_D: For `paper`: the state [D] stored for the example, or [B, D] for each example of a batch.
        mean_D: Take parts of the states' difference from this mean [D], which then stays.

    Raises:
        InputError: An argument does not fit the model; nothing was changed.
        IndexError: The model has no such layer.
    """
    owner: Any = model.model if isinstance(model, Adapter) else model
    if not isinstance(owner, nn.Module) or not hasattr(owner, "config"):
        raise InputError(f"model is of type {type(owner).__name__}; give {A_MODEL}, or a raysweep.Adapter")
    compiled = next(
        (path or "it" for path, m in owner.named_modules() if is_compiled(m) or m._compiled_call_impl), None
    )
    if compiled is not None:
        raise InputError(
            f"{type(owner).__name__} is compiled ({compiled}), and compiled code ignores hooks that are registered "
            "later; give the model without torch.compile, and call that one"
        )
    blocks = model.blocks if isinstance(model, Adapter) else find_blocks(owner)
    if isinstance(layer, bool) or not isinstance(layer, SupportsIndex):
        raise InputError(f"layer is {layer!r}, of type {type(layer).__name__}; give the number of a layer, from 0")
    if not 0 <= layer < len(blocks):
        raise IndexError(f"layer {layer} is not among {len(blocks)} layers")
    if mode not in MODES:
        raise InputError(f"unknown mode '{mode}'; {nearest(mode, MODES)}")
    if not isinstance(positions, slice) and positions not in POSITIONS:
        raise InputError(f"unknown positions '{positions}', and no slice; {nearest(positions, POSITIONS)}")
    if (stored_D is not None) != (mode == "paper"):
        raise InputError(
            f"mode '{mode}' {'needs' if mode == 'paper' else 'has no use for'} stored_D, the state whose part is subtracted"
        )
    components_KD = _as_tensor("components_KD", components_KD)
    stored_D = None if stored_D is None else _as_tensor("stored_D", stored_D)
    mean_D = None if mean_D is None else _as_tensor("mean_D", mean_D)
    basis_KD = orthonormal_rows(components_KD)
    config: Any = owner.config
    config = config.get_text_config()
    for name, given in (("components_KD", components_KD), ("stored_D", stored_D), ("mean_D", mean_D)):
        if given is not None and given.shape[-1:] != (config.hidden_size,):
            width = given.shape[-1] if given.ndim else "none"
            raise InputError(f"{name} has width {width}, and the model's states have {config.hidden_size}")
    chosen = {"last": slice(-1, None), "all": slice(None)}.get(positions) if isinstance(positions, str) else positions
    stored_part = None if stored_D is None else part_within(stored_D, basis_KD, mean_D)

    @cache  # copied to a device once, and not for every token
    def constants_on(device: torch.device) -> list[torch.Tensor | None]:
        given = (basis_KD, mean_D, stored_part)
        return [None if tensor is None else to_device(tensor.double(), device) for tensor in given]

    def without(module: nn.Module, args: Any, output: Any) -> Any:
        several = isinstance(output, (tuple, list))
        states = output[0] if several else output
        if not isinstance(states, torch.Tensor) or states.ndim != 3:
            raise InputError(
                f"{type(module).__name__} does not return states [B, T, D], but "
                f"{tuple(states.shape) if isinstance(states, torch.Tensor) else type(states).__name__}; components can be "
                "removed only from a layer with one stream of states"
            )
        before = states[:, chosen]
        basis, mean, part = constants_on(states.device)
        if part is None:
            assert basis is not None
            part = part_within(before, basis, mean)
        elif part.ndim == 2:
            part = part[:, None]
        changed = states.clone()
        changed[:, chosen] = (before.double() - part).to(states.dtype)
        return (changed, *output[1:]) if several else changed

    handle = blocks[layer].register_forward_hook(without) if len(basis_KD) else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()
