"""A pair whose layers come from disk: as many batches go through the layers together as their states fit in memory.

Each checkpoint's layer is read once a pass. The arithmetic is substitution.py's own; nothing here touches a state.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from raysweep.errors import InputError
from raysweep.models.memory import room_left
from raysweep.models.same import Same, same_in_checkpoints
from raysweep.models.stream import SLOTS, StreamedModel
from raysweep.models.streaming import streamed_layers
from raysweep.studies.call_memory import TokenBytes, room_on
from raysweep.studies.interventions import Change
from raysweep.studies.passes import Disk, Need, Pass, choose_passes, disk_trips, most_states
from raysweep.studies.schedule import Step
from raysweep.studies.shelf import free_on_disk
from raysweep.studies.substitution import LOGIT_BYTES, Pair
from raysweep.studies.windows import BASE, TUNED


@dataclass(frozen=True)
class StreamedPair(Pair):
    """A base and a tuned model of which two layers are in memory at a time (and the next two, on their way).

    `memory` bounds what the process has for itself, in bytes; without it what is free is used. In a folder `spill` states
    for which there is no room wait on disk, where that moves fewer bytes than another pass. Raises InputError as Pair
    does, and where the budget does not hold even one batch's states, saying the least that would do.
    """

    sources: tuple[StreamedModel, StreamedModel]
    memory: int | None = None
    folder: Path | None = None

    @classmethod
    def of(
        cls, base: StreamedModel, tuned: StreamedModel, memory: int | None = None, spill: Path | None = None
    ) -> StreamedPair:
        """The pair of two streamed checkpoints."""
        return cls(base.adapter, tuned.adapter, (base, tuned), memory, spill)

    @property
    def spill(self) -> Path | None:
        """The folder for states that wait on disk."""
        return self.folder

    @property
    def in_memory(self) -> bool:
        """They are not."""
        return False

    @cached_property
    def same(self) -> Same:
        """What both have in common, by the digests of their tensors: no layer is here to be compared."""
        base, tuned = self.sources
        return same_in_checkpoints(base.checkpoint, tuned.checkpoint)

    @property
    def bytes_read(self) -> int:
        """Bytes of both checkpoints' tensors read so far, those that stay in memory among them."""
        return sum(source.files.bytes_read for source in self.sources)

    def layers(self, steps: Sequence[Step], *, all_of_base: bool = False) -> Generator[tuple[nn.Module, nn.Module]]:
        """The layers of each step; one that nothing goes through is not read, and its module is empty."""
        base, tuned = self.sources
        wanted = [
            [
                *([(base, step.layer)] if all_of_base or any(g.version != TUNED for g in step.groups) else []),
                *([(tuned, step.layer)] if any(g.version != BASE for g in step.groups) else []),
            ]
            for step in steps
        ]
        if base is tuned:  # a layer of one checkpoint is fetched once, or the next would go into the slot that it is in
            wanted = [list(dict.fromkeys(layers)) for layers in wanted]
        with closing(streamed_layers(wanted)) as fetched:
            for step, _ in zip(steps, fetched, strict=True):
                yield self.base.blocks[step.layer], self.tuned.blocks[step.layer]

    def room(self) -> int | None:
        """What states and calls may take on a GPU, of the budget or of what is free; None on a CPU."""
        return room_on(self.base, self.tuned, memory=self.memory)

    def passes(
        self, batches: Sequence[torch.Tensor], windows: Sequence[Change], beside: Sequence[int], batch_tokens: int = 0
    ) -> list[Pass]:
        """As many batches as fit, in their order; more, some of them waiting on disk, where that is cheaper."""
        if not batches:
            return []
        token = TokenBytes.of_model(self.tuned)
        states = most_states(self.n_layers, windows, self.same)
        # What the calls hold (masks, [B, T, T] at most, and tables) stays as long as the states do.
        needs = [
            Need(tokens.numel() * (states * token.state + tokens.shape[1] * token.mask), kept * token.state)
            for tokens, kept in zip(batches, beside, strict=True)
        ]
        largest = max(need.states + need.fixed for need in needs)
        at_work = 3 * LOGIT_BYTES + max(
            token.at_work(tokens.numel(), tokens.shape[1], states, batch_tokens) for tokens in batches
        )
        left = room_left(str(self.tuned.device), self.memory)
        if at_work + largest > left:
            budget = left if self.memory is None else self.memory
            raise InputError(
                f"a memory budget of {gigabytes(budget)} is too small: two layers of each checkpoint "
                f"({gigabytes(SLOTS * sum(s.layer_bytes for s in self.sources))}), what stays in memory, and the states of one batch "
                f"under {len(windows)} windows need {gigabytes(budget - left + at_work + largest)}; set execution.memory to that "
                "or more, or lower execution.batch_tokens"
            )
        return choose_passes(needs, left - at_work, self._disk(windows))

    def _disk(self, windows: Sequence[Change]) -> Disk | None:
        """What moving states to the spill folder and reading the weights again cost there."""
        free = free_on_disk(self.spill) if self.spill is not None else None
        if free is None:
            return None
        weights = sum(source.decoder_bytes for source in self.sources)
        return Disk(free, weights, disk_trips(self.n_layers, windows, self.same))


def gigabytes(size: float) -> str:
    """A size in bytes as messages show it, rounded up so that it does where it is asked for."""
    return f"{-(-size // 10**7) / 100:.2f} GB"
