"""Loading a model that will be sharded: the first process alone reads the weights, and gives every other one its shards.

Until the model is sharded, the other processes have the same modules without weights: first on the meta device, then, because
sharding copies its part of each tensor, in memory that is reserved and never written to, so that it takes no room.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from raysweep.errors import RunError
from raysweep.studies.sharding import first_decides, processes, rank

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

_ALIGNMENT = 64


def load_on_first(load: Callable[[], nn.Module], empty: Callable[[], nn.Module]) -> nn.Module:
    """The loaded model on the first process, and on the others an `empty` one of the same modules (on the meta device).

    What loading raises is raised on all of them.
    """
    loaded: list[nn.Module] = []
    first_decides(lambda: loaded.append(load()))
    return loaded[0] if rank() == 0 else empty()


@dataclass(frozen=True)
class _Described:
    """A parameter or buffer: every name that it has (tied weights have several), and what is needed to make another."""

    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    is_parameter: bool
    requires_grad: bool


class Weights:
    """The weights of the first process's model, from before it is sharded until every process has its shards.

    All processes make one, of their models that `load_on_first` gave. On those without weights, tensors of the first one's
    shapes, dtypes and ties then take the place of those on the meta device. Raises RunError if they differ in names.
    """

    def __init__(self, model: nn.Module) -> None:
        described = first_decides(lambda: _describe(model))
        self._values: dict[str, torch.Tensor] = {}
        if rank() == 0:
            self._values = {name: parameter.detach() for name, parameter in model.named_parameters()}
        else:
            _reserve(model, described)

    def distribute(self, model: nn.Module, device: torch.device) -> None:
        """Fill the sharded model on all processes from the first one, tensor by tensor.

        `device` is the one that processes exchange tensors on; the first process has one whole tensor there at a time.
        """
        from torch.distributed.tensor import DTensor

        with torch.no_grad():
            for name, parameter in model.named_parameters():
                value = self._values.pop(name.replace("_orig_mod.", "")) if rank() == 0 else None
                if isinstance(parameter, DTensor):
                    _scatter(value, parameter)
                else:
                    _broadcast(parameter, device)
            for buffer in model.buffers():
                _broadcast(buffer, device)


def _describe(model: nn.Module) -> list[_Described]:
    """What to make of the model's tensors elsewhere, each once."""
    names: dict[int, list[str]] = {}
    tensors: dict[int, torch.Tensor] = {}
    for name, tensor in _named_tensors(model):
        names.setdefault(id(tensor), []).append(name)
        tensors[id(tensor)] = tensor
    return [
        _Described(
            tuple(names[key]), tuple(tensor.shape), tensor.dtype, isinstance(tensor, nn.Parameter), tensor.requires_grad
        )
        for key, tensor in tensors.items()
    ]


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _reserve(model: nn.Module, described: list[_Described]) -> None:
    """Give a model tensors as described: parameters in memory of which no page is written, buffers in memory of zeros."""
    odd = {name for name, _ in _named_tensors(model)} ^ {name for each in described for name in each.names}
    if odd:
        raise RunError(
            f"the model of process {rank()} and that of the first process differ in {len(odd)} tensors, {sorted(odd)[0]} "
            "among them; the processes need the same versions of raysweep and transformers"
        )
    parameters = [each for each in described if each.is_parameter]
    sizes = [-(-max(1, _bytes(each)) // _ALIGNMENT) * _ALIGNMENT for each in parameters]
    # Not shared: of shared memory, a page that is only read takes room too.
    memory = mmap.mmap(-1, max(_ALIGNMENT, sum(sizes)), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    reserved = torch.split(torch.frombuffer(memory, dtype=torch.uint8), sizes) if sizes else ()
    for each, raw in zip(parameters, reserved, strict=True):
        tensor = raw[: _bytes(each)].view(each.dtype).view(each.shape)
        made = nn.Parameter(tensor, requires_grad=each.requires_grad)
        for module, leaf in _places(model, each):
            module._parameters[leaf] = made
    for each in described:
        if not each.is_parameter:
            buffer = torch.zeros(each.shape, dtype=each.dtype)
            for module, leaf in _places(model, each):
                module._buffers[leaf] = buffer


def _bytes(described: _Described) -> int:
    return torch.Size(described.shape).numel() * described.dtype.itemsize


def _places(model: nn.Module, described: _Described) -> Iterator[tuple[nn.Module, str]]:
    for name in described.names:
        path, _, leaf = name.rpartition(".")
        yield model.get_submodule(path), leaf


def _scatter(value: torch.Tensor | None, parameter: DTensor) -> None:
    """Copy the first process's tensor into every process's shard: equal numbers of rows, the last processes' fewer or none."""
    part = parameter.to_local()
    rows = -(-parameter.shape[0] // processes())
    received = torch.zeros((rows, *part.shape[1:]), dtype=part.dtype, device=part.device)
    pieces = None
    if value is not None:
        pieces = [torch.zeros_like(received) for _ in range(processes())]
        for piece, chunk in zip(pieces, torch.split(value, rows), strict=False):
            piece[: len(chunk)] = chunk
    torch.distributed.scatter(_raw(received), None if pieces is None else [_raw(piece) for piece in pieces])
    part.copy_(received[: len(part)])


def _broadcast(tensor: torch.Tensor, device: torch.device) -> None:
    """Copy the first process's tensor, which is not sharded, into that of every other one."""
    moved = tensor.detach().to(device).contiguous()
    torch.distributed.broadcast(_raw(moved), src=0)
    if rank() != 0:
        tensor.copy_(moved)


def _raw(tensor: Any) -> torch.Tensor:
    """The tensor's bytes: every backend can exchange them, whatever the dtype."""
    raw: torch.Tensor = tensor.reshape(-1).view(torch.uint8)
    return raw
