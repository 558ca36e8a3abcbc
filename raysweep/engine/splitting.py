"""Cutting a call into pieces that several workers do at once: the same keys and rows, over fewer changes each. Pure.

A sweep's pieces each go through the tuned model's own layers (the trunk) again; text is generated change by change, and
its pieces have nothing in common. What is committed is found by key, one a change and chunk, so that no table tells.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from raysweep.engine.calls import Call, GenerateCall, PairCall, SubstituteCall
from raysweep.models.same import Same
from raysweep.studies.interventions import Change
from raysweep.studies.schedule import schedule
from raysweep.studies.windows import Window

MOST_PIECES = 16


def is_divisible(call: Call) -> bool:
    """Whether a call can be cut: a sweep of one chunk whose weights are in memory, or text, under several changes."""
    if isinstance(call, SubstituteCall):
        whole = len(call.keys) == len(call.windows) and not call.captures and not call.loading.stream
        return whole and len(call.windows) > 1
    return isinstance(call, GenerateCall) and len(call.windows) > 1


def shares(call: Call, n: int) -> tuple[float, ...]:
    """What each of `n` pieces takes, as a share of the whole call; () where it has not so many."""
    if not isinstance(call, PairCall) or not is_divisible(call) or n > len(call.windows):
        return ()
    if isinstance(call, SubstituteCall):
        return _swept_shares(call.base.n_layers, call.windows, call.same, n)
    return tuple(len(part) / len(call.windows) for part in _divided(call.windows, n))


def cut(call: Call, n: int) -> list[Call]:
    """The `n` pieces of a call that is divisible, of about the same cost; each commits its own keys.

    Raises ValueError for a call that cannot be cut into so many.
    """
    if not isinstance(call, PairCall) or not shares(call, n):
        raise ValueError(f"'{call.name}' cannot be cut into {n}")
    return [
        replace(
            call,
            name=f"{call.name} piece {number} of {n}",
            windows=tuple(call.windows[i] for i in part),
            keys=tuple(call.keys[i] for i in part),
        )
        for number, part in enumerate(_divided(call.windows, n), 1)
    ]


@lru_cache(maxsize=1024)
def _swept_shares(n_layers: int, windows: tuple[Change, ...], same: Same, n: int) -> tuple[float, ...]:
    parts = _divided(windows, n)
    if len(parts) < n:
        return ()
    whole = schedule(n_layers, windows, same).applications
    if not whole:
        return ()
    return tuple(schedule(n_layers, [windows[i] for i in part], same).applications / whole for part in parts)


def _divided(windows: tuple[Change, ...], n: int) -> list[tuple[int, ...]]:
    """The places of the changes in each of `n` pieces, fewer where there are not so many beginnings.

    Changes that begin at one layer share their branch and stay together. The earlier one begins the more layers come
    behind it: beginnings are dealt out forth and back.
    """
    begun: dict[tuple[bool, int], list[int]] = {}
    for place, change in enumerate(windows):
        begun.setdefault(_begins(change), []).append(place)
    groups = [begun[key] for key in sorted(begun)]
    parts: list[list[int]] = [[] for _ in range(min(n, len(groups)))]
    for number, places in enumerate(groups):
        round_, at = divmod(number, len(parts))
        parts[at if round_ % 2 == 0 else len(parts) - 1 - at] += places
    return [tuple(sorted(part)) for part in parts]


def _begins(change: Change) -> tuple[bool, int]:
    """Whether a change is of the base model, and its first layer that is not its own model's."""
    if isinstance(change, Window):
        return (False, change.start)
    return (change.in_base, change.chosen[0] if change.chosen else 0)
