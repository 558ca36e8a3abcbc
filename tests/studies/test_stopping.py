"""Early stopping as a rule: the smallest prefix that allows it, what it declares, and how often that is true."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from raysweep.data.examples import Example
from raysweep.errors import InputError
from raysweep.numerics.sequential import top_candidates
from raysweep.studies.interventions import Intervention
from raysweep.studies.stopping import Rule, check_rule, decide, first_decision, in_random_order, looks
from raysweep.studies.windows import Window

LAYERS = 6
FROZEN_ORDER = [4, 7, 3, 8, 2, 9, 1, 5, 6, 0]
WINDOWS = [Window(0, 0), *(Window(i, i + 2) for i in range(5)), Window(0, 6)]
SIZES = [8] * 12 + [4]
TOP, NARROW = Rule(None, 2, 0.95, 2), Rule(0.1, None, 0.95, 2)


def losses(costs, n=100, noise=0.1, seed=0):
    """Losses [changes, examples]: each change's cost on top of what the example costs anyway, with noise."""
    rng = np.random.default_rng(seed)
    found = rng.gamma(2, 1, n) + np.array(costs)[:, None] + noise * rng.normal(size=(len(costs), n))
    found[0] -= costs[0]
    return found


# --- the order --------------------------------------------------------------------------------------------------------


def example(place):
    return Example(place, np.arange(3), 1, "", "")


def test_the_order_is_the_seeds_alone():
    # frozen: SHA-256 of "7:0" … "7:9", sorted
    ids = [e.id for e in in_random_order([example(i) for i in range(10)], seed=7)]
    assert sorted(ids) == list(range(10))
    assert ids == FROZEN_ORDER
    assert [e.id for e in in_random_order([example(i) for i in reversed(range(10))], seed=7)] == ids
    assert [e.id for e in in_random_order([example(i) for i in range(10)], seed=8)] != ids
    assert [e.id for e in in_random_order([example(i) for i in range(10) if i != 3], seed=7)] == [
        i for i in ids if i != 3
    ]


def test_places_in_the_order_are_as_likely_as_one_another():
    firsts = [in_random_order([example(i) for i in range(5)], seed)[0].id for seed in range(500)]
    counts = np.bincount(firsts, minlength=5)
    assert stats.chisquare(counts).pvalue > 0.001


# --- when -------------------------------------------------------------------------------------------------------------


def test_looks_are_ends_of_chunks_from_sixteen_examples_on_but_for_the_last():
    assert looks([8, 8, 8, 4]) == [16, 24]
    assert looks([15, 1, 1]) == [16]
    assert looks([32, 32]) == [32]
    assert looks([16]) == looks([4, 4]) == []


def test_a_sweep_stops_at_the_smallest_prefix_that_settles_it():
    found = losses([0, 0.1, 2, 0.2, 1, 0.1, 5])
    decision = first_decision(found, WINDOWS, SIZES, TOP, 1e-5)
    assert (decision.chunks, decision.examples, decision.of, decision.settled) == (2, 16, 100, True)
    assert decision.chosen == (Window(1, 3), Window(3, 5)), "costliest first; not all layers, which cost most"
    assert decision.reason == "no other window can be among them, so the set is settled"
    assert decide(found[:, :8], WINDOWS, SIZES, TOP, 1e-5) is None, "too few for a look"


def test_more_examples_are_taken_where_the_gap_is_small():
    found = losses([0, 0.1, 2, 0.98, 1.05, 0.1, 5])
    decision = first_decision(found, WINDOWS, SIZES, TOP, 1e-5)
    assert 16 < decision.examples < 100
    assert decision.examples == SIZES[0] * decision.chunks
    for chunks in range(2, decision.chunks):
        n = 8 * chunks
        told = top_candidates(found[1:6, :n], 2, 100, 0.05 / len(looks(SIZES)), 1e-5)
        assert told.sum() > 2


