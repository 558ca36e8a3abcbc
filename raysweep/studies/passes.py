"""How many batches go through the layers together. Pure arithmetic; streamed.py runs the passes, the engine plans with it."""

from __future__ import annotations

from collections.abc import Sequence

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
