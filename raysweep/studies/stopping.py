"""Early stopping of a sweep: after which chunk of randomly ordered examples enough is known.

Pure functions of losses in the order of the chunks, so that where a sweep stops does not depend on who computed what when.
Two rules. `half_width`: the t interval of every change's mean paired difference to the untouched model is narrow enough.
`top`: a confidence set for the k costliest windows of one width has k members.

What `top` claims: with probability `confidence` over the random order, the declared set holds the top k of all N examples.
The error is split evenly over the looks (the ends of chunks from 16 examples on, but for the last, whose number is known
beforehand) and, at each, over the pairs that could lose a member (numerics/sequential.py). It assumes that the examples' order is
random and that mean paired differences are near normal: a few examples with far larger differences than all others,
not seen yet, break it. At the last look everything is known and nothing is estimated.

What `half_width` does not claim: its intervals are those of the report, one change and one look at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from raysweep.data.examples import Example
from raysweep.errors import InputError
from raysweep.numerics.sequential import half_widths, top_candidates
from raysweep.studies.interventions import Change
from raysweep.studies.windows import UNTOUCHED, Window

FEWEST = 16  # examples before the first look: a spread estimated from fewer is too unsure to stop by

# How far batching alone moves a loss, nats: two windows are never told apart by less.
RESOLUTION = {"float32": 1e-5, "bfloat16": 1e-3, "float16": 1e-3}


@dataclass(frozen=True)
class Rule:
    """When to stop: `half_width` in nats, or `top` costliest windows of `width` layers; the other is None."""

    half_width: float | None
    top: int | None
    confidence: float
    width: int

    @property
    def text(self) -> str:
        """The rule in the words of the table: `half_width 0.02`, `top 3 of width 5`."""
        return f"half_width {self.half_width:g}" if self.top is None else f"top {self.top} of width {self.width}"


@dataclass(frozen=True)
class Decision:
    """Where a sweep stops: after `chunks` chunks, `examples` of `of`.

    `settled` is False where all examples did not do; `chosen` are the windows of the declared set, costliest first (none
    for `half_width`); `reason` says why in words.
    """

    chunks: int
    examples: int
    of: int
    settled: bool
    chosen: tuple[Window, ...]
    reason: str


def in_random_order(examples: Sequence[Example], seed: int) -> list[Example]:
    """The examples by the SHA-256 of seed and place in the source: the same order on every machine, for every release."""
    return sorted(examples, key=lambda e: hashlib.sha256(f"{seed}:{e.id}".encode()).digest())


def check_rule(rule: Rule, n_layers: int, where: str = "") -> None:
    """Raise InputError where a model of `n_layers` has not more windows than the rule asks the top of."""
    windows = n_layers - rule.width + 1 if rule.width < n_layers else 0
    if rule.top is not None and rule.top >= windows:
        found = f"{windows} windows" if windows else "only the window of all layers together"
        remedy = f"give {windows - 1} or less" if windows > 1 else "give a smaller width first in widths"
        raise InputError(
            f"studies.substitution.stop asks for the top {rule.top} of the windows of width {rule.width}, and the {n_layers} "
            f"decoder layers{where} have {found} of that width: {remedy}"
        )


def looks(sizes: Sequence[int]) -> list[int]:
    """Numbers of examples after which a sweep in chunks of these sizes may stop before its end."""
    total = sum(sizes)
    return [n for n in accumulate(sizes) if FEWEST <= n < total]


def decide(
    losses_Cn: np.ndarray, changes: Sequence[Change], sizes: Sequence[int], rule: Rule, resolution: float
) -> Decision | None:
    """Whether to stop after the chunks seen so far; None where more are to come and needed.

    `losses_Cn` has the losses in nats of each change (the untouched model among them) on the examples of the first
    chunks, `sizes` the examples of every chunk. Raises ValueError where the examples are no whole number of chunks.
    """
    seen, ends = losses_Cn.shape[1], list(accumulate(sizes))
    if seen not in ends:
        raise ValueError(f"{seen} examples are no whole number of chunks of {list(sizes)}")
    at, last = looks(sizes), seen == ends[-1]
    if seen not in at and not last:
        return None
    if rule.top is None:
        settled, reason = _narrow(losses_Cn, changes, rule)
        chosen: tuple[Window, ...] = ()
    else:
        settled, chosen, reason = _top(losses_Cn, changes, rule, ends[-1], len(at), resolution)
    if not (settled or last):
        return None
    return Decision(ends.index(seen) + 1, seen, ends[-1], settled, chosen, reason)


def first_decision(
    losses_CN: np.ndarray, changes: Sequence[Change], sizes: Sequence[int], rule: Rule, resolution: float
) -> Decision:
    """The decision of a sweep whose losses are all known: that of the smallest prefix that has one."""
    found = (decide(losses_CN[:, :n], changes, sizes, rule, resolution) for n in accumulate(sizes))
    return next(decision for decision in found if decision is not None)


def _narrow(losses_Cn: np.ndarray, changes: Sequence[Change], rule: Rule) -> tuple[bool, str]:
    assert rule.half_width is not None
    untouched_n = losses_Cn[list(changes).index(UNTOUCHED)]
    others = [index for index, change in enumerate(changes) if change != UNTOUCHED]
    with np.errstate(invalid="ignore"):
        half_C = half_widths(losses_Cn[others] - untouched_n, rule.confidence)
    if np.isnan(half_C).any():
        name = changes[others[int(np.isnan(half_C).argmax())]].text
        return False, f"the difference of {name} has no interval (too few losses, or an infinite one)"
    widest = int(half_C.argmax())
    told = f"the widest interval, of {changes[others[widest]].text}, has half-width {half_C[widest]:.3g} nats"
    return bool(half_C[widest] <= rule.half_width), told


def _top(
    losses_Cn: np.ndarray, changes: Sequence[Change], rule: Rule, of: int, n_looks: int, resolution: float
) -> tuple[bool, tuple[Window, ...], str]:
    assert rule.top is not None
    of_width = [i for i, change in enumerate(changes) if isinstance(change, Window) and change.width == rule.width]
    losses_Cn = losses_Cn[of_width]
    error = (1 - rule.confidence) / max(1, n_looks)
    places = np.flatnonzero(top_candidates(losses_Cn, rule.top, of, error, resolution))
    complete_Cn = losses_Cn[:, ~np.isnan(losses_Cn).any(axis=0)]
    if not complete_Cn.shape[1]:
        everything = tuple(window for i in of_width if isinstance(window := changes[i], Window))
        return False, everything, "no example has a loss under every window"
    left_out = losses_Cn.shape[1] - complete_Cn.shape[1]
    more = f"; {left_out} examples without a loss under one of the windows were left out" if left_out else ""
    means_C = complete_Cn.mean(axis=1)
    ordered = sorted(places, key=lambda place: -means_C[place])
    chosen = tuple(window for place in ordered if isinstance(window := changes[of_width[place]], Window))
    if len(chosen) == rule.top:
        how = "all examples were used" if losses_Cn.shape[1] == of else "no other window can be among them"
        return True, chosen, f"{how}, so the set is settled{more}"
    told = f"windows within {resolution:g} nats of each other cannot be distinguished even with all examples"
    return False, chosen, told + more
