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
    """Raise RunError unless every parameter of the model is sharded over all processes, on this kind of device (`cuda`)."""
    import torch
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor, Shard

    processes = torch.distributed.get_world_size()
    if not isinstance(model, FSDPModule):
        raise RunError(f"strategy is fsdp, and accelerate left a {type(model).__name__} that is not sharded")
    for name, parameter in model.named_parameters():
        told = f"strategy is fsdp, and parameter {name} is"
        if not isinstance(parameter, DTensor) or parameter.placements != (Shard(0),):
            raise RunError(f"{told} not sharded: every process would train a copy of it")
        if parameter.device_mesh.size() != processes or parameter.device.type != device:
            raise RunError(
                f"{told} sharded over {parameter.device_mesh.size()} processes on {parameter.device.type}, where {processes} "
                f"train on {device}"
            )


def first_decides(decide: Callable[[], T]) -> T:
    """What the first of the processes decides, on all of them; the others may see a shared folder's files later than it.

    What it raises, all raise.
    """
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return decide()
    told: list[Any] = [None, None]
    if torch.distributed.get_rank() == 0:
        try:
            told[0] = decide()
        except Exception as error:  # to be raised where it is heard
            told[1] = error
    torch.distributed.broadcast_object_list(told)
    if told[1] is not None:
        raise told[1]
    found: T = told[0]
    return found


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 has this model."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


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
        raise RunError(f"the sharded model and the whole one differ in {len(odd)} tensors, {odd[0]} among them")
    for name, part in parts.items():
        whole = part.full_tensor() if isinstance(part, DTensor) else part
        if places is not None:
            places[name].copy_(whole)
