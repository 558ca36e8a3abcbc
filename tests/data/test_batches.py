from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raysweep.data.batches import labelled_positions, make_batches, pad
from raysweep.data.examples import Example

LENGTHS = st.lists(st.integers(1, 40), max_size=40)


def example(tokens: list[int], n_prompt: int) -> Example:
    return Example(0, np.array(tokens, dtype=np.int64), n_prompt, "", "")


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 100))
def test_batches_hold_each_index_once_within_the_budget_longest_first(lengths: list[int], budget: int) -> None:
    batches = make_batches(lengths, budget)
    flat = [i for batch in batches for i in batch]
    assert flat == sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
    # Full: the next example would not have fitted.
    for batch, following in pairwise(batches):
        assert (len(batch) + 1) * max(lengths[i] for i in [*batch, following[0]]) > budget


def test_batches_by_hand() -> None:
    assert make_batches([3, 9, 3, 5, 3], budget=10) == [[1], [3, 0], [2, 4]]
    assert make_batches([3, 12, 3], budget=6) == [[1], [0, 2]]
    assert make_batches([], budget=6) == []


def test_rows_are_padded_on_the_right_with_their_last_token() -> None:
    padded = pad([np.array([1, 2, 3]), np.array([7]), np.array([8, 9])])
    assert padded.tolist() == [[1, 2, 3], [7, 7, 7], [8, 9, 9]]
    assert padded.dtype == np.int64


@pytest.mark.parametrize("rows", [[], [np.array([1]), np.array([], dtype=np.int64)]])
def test_nothing_to_pad(rows: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="pad needs at least one row, and a token in each"):
        pad(rows)


def test_labelled_positions_by_hand() -> None:
    rows, cols, targets = labelled_positions([example([5, 6, 7, 8], 2), example([5, 9], 1)])
    assert (rows.tolist(), cols.tolist(), targets.tolist()) == ([0, 0, 1], [1, 2, 0], [7, 8, 9])
    assert {a.dtype for a in (rows, cols, targets)} == {np.dtype(np.int64)}
    assert [a.tolist() for a in labelled_positions([])] == [[], [], []]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=6))
def test_labelled_positions_point_into_the_padded_batch_just_before_each_target(sizes: list[tuple[int, int]]) -> None:
    ids = iter(range(1000))
    examples = [example([next(ids) for _ in range(p + r)], p) for p, r in sizes]
    rows, cols, targets = labelled_positions(examples)
    expected = [
        (b, t - 1, int(e.tokens[t])) for b, e in enumerate(examples) for t in range(len(e.tokens)) if t >= e.n_prompt
    ]
    assert list(zip(rows.tolist(), cols.tolist(), targets.tolist(), strict=True)) == expected
    assert pad([e.tokens for e in examples])[rows, cols + 1].tolist() == targets.tolist()


def test_padding_does_not_reach_the_labels_under_causal_attention() -> None:
    generator = torch.Generator().manual_seed(0)
    embedding, head = torch.randn(2, 32, 16, generator=generator, dtype=torch.float64)

    def log_likelihoods(tokens_BT: np.ndarray) -> torch.Tensor:
        x = embedding[torch.from_numpy(tokens_BT)]
        return (torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True) @ head.T).log_softmax(-1)

    examples = [example([3, 4, 5, 6, 7, 8], 2), example([9, 10, 11], 1), example([3, 12], 1)]
    found = log_likelihoods(pad([e.tokens for e in examples]))[labelled_positions(examples)]
    alone = [
        log_likelihoods(e.tokens[None])[0, t - 1, int(e.tokens[t])]
        for e in examples
        for t in range(e.n_prompt, len(e.tokens))
    ]
    torch.testing.assert_close(found, torch.stack(alone), rtol=0, atol=1e-12)


def test_examples_of_unlike_kinds_share_no_batch() -> None:
    assert make_batches([5, 12, 7, 20], 10_000, [0, 1, 0, 1]) == [[3, 1], [2, 0]]
    assert make_batches([5, 12, 7, 20], 10_000, [0, 0, 0, 0]) == make_batches([5, 12, 7, 20], 10_000)
