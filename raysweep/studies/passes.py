"""How many batches go through the layers together. Pure arithmetic; streamed.py runs the passes, the engine plans with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raysweep.models.same import NOTHING, Same
from raysweep.studies.interventions import Change
from raysweep.studies.schedule import schedule


def most_states(n_layers: int, windows: Sequence[Change], same: Same = NOTHING) -> int:
    """The most states of one batch that are in memory at the same time, between two layers."""
    return max((step.applications for step in schedule(n_layers, windows, same).steps), default=1)


def states_of_a_way_back(n_layers: int) -> int:
    """States of one batch that a gradient's pass holds: what enters each layer, what leaves the last, gradients, and some room."""
    return n_layers + 4


def group_passes(needs: Sequence[int], room: int) -> list[list[int]]:
    """Consecutive batches whose `needs` (bytes) fit into `room` together; one that is larger goes alone."""
    passes: list[list[int]] = []
    left = 0
    for index, need in enumerate(needs):
        if not passes or need > left:
            passes.append([])
            left = room
        passes[-1].append(index)
        left -= need
    return passes


@dataclass(frozen=True)
class Need:
    """What a batch (or a chunk) takes while it waits, bytes: `states`, which may wait on disk, and `fixed`, which may not."""

    states: int
    fixed: int = 0


@dataclass(frozen=True)
class Pass:
    """Batches that go through the layers together; the states of those `on_disk` wait there between two layers."""

    batches: tuple[int, ...]
    on_disk: frozenset[int] = frozenset()
    bytes_on_disk: int = 0  # at most


@dataclass(frozen=True)
class Disk:
    """What decides whether states wait on disk: bytes `free` there, the layers' `weights` that each pass reads, and `trips`,
    how often a batch's states, at their most, are written or read in a pass."""

    free: int
    weights: int
    trips: float

    def cost(self, passes: Sequence[Pass]) -> float:
        """Bytes read and written for the passes."""
        return len(passes) * self.weights + self.trips * sum(each.bytes_on_disk for each in passes)


def disk_trips(n_layers: int, windows: Sequence[Change], same: Same = NOTHING) -> float:
    """How often the states of a batch that waits on disk are moved in a pass, in units of the most that there are at a time.

    They are written behind every layer but the last, and read again.
    """
    steps = schedule(n_layers, windows, same).steps
    most = max((step.applications for step in steps), default=1)
    return 2 * sum(step.applications for step in steps[:-1]) / most


def choose_passes(needs: Sequence[Need], room: int, disk: Disk | None = None, largest: int | None = None) -> list[Pass]:
    """Passes over batches in their order, as few as fit in `room` bytes; with `disk`, fewer where that moves fewer bytes.

    Each pass reads the weights once more; states on disk are written behind a layer and read before the next. Reading and
    writing count alike. `largest` are the states that are read back at a time (the largest need's where the needs are
    batches). What is larger than the room goes alone.
    """
    whole = [need.states + need.fixed for need in needs]
    best = [Pass(tuple(indices)) for indices in group_passes(whole, room)]
    if disk is None or not needs:
        return best
    largest = max(need.states for need in needs) if largest is None else largest
    for n in range(1, len(best)):
        groups = group_passes(whole, -(-sum(whole) // n))
        passes = [_with_disk(group, needs, room, largest) for group in groups]
        if None in passes:
            continue
        found = [each for each in passes if each is not None]
        waiting = max(each.bytes_on_disk for each in found)
        if waiting <= disk.free and disk.cost(found) < disk.cost(best):
            best = found
    return best


def _with_disk(group: Sequence[int], needs: Sequence[Need], room: int, largest: int) -> Pass | None:
    """The first states that fit stay in memory, the others wait on disk; None where what must stay does not fit."""
    if sum(needs[index].states + needs[index].fixed for index in group) <= room:
        return Pass(tuple(group))
    left = room - largest - sum(needs[index].fixed for index in group)
    if left < 0:
        return None
    waiting = set()
    for index in group:
        if needs[index].states <= left:
            left -= needs[index].states
        else:
            waiting.add(index)
    return Pass(tuple(group), frozenset(waiting), sum(needs[index].states for index in waiting))
