"""Batches: which examples run together, padded to one array, and where their labels are. No model, no device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from raysweep.data.examples import Example

Int64 = NDArray[np.int64]


def make_batches(lengths: Sequence[int], budget: int, kinds: Sequence[int] | None = None) -> list[list[int]]:
    """Indices of examples by batch: each index once, longest first, equal lengths in their given order.

    A batch's padded size (rows × longest) is at most `budget` tokens; an example longer than that is a batch alone.
    Examples of unlike `kinds`, where these are given, share no batch.
    Longest first, so that a budget too large for the memory fails at once and not at the end.
    """
    kinds = kinds or [0] * len(lengths)
    batches: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-kinds[i], -lengths[i])):
        if not batches or (len(batches[-1]) + 1) * longest > budget or kinds[index] != kinds[batches[-1][0]]:
            batches.append([])
            longest = lengths[index]
        batches[-1].append(index)
    return batches


def pad(rows: Sequence[Int64]) -> Int64:
    """Token rows as one array int64 [B, T], T the longest, each filled up with its own last token.

    The filling stands behind every real token. Under causal attention a token sees only those before it, so no real
    token's state depends on it and no attention mask is needed; nor is any special id assumed to exist. States at the
    filling itself mean nothing: read them only at real positions (`labelled_positions`). A model that sees what follows
    needs a mask, which the adapter makes from the rows' lengths.

    Raises ValueError where there is no row, or an empty one.
    """
    if not rows or min(len(row) for row in rows) == 0:
        raise ValueError("pad needs at least one row, and a token in each")
    width = max(len(row) for row in rows)
    return np.stack([np.pad(row, (0, width - len(row)), mode="edge") for row in rows])


def labelled_positions(examples: Sequence[Example]) -> tuple[Int64, Int64, Int64]:
    """Where a batch's loss is: (rows, cols, targets), each int64 [labels], ordered by row, then column.

    For the response token at position t of row b: row b, column t − 1 (the state that predicts it), and its id.
    Rows are counted in the order given.
    """
    rows = np.repeat(np.arange(len(examples), dtype=np.int64), [e.n_tokens for e in examples])
    cols = [np.arange(e.n_prompt, e.length, dtype=np.int64) - 1 for e in examples]
    empty = np.empty(0, dtype=np.int64)
    return rows, np.concatenate([empty, *cols]), np.concatenate([empty, *(e.targets for e in examples)])
