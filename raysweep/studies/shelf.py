"""Where the states of a pass wait between two layers: in memory, and those for which there is no room in files.

A batch's states are all written to one file behind a layer, and read back bit for bit before the next. Which batches'
states wait in files is decided elsewhere (passes.py).

Shapes: B examples of a batch, T tokens, D width; the streams of an architecture that has several come before B.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from raysweep.errors import RunError
from raysweep.models.adapter import Shared
from raysweep.store.scratch import scratch_folder


@dataclass(frozen=True)
class Branch:
    """States [..., B, T, D] on their way, with the keys and values that their earlier layers left for later ones."""

    states: torch.Tensor
    shared: Shared = field(default_factory=dict)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All that it holds: the states, then what is shared."""
        return [self.states, *(tensor for tensors in self.shared.values() for tensor in tensors)]

    def holding(self, tensors: Iterator[torch.Tensor]) -> Branch:
        """The same branch made of other tensors, in the order of `tensors`."""
        states = next(tensors)
        return Branch(states, {name: tuple(next(tensors) for _ in kept) for name, kept in self.shared.items()})


Branches = Mapping[int, Branch]  # by their numbers in the schedule


class Shelf:
    """The branches of each batch of a pass, by the batch's place in it; those `on_disk` wait in files of `folder`.

    Raises RunError, naming the folder and what it has free, where a file cannot be written or read back.
    """

    def __init__(self, folder: Path | None = None, on_disk: Collection[int] = (), needed: int = 0) -> None:
        self.on_disk = frozenset(on_disk)
        self.bytes_written = 0
        self._folder, self._needed = folder, needed
        self._kept: dict[int, Branches] = {}

    def put(self, place: int, branches: Branches) -> None:
        """Keep the branches of the batch at this place."""
        if place not in self.on_disk:
            self._kept[place] = branches
            return
        with self._told(), self._path(place).open("wb", buffering=0) as file:
            for branch in branches.values():
                for tensor in branch.tensors:
                    left = _raw(tensor.cpu().contiguous()).numpy().data
                    while left:
                        left = left[file.write(left) :]
                    self.bytes_written += tensor.numel() * tensor.element_size()
        # What is kept of them has no memory: it tells shapes, dtypes and the device.
        self._kept[place] = {n: branch.holding(map(_outline, branch.tensors)) for n, branch in branches.items()}

    def take(self, place: int) -> Branches:
        """The branches that were put there; they are gone from the shelf."""
        branches = self._kept.pop(place)
        if place not in self.on_disk:
            return branches
        with self._told(), self._path(place).open("rb", buffering=0) as file:

            def read(outline: torch.Tensor) -> torch.Tensor:
                tensor = torch.empty(outline.shape, dtype=outline.dtype)
                left = _raw(tensor).numpy().data
                while left:
                    got = file.readinto(left)
                    if not got:
                        raise OSError(f"{self._path(place)} is shorter than what was written to it")
                    left = left[got:]
                return tensor.to(outline.device)

            return {n: branch.holding(map(read, branch.tensors)) for n, branch in branches.items()}

    def _path(self, place: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{place}.states"

    @contextmanager
    def _told(self) -> Iterator[None]:
        assert self._folder is not None
        try:
            yield
        except OSError as error:
            what = os.strerror(error.errno) if error.errno else str(error)
            raise _failed(self._folder.parent, self._needed, what) from error


def _raw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def _outline(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same shape, dtype and device whose elements are all one."""
    return torch.empty(1, dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)


@contextmanager
def open_shelf(spill: Path | None, on_disk: Collection[int], needed: int) -> Iterator[Shelf]:
    """A shelf whose files lie in a scratch folder in `spill`, and are removed when the context ends.

    `needed` are the bytes that wait there at most. Raises RunError where the folder cannot be made, or its disk has less
    free.
    """
    if spill is None or not on_disk:
        yield Shelf()
        return
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(scratch_folder(spill))
        except OSError as error:
            raise _failed(spill, needed, os.strerror(error.errno) if error.errno else str(error)) from error
        free = free_on_disk(folder)
        if free is not None and free < needed:
            raise _failed(spill, needed, "there is too little room")
        yield Shelf(folder, on_disk, needed)


def _failed(spill: Path, needed: int, what: str) -> RunError:
    free = free_on_disk(spill)
    told = f", {_gb(free)} free" if free is not None else ""
    return RunError(
        f"states cannot be kept on disk in '{spill}' (execution.spill): {what} ({_gb(needed)} needed{told}); what is "
        "committed is kept. Free some space there, give another folder, or remove execution.spill, and run again"
    )


def free_on_disk(folder: Path) -> int | None:
    """Bytes free where the folder is or will be; None where the system does not tell."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize if found.f_blocks else None


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 10**7 else f"{size / 1e6:.2f} MB"
