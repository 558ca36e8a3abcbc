import math
import os
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raysweep.data.batches import PADDING, SAVING, labelled_positions, make_batches, pad
from raysweep.data.examples import Example, load_examples
from raysweep.lab import published_folder
from raysweep.models.checkpoint import describe
from raysweep.models.loading import load_tokenizer

LENGTHS = st.lists(st.integers(1, 40), max_size=40)


def example(tokens: list[int], n_prompt: int) -> Example:
    return Example(0, np.array(tokens, dtype=np.int64), n_prompt, "", "")


def padded(batches: list[list[int]], lengths: list[int]) -> int:
    return sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)


def partitions(items: list[int]) -> Iterator[list[list[int]]]:
    """Every way to put the items into batches."""
    if not items:
        yield []
        return
    for rest in partitions(items[1:]):
        yield [[items[0]], *rest]
        for at, batch in enumerate(rest):
            yield [*rest[:at], [items[0], *batch], *rest[at + 1 :]]


def within(batch: list[int], lengths: list[int], budget: int) -> bool:
    return len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 400), max_size=40), st.integers(1, 10_000), st.sampled_from([1.0, 1.05, PADDING]))
def test_batches_hold_each_index_once_within_the_budget_and_the_bound(
    lengths: list[int], budget: int, padding: float
) -> None:
    batches = make_batches(lengths, budget, padding=padding)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(within(batch, lengths, budget) for batch in batches)
    for batch in batches:
        assert batch == sorted(batch, key=lambda i: (-lengths[i], i))
    for batch, following in pairwise(batches):
        assert padded([batch], lengths) >= padded([following], lengths)
    if padded(batches, lengths) > padding * sum(lengths):  # no batch cut in two saves enough
        for batch in batches:
            for cut in range(1, len(batch)):
                assert padded([batch], lengths) - padded([batch[:cut], batch[cut:]], lengths) < SAVING


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=6), st.integers(1, 1500), st.sampled_from([1.1, 1.3, math.inf])
)
def test_no_partition_is_better(lengths: list[int], budget: int, padding: float) -> None:
    least: dict[int, int] = {}  # padded tokens, by the number of batches
    for batches in partitions(list(range(len(lengths)))):
        if all(within(batch, lengths, budget) for batch in batches):
            least[len(batches)] = min(least.get(len(batches), 10**9), padded(batches, lengths))
    enough = [
        n
        for n in sorted(least)
        if least[n] <= padding * sum(lengths)
        or all(least[n] - least[more] < SAVING * (more - n) for more in least if more > n)
    ]
    found = make_batches(lengths, budget, padding=padding)
    assert (len(found), padded(found, lengths)) == (enough[0], least[enough[0]])


def test_a_batch_more_must_save_enough() -> None:
    assert make_batches([100, 37, 10], 1000) == [[0], [1, 2]]
    assert make_batches([100, 95, 32], 1000) == [[0, 1], [2]]
    assert make_batches([50, 5], 1000) == [[0, 1]]  # a cut would save 45 tokens


def test_batches_by_hand() -> None:
    assert make_batches([3, 9, 4, 5, 3], budget=10, padding=math.inf) == [[3, 2], [1], [0, 4]]
    assert make_batches([3, 12, 3], budget=6) == [[1], [0, 2]]
    assert make_batches([100, 90, 100, 20, 20], budget=1000) == [[0, 2, 1], [3, 4]]
    assert make_batches([], budget=6) == []


def test_many_examples_are_batched_in_little_time_with_few_batches_more() -> None:
    lengths = [int(n) for n in np.random.default_rng(0).lognormal(5, 0.8, 5000).clip(1, 2000)]
    started = time.process_time()
    batches = make_batches(lengths, 8192)
    assert time.process_time() - started < 5
    assert sorted(i for batch in batches for i in batch) == list(range(5000))
    assert padded(batches, lengths) <= PADDING * sum(lengths)
    assert len(batches) <= len(make_batches(lengths, 8192, padding=math.inf)) + 5


def test_real_records_are_padded_little_in_few_batches() -> None:
    folder, tokenizer_folder = os.environ.get("RAYSWEEP_REAL_DATA"), published_folder("smollm2")
    if not folder or not tokenizer_folder.is_dir():
        pytest.skip("needs RAYSWEEP_REAL_DATA and the fetched model")
    tokenizer = load_tokenizer(describe(str(tokenizer_folder)))
    for file, form, most in (
        ("dolly_test.jsonl", "dolly", 9),
        ("gsm8k_test.jsonl", "gsm8k", 6),
        ("openbookqa_test.json", "alpaca", 6),
    ):
        examples = load_examples(str(Path(folder) / file), form, tokenizer, limit=288).examples
        lengths = [example.length - 1 for example in examples]
        chunks = [lengths[first : first + 32] for first in range(0, len(lengths), 32)]
        for budget in (8192, 1024):
            found = [make_batches(chunk, budget) for chunk in chunks]
            assert sum(map(padded, found, chunks)) <= 1.10 * sum(lengths)
            for batches, chunk in zip(found, chunks, strict=True):
                fewest = len(make_batches(chunk, budget, padding=math.inf))
                assert len(batches) <= (most if budget == 8192 else fewest + 1)


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
