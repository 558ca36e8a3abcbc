"""The order in which one pass over the layers computes every change, each state once.

Changes that have had the same versions of all layers so far share their state: a prefix tree over versions. Its nodes at a
depth are the states there, and each is one layer application. Windows of several widths that start together share their
branch in this way, and all share the tuned model's own states (the trunk) up to their first layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

from raysweep.models.same import NOTHING, Same
from raysweep.studies.interventions import Change, signature
from raysweep.studies.windows import Version


@dataclass(frozen=True)
class Group:
    """States that take one version of a layer: `moves` are (state before, state behind), both numbered by depth.

    `in_base` tells whose forward the layer's arguments come from, and whose embedding the states.
    """

    version: Version
    in_base: bool
    moves: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Step:
    """All that one layer computes."""

    layer: int
    groups: tuple[Group, ...]

    @cached_property
    def applications(self) -> int:
        """Layer applications of this step: one for each state behind it."""
        return sum(len(group.moves) for group in self.groups)


@dataclass(frozen=True)
class Schedule:
    """`roots`: state before the first layer → whether it is the base's embedding; `ends`: state behind the last layer →
    (whether the base's norm and head come, the rows that it is for)."""

    roots: Mapping[int, bool]
    steps: tuple[Step, ...]
    ends: Mapping[int, tuple[bool, tuple[int, ...]]]

    @cached_property
    def applications(self) -> int:
        """Layer applications of the pass, per batch of examples."""
        return sum(step.applications for step in self.steps)


def schedule(n_layers: int, changes: Iterable[Change], same: Same = NOTHING) -> Schedule:
    """The pass for these changes, whose rows are their places in the order given. `same` layers have one version."""
    return _schedule(n_layers, tuple(changes), same)


@lru_cache(maxsize=64)  # the cells of a run mostly ask for the same, and a plan asks again and again
def _schedule(n_layers: int, changes: tuple[Change, ...], same: Same) -> Schedule:
    signatures = [signature(change, n_layers, same) for change in changes]
    roots = dict(enumerate(dict.fromkeys(s[0] for s in signatures)))
    numbers = {in_base: number for number, in_base in roots.items()}
    at = [numbers[in_base] for in_base, _ in signatures]
    steps = []
    for layer in range(n_layers):
        children: dict[tuple[int, Version], int] = {}
        groups: dict[tuple[bool, Version], list[tuple[int, int]]] = {}
        for row, (in_base, versions) in enumerate(signatures):
            key = (at[row], versions[layer])
            if key not in children:
                children[key] = len(children)
                groups.setdefault((in_base, versions[layer]), []).append((at[row], children[key]))
            at[row] = children[key]
        steps.append(Step(layer, tuple(Group(v, b, tuple(moves)) for (b, v), moves in groups.items())))
    ends: dict[int, tuple[bool, tuple[int, ...]]] = {}
    for row, state in enumerate(at):
        ends[state] = (signatures[row][0], (*ends.get(state, (False, ()))[1], row))
    return Schedule(roots, tuple(steps), ends)


def layer_applications(n_layers: int, changes: Iterable[Change], same: Same = NOTHING) -> int:
    """Layer applications that one pass needs for all changes, per batch of examples."""
    return schedule(n_layers, changes, same).applications


def shared_rows(n_layers: int, changes: Iterable[Change], same: Same) -> int:
    """How many of the changes are computed with another, for they differ in identical layers only."""
    changes = list(changes)
    return len(changes) - len(schedule(n_layers, changes, same).ends)
