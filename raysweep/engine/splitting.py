"""Cutting a call into pieces that several workers do at once: the same keys and rows, over fewer changes each. Pure.

A sweep's pieces each go through the tuned model's own layers (the trunk) again; changes whose text is written together stay so,
and such pieces have nothing in common. What is committed is found by key, one a change and chunk, so that no table tells.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from itertools import chain

from raysweep.engine.calls import Call, GenerateCall, PairCall, SubstituteCall
from raysweep.models.same import Same
from raysweep.studies.decoding import written_together
from raysweep.studies.interventions import Change
from raysweep.studies.schedule import schedule
from raysweep.studies.windows import Window

MOST_PIECES = 16


def is_divisible(call: Call) -> bool:
    """Whether a call can be cut: a sweep of one chunk whose weights are in memory, under several changes, or text in several parts."""
    if isinstance(call, SubstituteCall):
        whole = len(call.keys) == len(call.windows) and not call.captures and not call.loading.stream
        return whole and len(call.windows) > 1
    return isinstance(call, GenerateCall) and len(_written(call)) > 1


def _written(call: GenerateCall) -> list[list[int]]:
    """The places of the changes whose text is written together."""
    return written_together(call.base.n_layers, call.windows, call.examples, call.new_tokens, call.loading.batch_tokens)


def shares(call: Call, n: int) -> tuple[float, ...]:
    """What each of `n` pieces takes, as a share of the whole call; () where it has not so many."""
    parts = _parts(call, n)
    if not parts:
        return ()
    if isinstance(call, GenerateCall):
        written = _written(call)
        return tuple(len(written[i::n]) / len(written) for i in range(n))
    return _applied(call.base.n_layers, call.windows, call.same, parts) if isinstance(call, SubstituteCall) else ()


def cut(call: Call, n: int) -> list[Call]:
    """The `n` pieces of a call that is divisible, of about the same cost; each commits its own keys.

    Raises ValueError for a call that cannot be cut into so many.
    """
    parts = _parts(call, n)
    if not parts or not isinstance(call, PairCall):
        raise ValueError(f"'{call.name}' cannot be cut into {n}")
    return [
        replace(
            call,
            name=f"{call.name} piece {number} of {n}",
            windows=tuple(call.windows[i] for i in part),
            keys=tuple(call.keys[i] for i in part),
        )
        for number, part in enumerate(parts, 1)
    ]


Parts = tuple[tuple[int, ...], ...]


def _parts(call: Call, n: int) -> Parts:
    """The places of the changes in each of `n` pieces; () where there are not so many."""
    if not is_divisible(call) or not isinstance(call, PairCall):
        return ()
    if isinstance(call, SubstituteCall):
        return _dealt(call.base.n_layers, call.windows, call.same, n)
    assert isinstance(call, GenerateCall)
    written = _written(call)
    return tuple(tuple(sorted(chain(*written[i::n]))) for i in range(n)) if n <= len(written) else ()


@lru_cache(maxsize=1024)
def _applied(n_layers: int, windows: tuple[Change, ...], same: Same, parts: Parts) -> tuple[float, ...]:
    whole = max(1, schedule(n_layers, windows, same).applications)
    return tuple(schedule(n_layers, [windows[i] for i in part], same).applications / whole for part in parts)


@lru_cache(maxsize=1024)
def _dealt(n_layers: int, windows: tuple[Change, ...], same: Same, n: int) -> Parts:
    """A sweep's changes: those that begin at one layer share their branch and stay together, the costliest dealt first."""
    begun: dict[tuple[bool, int], list[int]] = {}
    for place, change in enumerate(windows):
        begun.setdefault(_begins(change, n_layers), []).append(place)
    if len(begun) < n:
        return ()
    behind = {
        key: schedule(n_layers, [windows[i] for i in places], same).applications - key[1]
        for key, places in begun.items()
    }
    parts: list[list[int]] = [[] for _ in range(n)]
    loads = [0] * n
    for key in sorted(begun, key=lambda key: -behind[key]):
        least = loads.index(min(loads))
        parts[least] += begun[key]
        loads[least] += behind[key] + 1
    return tuple(tuple(sorted(part)) for part in parts)


def _begins(change: Change, n_layers: int) -> tuple[bool, int]:
    """Whether a change is of the base model, and its first layer that is not its own model's."""
    first = change.start if isinstance(change, Window) else (change.chosen or (n_layers,))[0]
    return change.in_base if not isinstance(change, Window) else False, first if change.width else n_layers
