"""Which changed models write text together: rows of one forward. Pure arithmetic; generation.py does it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from raysweep.data.batches import make_batches
from raysweep.data.examples import Example
from raysweep.studies.interventions import Change


def changes_at_once(batch: int, batch_tokens: int) -> int:
    """How many changes of a batch of so many tokens (prompts, padding and text) keep at most `batch_tokens`; one at least.

    With several changes each token is kept twice, because nearly always two versions of a layer are at work.
    """
    return max(1, batch_tokens // (2 * max(1, batch)))


def written_together(
    n_layers: int, changes: Sequence[Change], examples: Sequence[Example], new_tokens: int, batch_tokens: int
) -> list[list[int]]:
    """The places of the changes that share forwards in the largest batch of the examples, if the model reads padding right."""
    lengths = [example.n_prompt + new_tokens for example in examples]
    batches = make_batches(lengths, batch_tokens, padding=math.inf)
    largest = max((len(batch) * max(lengths[i] for i in batch) for batch in batches), default=0)
    return together(n_layers, changes, changes_at_once(largest, batch_tokens))


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
