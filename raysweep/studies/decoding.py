"""Which changed models write text together: rows of one forward. Pure arithmetic; generation.py does it."""

from __future__ import annotations

from collections.abc import Sequence

from raysweep.data.examples import Example
from raysweep.studies.interventions import Change


def rows_at_once(examples: Sequence[Example], new_tokens: int, batch_tokens: int) -> int:
    """How many rows of the longest prompt and text keep at most `batch_tokens` tokens; one at least.

    Each token is kept twice, for nearly always two versions of a layer are at work.
    """
    longest = max((example.n_prompt for example in examples), default=0) + new_tokens
    return max(1, batch_tokens // (2 * longest))


def together(n_layers: int, changes: Sequence[Change], rows: int) -> list[list[int]]:
    """The places of the changes that share forwards, at most `rows` of them, in their order.

    They have one embedding, norm and head; one that is a step between the two models has weights of its own, and is alone.
    """
    alone, by_frame = [], dict[bool, list[int]]()
    for place, change in enumerate(changes):
        if all(change.version(layer).share in (0, 1) for layer in range(n_layers)):
            by_frame.setdefault(change.in_base, []).append(place)
        else:
            alone.append([place])
    return [places[at : at + rows] for places in by_frame.values() for at in range(0, len(places), rows)] + alone
