"""How values are written, against what a reader would write."""

from __future__ import annotations

import math

import pytest

from raysweep.report import words


@pytest.mark.parametrize(
    ("layers", "text"),
    [([3], "layer 3"), (range(8, 13), "layers 8–12"), ([1, 10, 11, 13], "layers 1, 10–11, 13")],
)
def test_layers(layers, text):
    assert words.layers_text(layers) == text
    assert words.runs_text(layers) == text.split(maxsplit=1)[1]


def test_so_many_layers_in_a_row():
    assert [words.consecutive(width) for width in (1, 5)] == ["one layer", "5 consecutive layers"]


def test_numbers_have_a_true_minus_and_nan_is_not_a_number():
    assert words.number(-0.125, 3) == "−0.125"
    assert words.number(0.5, signed=True) == "+0.50"
    assert words.number(-0.0001) == "0.00"
    assert words.number(math.nan) == "n/a"
    assert words.number_or_reason(math.nan, "flat", 3) == "n/a (flat)"
    assert words.interval(-1, 0.5) == "[−1.00, 0.50]"
    assert words.interval(-1, math.nan) == "[n/a]"


@pytest.mark.parametrize(
    ("low", "high", "spare", "decimals"),
    [(0.1, 0.5, 0, 2), (0.100, 0.104, 0, 3), (0, 1e-9, 0, 6), (0.1, 0.5, 2, 3), (1, 1, 1, 3), (0, math.nan, 0, 2)],
)
def test_decimals_show_the_first_digit_of_the_half_width(low, high, spare, decimals):
    assert words.decimals_for(low, high, spare) == decimals


@pytest.mark.parametrize(
    ("created", "shown"),
    [("2026-11-23T09:09:01.672+00:00", "2026-11-23 09:09 UTC"), ("yesterday", "yesterday"), ("", "")],
)
def test_moments(created, shown):
    assert words.moment(created) == shown


@pytest.mark.parametrize(
    ("seconds", "text"), [(47.31, "47.3 s"), (83.0, "1 min 23 s"), (3599.7, "1 h 00 min"), (7384.0, "2 h 03 min")]
)
def test_durations(seconds, text):
    assert words.duration(seconds) == text


def test_a_measure_of_distance_is_told_as_one():
    assert (words.metric_name("angular"), words.likeness_name("angular")) == (
        "angular distance",
        "1 − angular distance",
    )
    assert (words.metric_name("rsa"), words.likeness_name("rsa")) == ("RSA", "RSA")
    assert words.metric_name("of another time") == words.likeness_name("of another time") == "of another time"
    assert [words.measures_distance(metric) for metric in ("block_influence", "cosine", "gone")] == [True, False, False]


def test_a_long_text_is_shown_by_its_ends_and_says_how_much_is_left_out() -> None:
    assert words.excerpt("x" * 20_000) == "x" * 20_000
    shown = words.excerpt("a" * 500_000 + "b" * 500_001)
    assert shown == "a" * 10_000 + "\n[… 980,001 characters are not shown …]\n" + "b" * 10_000
