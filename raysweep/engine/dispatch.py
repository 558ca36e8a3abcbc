"""Which worker gets which call next, into how many pieces it is cut, what becomes of one that failed: values and pure decisions.

call_queue.py holds what waits, dispatcher.py acts on what is decided here, for the driver and for a simulation alike.
"""

from __future__ import annotations

import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from raysweep.engine.calls import Outcome

Affinity = tuple[str, ...]  # fingerprints of the checkpoints that a call needs, the base's first

CALL_SECONDS = 0.05  # of a call beside its computation: sent, committed and logged
_WORTH = 0.1  # the share of the time left that cutting a call has to save


@dataclass(frozen=True)
class Slot:
    """A worker as the driver sees it: what it takes, and how many calls may be in flight on it."""

    models: bool = True
    results: bool = True
    depth: int = 1


@dataclass(frozen=True)
class Node:
    """A machine of a cluster: its CPU slots and GPUs."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class Load:
    """What having a checkpoint takes: bytes read, and seconds."""

    bytes: int
    seconds: float


@dataclass(frozen=True)
class CallCost:
    """What a call takes: seconds once its checkpoints are loaded, bytes read meanwhile, and each checkpoint's load.

    Where nothing could be timed the seconds are those of a nominal device: they compare calls, and loads take none.
    """

    seconds: float = 1.0
    read: int = 0
    loads: Mapping[str, Load] = field(default_factory=dict)


class Held:
    """The checkpoints that a worker has loaded, at most `room` of them; the one used longest ago makes room."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._held: OrderedDict[str, None] = OrderedDict()
        self._had: set[str] = set()

    def __contains__(self, checkpoint: str) -> bool:
        return checkpoint in self._held

    def lacking(self, needed: Affinity) -> Affinity:
        """Those of the needed that are not loaded."""
        return tuple(checkpoint for checkpoint in needed if checkpoint not in self._held)

    def had(self, needed: Affinity) -> int:
        """How many of the needed were loaded once and let go."""
        return sum(checkpoint in self._had for checkpoint in self.lacking(needed))

    def use(self, needed: Affinity) -> Affinity:
        """Load what is lacking, in turn; what was loaded."""
        lacking = self.lacking(needed)
        for checkpoint in needed:
            while checkpoint not in self._held and len(self._held) >= self._room:
                self._had.add(self._held.popitem(last=False)[0])
            self._held[checkpoint] = None
            self._held.move_to_end(checkpoint)
        return lacking


def room_for(nodes: Sequence[Node], cpus: float, gpus: float) -> int:
    """How many workers of so many CPU slots and GPUs (a share of one, or several) the machines hold together."""
    slack = 1e-9  # a third of a GPU fits three times
    return sum(
        min(int(node.cpus / cpus + slack), int(node.gpus / gpus + slack) if gpus else sys.maxsize) for node in nodes
    )


def choose_group(
    waiting: Mapping[Affinity, float],
    own: Affinity,
    held: Held,
    others: Mapping[Affinity, int],
    load: Callable[[Affinity], float],
    *,
    busy: bool = False,
) -> Affinity | None:
    """The group of calls that a worker takes from, so that a checkpoint is loaded as seldom as can be; None for none of them.

    `waiting` has the seconds left by group, in the groups' order; `own` is the group that the worker is at, `others` tells
    how many other workers are at each, `load` the seconds of loading these checkpoints. A worker goes on with its own group,
    or with one that it has loaded; then it takes one that nobody is at, of its own base before any, else of a base that
    nobody is at, else of the one with most left per worker; then it helps where most is left per worker, and
    of these where least is to be loaded. What would take longer to load than the others need to finish is left to them, and
    a worker that is `busy` with a call helps nobody.
    """
    if own in waiting and not held.lacking(own):
        return own
    known = [group for group in waiting if group[0] in held]
    if ready := [group for group in known if not held.lacking(group)]:
        return ready[0]
    if mine := [group for group in known if not others.get(group)]:
        return min(mine, key=held.had)
    untouched = [group for group in waiting if not others.get(group)]
    at_base, seconds = Counter[str](), dict[str, float]()
    for group, n in others.items():
        at_base[group[0]] += n
    for group in waiting:
        seconds[group[0]] = seconds.get(group[0], 0.0) + waiting[group]
    fresh = [
        group
        for group in untouched
        if not at_base[group[0]] or load(held.lacking(group)[:1]) < seconds[group[0]] / at_base[group[0]]
    ]
    if fresh:
        return min(
            fresh,
            key=lambda g: (at_base[g[0]] > 0, held.had(g), -seconds[g[0]] / (1 + at_base[g[0]])),
        )
    if busy:
        return None
    loads = {g: load(held.lacking(g)) for g in waiting if others.get(g)}
    worth = [g for g in loads if loads[g] < waiting[g] / others[g]]
    return min(worth, key=lambda g: (held.had(g), -waiting[g] / (1 + others[g]), loads[g]), default=None)


def may_queue_behind(in_flight: int, waiting: float, slots: int, call: float = 1.0) -> bool:
    """Whether a worker that has `in_flight` calls may get one more: a second one only while everybody can have as much.

    `waiting` is what waits and `call` what this one takes, in seconds or in calls. A call queued behind another keeps a worker
    from waiting for the driver; queued at the end of a run it would wait behind its neighbour while another worker has
    nothing to do.
    """
    return in_flight == 0 or waiting >= slots * call


def level(free: Sequence[float], seconds: float) -> float:
    """The moment at which workers that get `free` then have done so many seconds of work, divided as evenly as can be."""
    begun = sorted(free)
    total = 0.0
    for n, moment in enumerate(begun, 1):
        total += moment
        at = (seconds + total) / n
        if n == len(begun) or at <= begun[n]:
            return at
    raise ValueError("there is no worker")


def choose_pieces(
    now: float, free: Sequence[float], waiting: float, seconds: float, load: float, cuts: Sequence[Sequence[float]]
) -> int:
    """Which of the ways to cut a call ends the run soonest: an index into `cuts`, or -1 to leave it whole.

    `free` are the moments at which the other workers get free, `waiting` the seconds of what else waits, `seconds` the
    call's. Each cut has its pieces' shares of these, which add up to more than 1 where pieces have work in common. All but
    the first piece take a `load` more. Whole unless a tenth of the time left is saved, and more than a call costs by itself.
    """
    everybody = [now, *free]

    def end(pieces: Sequence[float]) -> float:
        each = [share * seconds + CALL_SECONDS + (load if i else 0.0) for i, share in enumerate(pieces)]
        return max(level(everybody, waiting + sum(each)), now + max(each))

    whole = end([1.0])
    ends = [end(pieces) for pieces in cuts]
    best = min(range(len(cuts)), key=ends.__getitem__, default=-1)
    worth = best >= 0 and whole - ends[best] > max(_WORTH * (whole - now), CALL_SECONDS)
    return best if worth else -1


def is_final(outcome: Outcome, attempts: int, limit: int) -> bool:
    """Whether a failed call is set aside: refused input at once, anything else after `limit` charged attempts."""
    return outcome.failure == "refused" or attempts >= limit
