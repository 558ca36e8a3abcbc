"""Models as a user has them: wrapped by a compiler or a trainer, with a PEFT adapter in them, or two that share weights.

What can be unwrapped without changing a result is unwrapped. Everything else is refused by name, with what to do instead.
How a model is returned in the state in which it came is borrowed.py's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple, TypeGuard

import torch
from torch import nn

from raysweep.errors import InputError, shortened

if TYPE_CHECKING:
    from transformers import PreTrainedModel

A_MODEL = "a loaded transformers model"


def unwrapped(given: object) -> object:
    """The model inside torch.compile's, DataParallel's and DistributedDataParallel's wrappers; anything else as it is.

    Raises InputError for a wrapper with forward hooks of its own, which would be lost.
    """
    while isinstance(given, nn.Module) and (inner := _inside(given)) is not None:
        _refuse_hooks(given, inner)
        given = inner
    return given


def _refuse_hooks(wrapper: nn.Module, inner: nn.Module) -> None:
    if wrapper._forward_hooks or wrapper._forward_pre_hooks:
        raise InputError(
            f"the {type(wrapper).__name__} around a {type(inner).__name__} has forward hooks, and raysweep calls the "
            f"model inside it; register the hooks on the {type(inner).__name__} itself"
        )


def _inside(module: nn.Module) -> nn.Module | None:
    if is_compiled(module):
        return module._modules["_orig_mod"]
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner: nn.Module = module.module
        return inner
    return None


def is_compiled(module: nn.Module) -> bool:
    """Whether a module is what `torch.compile(module)` returns."""
    return "_orig_mod" in module._modules and module._modules["_orig_mod"] is not None


def plain_model(given: object, name: str = "model", accepted: str = A_MODEL) -> PreTrainedModel:
    """The transformers model that was given, without the wrappers that `unwrapped` removes.

    `name` is the argument's, and `accepted` says in messages what may be given for it.

    Raises InputError for another type, for a PEFT adapter that is not merged, for weights that are sharded over processes
    (FSDP, tensor parallelism), and for a model without weights (on the meta device).
    """
    model = unwrapped(given)
    if not isinstance(model, nn.Module):
        raise InputError(f"{name} is of type {type(model).__name__}; give {accepted}")
    _refuse_peft(model, name)
    if any("FullyShardedDataParallel" in kind.__name__ for kind in type(model).__mro__):
        raise InputError(f"{name} is sharded by FSDP; {_WHOLE}")
    if not _is_transformers(model):
        inner = next((path for path, m in model.named_children() if _is_transformers(m)), None)
        hint = f"; its .{inner} is one" if inner is not None else ""
        raise InputError(
            f"{name} is of type {type(model).__name__}, which is not a transformers model{hint}; give {accepted}"
        )
    _refuse_absent_weights(model, name)
    for module in model.modules():
        if (compiled := _inside(module)) is not None:
            _refuse_hooks(module, compiled)
    return model


_WHOLE = (
    "each process has only a part of its weights; save the full model (consolidate FSDP shards) and give its folder"
)


def _is_transformers(module: nn.Module) -> TypeGuard[PreTrainedModel]:
    from transformers import PreTrainedModel

    return isinstance(module, PreTrainedModel)


def _refuse_absent_weights(model: PreTrainedModel, name: str) -> None:
    sharded = next((path for path, p in model.named_parameters() if hasattr(p, "device_mesh")), None)
    if sharded is not None:
        raise InputError(f"{name} has the sharded parameter {sharded}; {_WHOLE}")
    empty = next((path for path, p in model.named_parameters() if p.is_meta), None)
    if empty is not None and not is_dispatched(model):
        raise InputError(
            f"{name} has no weights: {empty} is on the meta device; load it with from_pretrained, or give its folder"
        )


def is_dispatched(model: nn.Module) -> bool:
    """Whether accelerate moves the model's inputs and weights between devices (device_map, offloading)."""
    return any(hasattr(module, "_hf_hook") for module in model.modules())


def _is_peft(module: nn.Module) -> bool:
    return any(kind.__module__.partition(".")[0] == "peft" for kind in type(module).__mro__)


def has_peft(model: nn.Module) -> bool:
    """Whether the model is PEFT's, or has layers that PEFT put into it."""
    return any(_is_peft(module) for module in model.modules())


def _refuse_peft(model: nn.Module, name: str) -> None:
    if _is_peft(model):
        config = getattr(model, "active_peft_config", None)
        kind = getattr(getattr(config, "peft_type", None), "value", "")
        what = f"{name} is a {type(model).__name__}" + (f" ({kind})" if kind else "")
        if getattr(config, "is_prompt_learning", False):
            raise InputError(
                f"{what}, whose adapter changes the prompt and no layer's weights, so it cannot be merged; give a model whose "
                "weights were fine-tuned"
            )
        raise InputError(
            f"{what} whose adapter is not merged; give copy.deepcopy(model).merge_and_unload(), or the adapter's folder"
        )
    path = next((path for path, module in model.named_modules() if _is_peft(module)), None)
    if path is not None:
        raise InputError(
            f"{name} has a PEFT adapter in it that is not merged ({path} is PEFT's); give the adapter's folder, or the "
            "result of merge_and_unload() on a copy. PEFT changes the model that it is given in place; if this model "
            "should "
            "be without the adapter, load it again"
        )


class _Extent(NamedTuple):
    """The memory of one tensor: addresses [start, stop) on a device."""

    device: str
    start: int
    stop: int
    name: str


