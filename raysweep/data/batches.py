"""Batches: which examples run together, padded to one array, and where their labels are. No model, no device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from raysweep.data.examples import Example

Int64 = NDArray[np.int64]


PADDING = 1.10  # padded tokens per real token: more batches are made until this is reached
SAVING = 64  # padded tokens that one batch more must save: about what a block call costs beside its tokens
_AT_ONCE = (
    1024  # examples whose best batches are searched together; the search takes time by the square of their number
)
_NEVER = 2**60


def make_batches(
    lengths: Sequence[int], budget: int, kinds: Sequence[int] | None = None, padding: float = PADDING
) -> list[list[int]]:
    """Put examples of similar lengths into batches: the indices of each batch, each index once.

    A batch's padded size (rows × longest) is at most `budget` tokens; an example longer than that is a batch alone.
    Examples of different `kinds`, if given, share no batch. The largest padded size comes first, so that a budget too
    large for the memory fails at once; within a batch the longest example comes first, equal lengths in their given order.

    The rule: as few batches as keep padded ÷ real tokens within `padding`, and of those partitions the one with the fewest
    padded tokens. But no batch is added that saves fewer than 64 padded tokens. The reason is what a layer costs: every
    padded token costs time in every layer application; and each block call costs something fixed (kernel launches, and
    reading the layer's weights, which takes a GPU as long as one or two hundred tokens). A sweep pays the fixed part less
    often than once per batch and application, because it fills a call up to the budget with several states of a small
    batch. Pass `padding=math.inf` if only the number of batches counts, as when text is generated token by token.

    The search is exact for up to 1,024 examples of a kind. More are divided first, into runs of similar lengths; the rule
    holds for each run, and each cut between two runs adds about one batch at most.
    """
    kinds = kinds or [0] * len(lengths)
    of_kind: dict[int, list[int]] = {}
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        of_kind.setdefault(kinds[index], []).append(index)
    batches: list[list[int]] = []
    for indices in of_kind.values():
        n_runs = -(-len(indices) // _AT_ONCE)
        cuts = [len(indices) * run // n_runs for run in range(n_runs + 1)]
        for start, stop in pairwise(cuts):
            for size in _batch_sizes(tuple(lengths[i] for i in indices[start:stop]), budget, padding):
                batches.append(indices[start : start + size])
                start += size
    return sorted(batches, key=lambda batch: (-len(batch) * lengths[batch[0]], -lengths[batch[0]]))


@lru_cache(maxsize=1024)  # a plan asks for the same chunk in every cell
def _batch_sizes(lengths: tuple[int, ...], budget: int, padding: float) -> tuple[int, ...]:
    """Return the sizes of consecutive batches of `lengths`, which are sorted, longest first. make_batches has the rule.

    Consecutive batches suffice: putting two examples in order of length pads no batch more. Dynamic programme over the
    number of batches: `best[stop]` are the fewest padded tokens of the first `stop` examples in so many. Each batch more
    saves at most what the one before it saved (the cost has the Monge property), so the search ends at the first that
    saves too little.
    """
    n, limit = len(lengths), min(padding * sum(lengths), _NEVER - 1)
    sizes = np.arange(1, max(1, min(n, budget // max(1, lengths[-1]))) + 1)
    starts = np.arange(n + 1)[:, None] - sizes  # [stop, size]
    possible, starts = starts >= 0, starts.clip(0)
    tokens = sizes * np.array(lengths)[starts]
    tokens[~possible | ((tokens > budget) & (sizes > 1))] = _NEVER
    best = np.full(n + 1, _NEVER)
    best[0] = 0
    last_sizes = []
    while best[n] > limit:
        totals = best[starts] + tokens
        following = totals.min(axis=1).clip(max=_NEVER)
        if best[n] < _NEVER and best[n] - following[n] < SAVING:
            break
        last_sizes.append(totals.argmin(axis=1) + 1)
        best = following
    chosen, stop = list[int](), n
    for size in reversed(last_sizes):
        chosen.append(int(size[stop]))
        stop -= chosen[-1]
    return tuple(reversed(chosen))


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
