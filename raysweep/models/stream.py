"""A checkpoint whose decoder layers come from disk one at a time, everything else of it in memory.

A layer's weights are read into one of two slots, each as large as the largest layer, and the layer's module, which has no
memory of its own, borrows them until it is given back. So memory does not grow with depth, and one layer can be fetched by a
thread (prefetch.py) while another computes. On a CUDA device a slot has a pinned half here and a half there, and the
thread copies between them on a stream of its own. Values of different dtypes lie in separate regions of a slot, the same
regions for every layer.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from raysweep.models.adapter import Adapter
from raysweep.models.checkpoint import Checkpoint
from raysweep.models.conversion import Recipe
from raysweep.models.digest_check import SETTINGS_FILES, unchanged
from raysweep.models.own_copy import with_tensor_digests
from raysweep.models.sizes import padded
from raysweep.models.skeleton import build_skeleton

_DRAWN = 1_000_003  # random values that stand in for a layer's; prime, so that no row of a matrix repeats another
SLOTS = 2


@dataclass(frozen=True)
class _Place:
    """Where a parameter (or stored buffer) of a layer lies in a slot."""

    module: nn.Module
    leaf: str
    empty: torch.Tensor
    dtype: torch.dtype
    start: int

    def view(self, flat: torch.Tensor) -> torch.Tensor:
        part = flat[self.start : self.start + self.empty.numel() * self.dtype.itemsize]
        return part.view(self.dtype).view(self.empty.shape)

    def set(self, value: torch.Tensor) -> None:
        if self.leaf in self.module._parameters:
            whole = value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=False)
            self.module._parameters[self.leaf] = whole
        else:
            self.module._buffers[self.leaf] = value


class _Slot:
    """Room for one layer: `host` is read into, `device` is computed with; the same memory on a CPU."""

    def __init__(self, size: int, device: torch.device) -> None:
        cuda = device.type == "cuda"
        self.host = torch.empty(size, dtype=torch.uint8, pin_memory=cuda)
        self.device = self.host if device.type == "cpu" else torch.empty(size, dtype=torch.uint8, device=device)
        events: Any = torch.cuda
        self.copied: Any = events.Event() if cuda else None
        self.used: Any = events.Event() if cuda else None


def _regions(dtypes: Mapping[str, torch.dtype], path: str, blocks: Iterable[nn.Module]) -> dict[torch.dtype, range]:
    """Which bytes of a slot hold values of each dtype: as many as the layer with the most of them needs."""
    most: dict[torch.dtype, int] = {}
    for layer, block in enumerate(blocks):
        own: dict[torch.dtype, int] = {}
        for name, tensor in block.state_dict().items():
            dtype = dtypes[f"{path}{layer}.{name}"]
            own[dtype] = own.get(dtype, 0) + padded(tensor.numel() * dtype.itemsize)
        most |= {dtype: max(size, most.get(dtype, 0)) for dtype, size in own.items()}
    regions, start = {}, 0
    for dtype, size in most.items():
        regions[dtype] = range(start, start + size)
        start += size
    return regions


def _fill(values: torch.Tensor) -> None:
    """Fill flat memory with small random values, the same ones over and over; with zeros if its dtype is no floating one."""
    if not values.dtype.is_floating_point:
        values.zero_()
        return
    drawn = 0.02 * torch.randn(min(len(values), _DRAWN), generator=torch.Generator().manual_seed(0))
    drawn = drawn.to(device=values.device, dtype=values.dtype)
    for part in torch.split(values, _DRAWN):
        part.copy_(drawn[: len(part)])


class StreamedModel:
    """A checkpoint with its layers on disk: `adapter` for all but them, and `fetch`, `bind`, `release` for each.

    The adapter's probe looks at the architecture. It runs on small random values that all layers share, so no layer is read
    for it, and a deeper model starts as fast. Raises InputError for what cannot be streamed (skeleton.py), and for weights
    that are not those that the checkpoint was described with, here and in `fetch`.
    """

    def __init__(self, checkpoint: Checkpoint, *, dtype: str = "float32", device: str = "cpu") -> None:
        self.checkpoint = checkpoint
        with unchanged(checkpoint, SETTINGS_FILES):
            skeleton = build_skeleton(with_tensor_digests(checkpoint), getattr(torch, dtype), device)
        self.files = skeleton.files
        self._model, self._recipes, self._blocks = skeleton.model, skeleton.recipes, skeleton.blocks
        self._device = torch.device(device)
        streams: Any = torch.cuda
        self._side = streams.Stream(self._device) if self._device.type == "cuda" else None
        self._regions = _regions(skeleton.dtypes, skeleton.path, self._blocks)
        self._places = [self._layout(skeleton.path, layer, skeleton.dtypes) for layer in range(len(self._blocks))]
        self.layer_bytes = sum(len(region) for region in self._regions.values())
        self._slots = [_Slot(self.layer_bytes, self._device) for _ in range(SLOTS)]
        with self._stand_in():
            self.adapter = Adapter(self._model)

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return len(self._blocks)

    @property
    def decoder_bytes(self) -> int:
        """Bytes of the layers' tensors on disk."""
        tensors = self.files.tensors
        names = {name for recipes in self._recipes for recipe in recipes for _, name in recipe.sources}
        return sum(tensors[name].stop - tensors[name].start for name in names)

    def _layout(self, path: str, layer: int, dtypes: dict[str, torch.dtype]) -> dict[str, _Place]:
        starts = {dtype: region.start for dtype, region in self._regions.items()}
        places: dict[str, _Place] = {}
        block = self._blocks[layer]
        for name, empty in block.state_dict(keep_vars=True).items():
            parent, _, leaf = name.rpartition(".")
            full = f"{path}{layer}.{name}"
            dtype = dtypes[full]
            places[full] = _Place(block.get_submodule(parent), leaf, empty, dtype, starts[dtype])
            starts[dtype] += padded(empty.numel() * dtype.itemsize)
        return places

    @contextmanager
    def _stand_in(self) -> Iterator[None]:
        """Every layer borrows the first slot at once, filled with small random values."""
        flat = self._slots[0].device
        for dtype, region in self._regions.items():
            _fill(flat[region.start : region.stop].view(dtype))
        for places in self._places:
            for place in places.values():
                place.set(place.view(flat))
        try:
            yield
        finally:
            for layer in range(self.n_layers):
                self.release(layer)

    def fetch(self, layer: int, slot: int) -> None:
        """Read a layer into a slot, several tensors at a time, converting; for a thread. The slot's last layer must have been released.

        Raises InputError, naming file and tensor, where a read fails, and for weights that are not the planned ones.
        """
        room, places = self._slots[slot], self._places[layer]
        if room.copied is not None:
            room.copied.synchronize()
        recipes = self._recipes[layer]
        alone = [recipe for recipe in recipes if recipe.converter is None]
        self.files.read_all([(one.sources[0][1], places[one.first].view(room.host)) for one in alone])
        for recipe in recipes:
            if recipe.converter is not None:
                for name, value in recipe.convert(
                    self._model, self._sources(recipe, places[recipe.first].dtype).pop
                ).items():
                    if name in places:
                        places[name].view(room.host).copy_(value)
        if self._side is not None:
            with torch.cuda.stream(self._side):
                self._side.wait_event(room.used)
                room.device.copy_(room.host, non_blocking=True)
                room.copied.record(self._side)
        elif room.device is not room.host:
            room.device.copy_(room.host)

    def _sources(self, recipe: Recipe, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """The tensors that a recipe's converter takes, by name, read and checked."""
        tensors = self.files.tensors
        sources = {name: torch.empty(tensors[name].shape, dtype=dtype) for _, name in recipe.sources}
        self.files.read_all(list(sources.items()))
        return sources

    def bind(self, layer: int, slot: int) -> nn.Module:
        """The layer's module, with the weights that were fetched into the slot, until `release`."""
        room = self._slots[slot]
        if room.copied is not None:
            torch.cuda.current_stream(self._device).wait_event(room.copied)
        for place in self._places[layer].values():
            place.set(place.view(room.device))
        return self._blocks[layer]

    def release(self, layer: int, slot: int = 0) -> None:
        """Take the layer's weights from its module again."""
        for place in self._places[layer].values():
            place.set(place.empty)
        if self._slots[slot].used is not None:
            self._slots[slot].used.record(torch.cuda.current_stream(self._device))

    def layers(self) -> Generator[nn.Module]:
        """Every layer in order, filled until the next is asked for (streaming.py does it for a pair)."""
        from raysweep.models.streaming import streamed_layers

        with closing(streamed_layers([[(self, layer)] for layer in range(self.n_layers)])) as fetched:
            for [block] in fetched:
                yield block

    def close(self) -> None:
        """Close the files, at the end of a pass. What is read later opens them again.

        Work that follows on the device waits for copies that are still under way, because a slot's memory may be reused.
        """
        self.files.close()
        for slot in self._slots:
            if slot.copied is not None:
                torch.cuda.current_stream(self._device).wait_event(slot.copied)