def test_the_error_is_split_over_the_looks():
    found = losses([0, 0.1, 2, 0.9, 1.05, 0.1, 5], noise=0.2, seed=3)
    few, many = ([50, 50], [10] * 10)
    assert len(looks(few)) == 1
    assert len(looks(many)) == 8
    gap = found[4, :50] - found[3, :50]
    # one look: t of the gap against the level 0.05 / (2 · 3); eight looks: 0.05 / 8 / 6
    t = gap.mean() / (gap.std(ddof=1) / math.sqrt(50) * math.sqrt(0.5))
    scale = [stats.t.isf(0.05 / n / 6, 49) for n in (1, 8)]
    found[3] += found[4].mean() - found[3].mean()  # no gap left …
    gap = found[4, :50] - found[3, :50]
    error = gap.std(ddof=1) / math.sqrt(50) * math.sqrt(0.5)
    found[3] += gap.mean() - (scale[0] + scale[1]) / 2 * error  # … but one between the two limits
    assert t > 0
    assert decide(found[:, :50], WINDOWS, few, TOP, 0.0).settled
    assert decide(found[:, :50], WINDOWS, many, TOP, 0.0) is None


def test_windows_that_tie_take_all_the_examples_and_it_is_said():
    found = losses([0, 0.1, 2, 1, 1, 0.1, 5])
    found[4] = found[3]
    decision = first_decision(found, WINDOWS, SIZES, TOP, 1e-5)
    assert (decision.chunks, decision.examples, decision.settled) == (13, 100, False)
    assert set(decision.chosen) == {Window(1, 3), Window(2, 4), Window(3, 5)}
    assert decision.reason == "windows within 1e-05 nats of each other cannot be distinguished even with all examples"


def test_a_gap_below_the_resolution_of_the_precision_is_a_tie():
    found = losses([0, 0.1, 2, 1, 1, 0.1, 5])
    found[4] = found[3] + 5e-4
    assert first_decision(found, WINDOWS, SIZES, TOP, 1e-3).settled is False
    decision = first_decision(found, WINDOWS, SIZES, TOP, 1e-5)
    assert (decision.examples, decision.settled, decision.chosen[1]) == (100, True, Window(3, 5))
    assert decision.reason == "all examples were used, so the set is settled"


def test_half_width_stops_when_the_widest_interval_is_narrow_enough():
    found = losses([0, 0.1, 2, 0.2, 1, 0.1, 5], noise=0.3)
    others = [*WINDOWS, Intervention("set", (1, 4))]
    found = np.concatenate([found, losses([0, 1], noise=0.5, seed=1)[1:] * 0 + found[1:2] + 0.01])
    decision = first_decision(found, others, SIZES, NARROW, 1e-5)
    assert (decision.settled, decision.chosen) == (True, ())

    def widest(n):
        rows = found[1:, :n] - found[0, :n]
        return max(stats.t.ppf(0.975, n - 1) * stats.sem(row) for row in rows)

    assert widest(decision.examples) <= 0.1 < widest(decision.examples - 8)
    assert decision.reason.endswith(f"has half-width {widest(decision.examples):.3g} nats")


def test_half_width_that_no_example_reaches_uses_all():
    decision = first_decision(losses([0, 0, 0, 0, 0, 0, 1]), WINDOWS, SIZES, Rule(1e-3, None, 0.95, 2), 1e-5)
    assert (decision.examples, decision.settled) == (100, False)
    found = losses([0, 0, 0, 0, 0, 0, 1])
    found[3, 0] = math.inf
    decision = first_decision(found, WINDOWS, SIZES, NARROW, 1e-5)
    assert (decision.examples, decision.settled) == (100, False)
    assert decision.reason == "the difference of 2-3 has no interval (too few losses, or an infinite one)"


def test_losses_that_are_nan_settle_nothing():
    found = np.full((7, 100), math.nan)
    decision = first_decision(found, WINDOWS, SIZES, TOP, 1e-5)
    assert (decision.examples, decision.settled, decision.chosen) == (100, False, tuple(WINDOWS[1:6]))
    assert decision.reason == "no example has a loss under every window"
    assert first_decision(found, WINDOWS, SIZES, NARROW, 1e-5).settled is False
    found = losses([0, 0.1, 2, 0.2, 1, 0.1, 5])
    found[[2, 3], [1, 5]] = math.nan
    found[6, 7] = math.nan  # all layers: none of the windows compared
    decision = first_decision(found, WINDOWS, SIZES, TOP, 1e-5)
    assert (decision.examples, decision.chosen) == (16, (Window(1, 3), Window(3, 5)))
    assert decision.reason.endswith("settled; 2 examples without a loss under one of the windows were left out")