def check_distinct(base: object, tuned: object) -> None:
    """Raise InputError if two models are one object, or share the memory of a weight.

    A substitution swaps layers between two models; with shared weights a change to one is a change to both, and base and
    tuned are equal without anybody noticing. Weights that are tied inside one model are fine.
    """
    one, other = unwrapped(base), unwrapped(tuned)
    if not isinstance(one, nn.Module) or not isinstance(other, nn.Module):
        return
    by_peft = has_peft(one) or has_peft(other)
    cause = "; a PEFT model was made on the base object, which PEFT changes in place" if by_peft else ""
    again = "Load base again with its own from_pretrained"
    if one is other:
        raise InputError(
            f"base and tuned are the same model object{cause}. {again} (PEFT's get_peft_model and merge_and_unload "
            "change the model that they are given)."
        )
    ours, theirs = dict(_weights(one)), dict(_weights(other))
    same = {id(tensor): name for name, tensor in ours.items()}
    shared = [(same[id(tensor)], name) for name, tensor in theirs.items() if id(tensor) in same]
    order = {name: place for place, name in enumerate(theirs)}
    shared = shared or sorted(_overlapping(_extents(ours), _extents(theirs)), key=lambda names: order[names[1]])
    if shared:
        names = " and ".join(dict.fromkeys(shared[0]))
        raise InputError(
            f"base and tuned share the memory of {len(shared)} weight{'s' if len(shared) > 1 else ''} ({names} among them){cause or ', so they are not two models'}. "
            f"{again}, or make one of the two with copy.deepcopy."
        )


def _weights(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _extents(tensors: dict[str, torch.Tensor]) -> list[_Extent]:
    found = []
    for name, tensor in tensors.items():
        if tensor.is_meta or not tensor.numel() or tensor.layout != torch.strided:
            continue
        try:
            start = tensor.data_ptr()
        except RuntimeError:  # a subclass that wraps other tensors has no memory of its own
            continue
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        if start:
            found.append(_Extent(str(tensor.device), start, start + (last + 1) * tensor.element_size(), name))
    return sorted(found)


def _overlapping(ours: list[_Extent], theirs: list[_Extent]) -> Iterator[tuple[str, str]]:
    """(ours, theirs): for each of theirs, the first of ours that has a byte in common with it; both sorted."""
    place = 0
    for extent in theirs:
        while place < len(ours) and (ours[place].device, ours[place].stop) <= (extent.device, extent.start):
            place += 1
        if place < len(ours) and ours[place].device == extent.device and ours[place].start < extent.stop:
            yield ours[place].name, extent.name


def check_alike(base: nn.Module, tuned: nn.Module) -> None:
    """Raise InputError if two models have weights or tables of different dtypes, or are on different devices.

    Weights of integers (quantised ones) are not compared. Models that accelerate spreads over devices may differ in them.
    """
    apart = _dtypes_apart(base.named_parameters(), tuned.named_parameters())
    if apart is not None:
        name, ours, theirs = apart
        narrow, wide = ("base", theirs) if ours.itemsize < theirs.itemsize else ("tuned", ours)
        raise InputError(
            f"base and tuned have different dtypes: {name} is {_named(ours)} in base and {_named(theirs)} in tuned; load both with "
            f"from_pretrained(…, dtype={wide}), or convert one: {narrow}.to({wide})"
        )
    apart = _dtypes_apart(base.named_buffers(), tuned.named_buffers())
    if apart is not None:
        name, ours, theirs = apart
        dtype = next((p.dtype for p in base.parameters() if p.is_floating_point()), ours)
        raise InputError(
            f"base and tuned have tables of different dtypes: {name} is {_named(ours)} in base and {_named(theirs)} in tuned. One was "
            f"converted after it was loaded, which rounds its tables too: load both with from_pretrained(…, dtype={dtype})"
        )
    if is_dispatched(base) or is_dispatched(tuned):
        return
    one_device, two_device = (_device(model) for model in (base, tuned))
    if one_device != two_device:
        raise InputError(
            f"base and tuned are on different devices: {one_device} and {two_device}; move one of them: base.to('{two_device}')"
        )


def _dtypes_apart(
    ours: Iterable[tuple[str, torch.Tensor]], theirs: Iterable[tuple[str, torch.Tensor]]
) -> tuple[str, torch.dtype, torch.dtype] | None:
    """The first floating tensor that has two dtypes, and both."""
    others = dict(theirs)
    for name, one in ours:
        other = others.get(name)
        if other is not None and one.is_floating_point() and other.is_floating_point() and one.dtype != other.dtype:
            return name, one.dtype, other.dtype
    return None


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _device(model: nn.Module) -> str:
    """The device that most weights are on."""
    devices = Counter(
        f"{p.device.type}:{p.device.index or 0}" if p.device.type != "cpu" else "cpu" for p in model.parameters()
    )
    return devices.most_common(1)[0][0] if devices else "cpu"


def dtypes_in_words(model: nn.Module) -> str | None:
    """The floating dtypes of a model's weights, each with a weight of it; None if there is only one."""
    found: dict[torch.dtype, list[str]] = {}
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            found.setdefault(parameter.dtype, []).append(name)
    if len(found) < 2:
        return None
    return " and ".join(
        f"{_named(dtype)} ({len(names)}, {shortened(names[0])} among them)" for dtype, names in found.items()
    )
