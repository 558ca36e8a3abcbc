"""A training whose model is sharded over processes: FSDP2 as accelerate does it, on GPUs and on CPUs alike, and never less.

accelerate turns FSDP on where there are accelerators, and on CPUs it would train copies without a word. Here its state is
told so after it is made, and everything from there on is accelerate's own; a training that is not sharded is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from raysweep.errors import RunError

if TYPE_CHECKING:
    from torch import nn

T = TypeVar("T")

# Arguments of transformers' trainer. Each process writes its own shards, which are never gathered in one memory.
ARGUMENTS: dict[str, Any] = {
    "fsdp": True,
    "fsdp_config": {"version": 2, "state_dict_type": "SHARDED_STATE_DICT", "reshard_after_forward": True},
}


def set_precision(arguments: Any) -> None:
    """Let mixed precision leave gradients in float32 while they are summed, and losses as they are computed.

    accelerate's own would round both, and a loss of 5.78 in bfloat16 is one of 5.75 or of 5.78. Weights that are trained are
    kept in float32 by accelerate; frozen ones are as they are.
    """
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy

    dtype = torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else None
    if dtype is not None:
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        arguments.fsdp_plugin_args["mixed_precision_policy"] = policy


def upcast(model: nn.Module) -> None:
    """Convert what is trained to float32, as accelerate does under mixed precision."""
    import torch

    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()


def turn_on(trainer: Any) -> None:
    """See to it that the trainer, whose accelerator was just made from `ARGUMENTS`, shards its model.

    Raises RunError where accelerate does not.
    """
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    state = trainer.accelerator.state
    if state.distributed_type == DistributedType.MULTI_CPU:
        plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
        if state.mixed_precision != "no":
            plugin.set_mixed_precision(state.mixed_precision)
        state.fsdp_plugin, state.distributed_type = plugin, DistributedType.FSDP
        trainer.is_fsdp_enabled = True
    if not (trainer.is_fsdp_enabled and trainer.accelerator.is_fsdp2):
        raise RunError(
            f"strategy is fsdp, and accelerate made {state.distributed_type.value} of {state.num_processes} processes on "
            f"{state.device}; set strategy to ddp, or processes to 2 or more"
        )


def check_sharded(model: nn.Module, device: str) -> None:
    """Raise RunError unless every parameter of the model is sharded over all processes, this one's shard on `device`."""
    import torch
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor, Shard

    n = processes()
    if not isinstance(model, FSDPModule):
        raise RunError(f"strategy is fsdp, and accelerate left a {type(model).__name__} that is not sharded")
    for name, parameter in model.named_parameters():
        told = f"strategy is fsdp, and parameter {name} is"
        if not isinstance(parameter, DTensor) or parameter.placements != (Shard(0),):
            raise RunError(f"{told} not sharded: every process would train a copy of it")
        asked, found = torch.device(device), parameter.device
        if parameter.device_mesh.size() != n or (found.type, found.index or 0) != (asked.type, asked.index or 0):
            raise RunError(
                f"{told} sharded over {parameter.device_mesh.size()} processes on {found}, but {n} train on {device}"
            )


def processes() -> int:
    """How many train together."""
    import torch

    return torch.distributed.get_world_size() if _in_group() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    import torch

    return torch.distributed.get_rank() if _in_group() else 0


def _in_group() -> bool:
    import torch

    return torch.distributed.is_available() and torch.distributed.is_initialized()


def first_decides(decide: Callable[[], T]) -> T:
    """What the first of the processes decides, on all of them; the others may see a shared folder's files later than it.

    What it raises, all raise.
    """
    import torch

    if not _in_group():
        return decide()
    told: list[Any] = [None, None]
    if rank() == 0:
        try:
            told[0] = decide()
        except Exception as error:  # to be raised where it is heard
            told[1] = error
    torch.distributed.broadcast_object_list(told)
    if told[1] is not None:
        raise told[1]
    found: T = told[0]
    return found


def all_check(check: Callable[[], None]) -> None:
    """Run a check on all of the processes, and raise on all of them what the first one to fail raises."""
    import torch

    if not _in_group():
        check()
        return
    raised: list[Exception | None] = [None] * processes()
    mine: Exception | None = None
    try:
        check()
    except Exception as error:  # raised below, once all know of it
        mine = error
    torch.distributed.all_gather_object(raised, mine)
    for failure in raised:
        if failure is not None:
            raise failure


def whole(model: nn.Module, fresh: Callable[[], nn.Module]) -> nn.Module:
    """A model that is not sharded as it is; a sharded one put together, on the first process, in a `fresh` one of its kind.

    On the others, which all take part, the sharded one.
    """
    import torch
    from torch.distributed.fsdp import FSDPModule

    if not isinstance(model, FSDPModule):
        return model
    with torch.random.fork_rng(devices=[]):  # what a fresh model's LoRA draws is not the training's
        made = fresh() if rank() == 0 else None
    gather(model, made)
    return model if made is None else made


def gather(model: nn.Module, into: nn.Module | None) -> None:
    """Copy a sharded model's tensors into a whole one of the same kind, one after the other, in that one's dtypes.

    Every process takes part; all but the first have None for `into`. Raises RunError where the two have other tensors.
    """
    from torch.distributed.checkpoint.state_dict import get_model_state_dict
    from torch.distributed.tensor import DTensor

    places = None if into is None else into.state_dict()
    parts = get_model_state_dict(model)
    if places is not None and places.keys() != parts.keys():
        odd = sorted(places.keys() ^ parts.keys())
        raise RunError(f"the sharded model and the full one differ in {len(odd)} tensors, {odd[0]} among them")
    for name, part in parts.items():
        whole = part.full_tensor() if isinstance(part, DTensor) else part
        if places is not None:
            places[name].copy_(whole)
