"""The area between curves: closed forms, what must not change it, and intervals against Student's t written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from raysweep.numerics.curves import area_between, mean_curve, paired_area, paired_mean

LOSS = st.floats(-10, 10)
GAPS = st.lists(st.integers(1, 50), min_size=1, max_size=8)


@st.composite
def two_curves(draw, seeds=1):
    """Steps [T] and two sets of curves [S, T]."""
    steps_T = np.cumsum([draw(st.integers(0, 5)), *draw(GAPS)])
    a_ST, b_ST = (draw(arrays(float, (seeds, len(steps_T)), elements=LOSS)) for _ in "ab")
    return steps_T, a_ST, b_ST


@pytest.mark.parametrize("n", [3, 40, 400])
def test_exponential_curves_have_the_area_of_the_integral(n):
    steps_T = np.linspace(0, 2, n)
    area = area_between(steps_T, np.exp(-steps_T), np.zeros(n))
    trapezoids = (1 - math.exp(-2)) / 2 * (1 / (n - 1)) / math.tanh(1 / (n - 1))  # the sum in closed form
    assert area == pytest.approx(trapezoids, rel=1e-12)
    assert area == pytest.approx((1 - math.exp(-2)) / 2, rel=1 / (n - 1) ** 2)


def test_uneven_steps_count_by_their_length():
    assert area_between([0, 1, 10], [1, 1, 0], [0, 0, 0]) == pytest.approx((1 + 4.5) / 10)


def test_curves_that_cross_cancel():
    assert area_between([0, 10, 20], [1, 0, -1], [0, 0, 0]) == 0


@given(two_curves(), st.floats(-5, 5), st.integers(1, 9), st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_what_the_area_obeys(curves, shift, times, later):
    steps_T, (a_T,), (b_T,) = curves
    area = area_between(steps_T, a_T, b_T)
    assert area_between(steps_T, b_T, a_T) == pytest.approx(-area, abs=1e-12)
    assert area_between(steps_T, a_T + shift, b_T) == pytest.approx(area + shift, abs=1e-9)
    assert area_between(steps_T * times + later, a_T, b_T) == pytest.approx(area, abs=1e-9)
    assert (a_T - b_T).min() - 1e-9 <= area <= (a_T - b_T).max() + 1e-9
    halves = np.sort(np.concatenate([steps_T, (steps_T[1:] + steps_T[:-1]) / 2]))
    finer = [np.interp(halves, steps_T, each) for each in (a_T, b_T)]
    assert area_between(halves, *finer) == pytest.approx(area, abs=1e-9)


@given(two_curves(seeds=4))
@settings(max_examples=40, deadline=None)
def test_over_seeds_it_is_the_area_of_the_mean_curves_with_students_interval(curves):
    steps_T, a_ST, b_ST = curves
    found = paired_area(steps_T, a_ST, b_ST)
    assert found.value == pytest.approx(area_between(steps_T, a_ST.mean(axis=0), b_ST.mean(axis=0)), abs=1e-9)
    each_S = np.array([area_between(steps_T, a_T, b_T) for a_T, b_T in zip(a_ST, b_ST, strict=True)])
    half = 3.182446305284263 * each_S.std(ddof=1) / 2  # t of 3 degrees of freedom, from tables; √4
    if found.reason is None:
        assert [found.low, found.high] == pytest.approx([each_S.mean() - half, each_S.mean() + half], abs=1e-9)
    else:
        assert half < 1e-9


def test_what_both_curves_of_a_seed_share_leaves_the_interval_alone():
    rng = np.random.default_rng(0)
    steps_T, a_ST, b_ST = np.arange(5), rng.normal(size=(3, 5)), rng.normal(size=(3, 5))
    shared_ST = 100 * rng.normal(size=(3, 5))
    assert paired_area(steps_T, a_ST + shared_ST, b_ST + shared_ST)[:3] == pytest.approx(
        paired_area(steps_T, a_ST, b_ST)[:3], abs=1e-9
    )


def test_intervals_hold_the_mean_over_seeds_as_often_as_they_say():
    rng = np.random.default_rng(1)
    held = [low <= 0.3 <= high for _, low, high, _ in map(paired_mean, rng.normal(0.3, 1, (2000, 3)))]
    assert 0.935 < np.mean(held) < 0.965


def test_what_cannot_be_told_says_why():
    steps_T, a_ST, b_ST = [0, 1], np.array([[2.0, 1.0], [2.0, math.nan]]), np.ones((2, 2))
    found = paired_area(steps_T, a_ST, b_ST)
    assert np.isnan(found[:3]).all()
    assert found.reason == "1 of 2 seeds have a loss that is NaN or infinite"
    assert paired_area(steps_T, [[math.inf, 1]], [[math.inf, 1]]).reason == found.reason.replace("1 of 2", "1 of 1")
    assert math.isnan(area_between(steps_T, a_ST[1], b_ST[1]))
    one = paired_area(steps_T, a_ST[:1], b_ST[:1])
    assert (one.value, one.reason) == (0.5, "one seed: no interval")
    assert np.isnan(one[1:3]).all()
    same = paired_mean([0.25, 0.25, 0.25])
    assert (same.value, same.reason) == (0.25, "the seeds all give the same: no interval")
    assert np.isnan(same[1:3]).all()
    assert paired_mean([]).reason == "no seed has both curves"


@pytest.mark.parametrize(
    ("steps", "a", "b", "words"),
    [
        ([0, 1], [1, 2], [1, 2, 3], "the same shape"),
        ([0, 1, 2], [1, 2], [1, 2], "2 losses a curve, and 3 steps"),
        ([0], [1], [1], "two steps or more"),
        ([0, 0], [1, 1], [1, 1], "ascending"),
        ([1, 0], [1, 1], [1, 1], "ascending"),
    ],
)
def test_curves_that_do_not_fit_are_refused(steps, a, b, words):
    with pytest.raises(ValueError, match=words):
        area_between(steps, a, b)


def test_the_mean_curve_has_each_steps_own_interval():
    mean_T, low_T, high_T = mean_curve([[1.0, 2.0, math.nan], [3.0, 2.0, 1.0]])
    assert mean_T[:2].tolist() == [2, 2]
    half = 12.706204736174694 * math.sqrt(2) / math.sqrt(2)  # t of 1 degree of freedom; s = √2 of 1 and 3
    assert [low_T[0], high_T[0]] == pytest.approx([2 - half, 2 + half])
    assert low_T[1] == high_T[1] == 2
    assert np.isnan([mean_T[2], low_T[2], high_T[2]]).all()
    alone = mean_curve([[1.0, 2.0]])
    assert alone[0].tolist() == [1, 2]
    assert np.isnan(alone[1:]).all()
    with pytest.raises(ValueError, match=r"a curve a seed, \[S, T\]; got shape \(2,\)"):
        mean_curve([1.0, 2.0])
