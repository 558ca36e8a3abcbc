"""Rates against scipy's Wilson interval, closed forms of balanced tables, and coverage in a simulated population."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from raysweep.numerics.rates import crossed_mean, crossed_rate, rate_interval


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 30), (3, 30), (15, 30), (30, 30), (163, 300)])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_one_runs_rate_is_scipys_wilson_interval(k: int, n: int, level: float) -> None:
    expected = stats.binomtest(k, n).proportion_ci(level, method="wilson")
    found = rate_interval(k, n, level)
    assert found.value == k / n
    assert found[1:] == pytest.approx((expected.low, expected.high), abs=1e-12)
    one_seed = [[1] * k + [0] * (n - k)]
    assert crossed_rate(one_seed, level) == pytest.approx(found, abs=1e-12)


TABLES = arrays(np.int8, st.tuples(st.integers(1, 5), st.integers(1, 12)), elements=st.integers(0, 1))


@settings(max_examples=60)
@given(TABLES)
def test_a_rate_lies_in_its_interval_and_the_interval_between_0_and_1(table: np.ndarray) -> None:
    found = crossed_rate(table)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.high > found.low
    opposite = crossed_rate(1 - table)
    assert opposite == pytest.approx((1 - found.value, 1 - found.high, 1 - found.low), abs=1e-9)
    shuffled = np.random.default_rng(0).permutation(np.random.default_rng(1).permutation(table, axis=1), axis=0)
    assert crossed_rate(shuffled) == pytest.approx(found, abs=1e-12)
    wider = crossed_rate(table, 0.99)
    assert wider.low <= found.low + 1e-12
    assert wider.high >= found.high - 1e-12


def test_seeds_that_agree_add_nothing_and_seeds_that_differ_widen() -> None:
    one = np.arange(40) % 4 == 0
    alone, agreeing = crossed_rate([one]), crossed_rate([one, one, one])
    assert agreeing.high - agreeing.low == pytest.approx(alone.high - alone.low, rel=0.05)
    differing = crossed_rate([np.zeros(40), np.ones(40), one])
    assert differing.high - differing.low > 0.75, "three seeds of 0, 1 and 0.25 say little"
    assert crossed_rate(np.ones((3, 40))) == rate_interval(40, 40)


def test_the_mean_of_seeds_alone_and_of_examples_alone_is_students() -> None:
    rng = np.random.default_rng(0)
    by_seed, by_example = rng.normal(size=5), rng.normal(size=30)
    only_seeds = crossed_mean(np.repeat(by_seed[:, None], 30, axis=1))
    assert only_seeds[1:] == pytest.approx(
        stats.t.interval(0.95, 4, by_seed.mean(), by_seed.std(ddof=1) / math.sqrt(5)), abs=1e-9
    )
    only_examples = crossed_mean(np.repeat(by_example[None], 5, axis=0))
    expected = stats.t.interval(0.95, 29, by_example.mean(), by_example.std(ddof=1) / math.sqrt(30))
    assert only_examples[1:] == pytest.approx(expected, abs=1e-9)
    assert crossed_mean(by_example[None])[1:] == pytest.approx(expected, abs=1e-9)
    assert all(math.isnan(end) for end in crossed_mean([[1.0], [2.0]])[1:])


def test_the_variance_is_that_of_repeated_experiments_and_intervals_cover() -> None:
    """Seeds and examples drawn anew, effects of both and of their meeting on a success's probability."""
    rng = np.random.default_rng(7)
    runs, seeds, n, truth_draws = 600, 4, 50, 400_000

    def chance(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-(0.8 + 0.7 * a + 1.2 * b + 0.5 * c)))

    truth = float(chance(*rng.normal(size=(3, truth_draws))).mean())
    covered = 0
    widths = []
    for _ in range(runs):
        p = chance(rng.normal(size=(seeds, 1)), rng.normal(size=(1, n)), rng.normal(size=(seeds, n)))
        found = crossed_rate(rng.random((seeds, n)) < p)
        covered += found.low <= truth <= found.high
        widths.append(found.high - found.low)
        plain = rate_interval(round(found.value * seeds * n), seeds * n)
    assert 0.92 < covered / runs < 0.995, covered / runs
    assert np.mean(widths) > 1.5 * (plain.high - plain.low), (
        "answers of one seed, or to one prompt, are no independent ones"
    )


def test_what_is_no_table_of_successes_is_refused() -> None:
    for table in ([0, 1], [[]], [[0.5, 1]], [[math.nan, 1]]):
        with pytest.raises(ValueError, match=r"expected values|successes must be 0 or 1|must be finite"):
            crossed_rate(table)
    with pytest.raises(ValueError, match="successes must be from 0 to n; got 3 of 2"):
        rate_interval(3, 2)
    for level in (0, 1):
        with pytest.raises(ValueError, match="level must be between 0 and 1"):
            rate_interval(1, 2, level)
        with pytest.raises(ValueError, match="level must be between 0 and 1"):
            crossed_mean([[1.0, 2.0]], level)
    assert all(math.isnan(value) for value in rate_interval(0, 0))