def test_a_part_of_a_chunk_is_refused():
    with pytest.raises(ValueError, match="17 examples are no whole number of chunks"):
        decide(losses([0] * 7, n=17), WINDOWS, SIZES, TOP, 1e-5)


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        (
            Rule(None, 5, 0.95, 2),
            "studies.substitution.stop asks for the top 5 of the windows of width 2, and the 6 decoder layers of model 'm' "
            "have 5 windows of that width: give 4 or less",
        ),
        (
            Rule(None, 1, 0.95, 6),
            "studies.substitution.stop asks for the top 1 of the windows of width 6, and the 6 decoder layers of model 'm' "
            "have only the window of all layers together of that width: give a smaller width first in widths",
        ),
    ],
)
def test_more_than_there_are_is_refused(rule, told):
    with pytest.raises(InputError) as refused:
        check_rule(rule, LAYERS, " of model 'm'")
    assert str(refused.value) == told
    check_rule(Rule(None, 4, 0.95, 2), LAYERS)
    check_rule(Rule(0.1, None, 0.95, 6), LAYERS)


# --- how often it is true ---------------------------------------------------------------------------------------------

KINDS = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "skewed": lambda rng, shape: rng.gamma(1, 1, shape) - 1,
}
TRIALS = 300


def declared(values, k, error):
    """(examples, set) at the first look, after each 16 examples, that has k candidates at this error."""
    for n in range(16, values.shape[1] + 1, 16):
        found = top_candidates(values[:, :n], k, values.shape[1], error)
        if found.sum() == k:
            return n, set(np.flatnonzero(found))
    raise AssertionError("values without a tie are settled in the end")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("curves", "k", "gap"), [(2, 1, 0.01), (2, 1, 0.6), (6, 3, 0.01), (6, 3, 0.8)])
def test_the_declared_set_holds_the_true_top_as_often_as_it_says(kind, curves, k, gap):
    """Finite populations of 192 examples in random order: correlated rows, the true means of k are `gap` above the others'."""
    rng, n_looks = np.random.default_rng(5), len(looks([16] * 12))
    missed = early = careless = 0
    for _ in range(TRIALS):
        values = 0.7 * KINDS[kind](rng, 192) + KINDS[kind](rng, (curves, 192))
        values -= values.mean(axis=1, keepdims=True)
        values[:k] += gap
        true = set(range(k))
        n, found = declared(values, k, 0.05 / n_looks)
        missed += found != true
        early += n < 192
        if (
            curves == 2 and gap < 0.1
        ):  # each look as if it were the only one: the simulation must see that this is wrong
            careless += declared(values, k, 0.05)[1] != true
    # 300 trials at 5 %: 15 expected, and 30 are four standard deviations above that
    assert missed <= 30
    if gap > 0.1:
        assert early > 0.8 * TRIALS, "a clear gap ends the sweep early"
    elif curves == 2:
        assert careless > 30


@pytest.mark.parametrize("kind", KINDS)
def test_intervals_at_the_stopping_point_still_cover(kind):
    """Stopping by width alone costs the pointwise intervals little: above 0.92 of the nominal 0.95."""
    rng, covered, total = np.random.default_rng(6), 0, 0
    changes = [Window(0, 0), Window(0, 1), Window(1, 2), Window(2, 3)]
    for _ in range(150):
        values = np.concatenate([np.zeros((1, 400)), KINDS[kind](rng, (3, 400))])
        decision = first_decision(values, changes, [8] * 50, Rule(0.25, None, 0.95, 1), 1e-5)
        assert decision.settled
        for row in values[1:, : decision.examples]:
            half = stats.t.ppf(0.975, len(row) - 1) * stats.sem(row)
            covered += abs(row.mean()) <= half
            total += 1
    assert covered / total > 0.92
