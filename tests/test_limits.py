"""Limits are named, documented, and can be raised."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path

import pytest

from raysweep import limits
from raysweep.config_yaml import read_yaml
from raysweep.errors import InputError, nearest, shown
from raysweep.patterns import LimitedPattern
from raysweep.redaction import redacted


@pytest.mark.parametrize(
    ("text", "value"),
    [("5", 5), ("500M", 5e8), ("2Gi", 2**31), ("1.5 kB", 1500), (" 7 ", 7), ("", limits.RECORDS.default)],
)
def test_an_environment_variable_sets_a_limit(text, value, monkeypatch):
    monkeypatch.setenv("RAYSWEEP_MAX_RECORDS", text)
    assert limits.RECORDS.value() == value
    limits.RECORDS.check(value, "x")
    with pytest.raises(
        InputError, match=rf"x: .* has {value + 1:.15g} records, and at most {value:.15g} .*RAYSWEEP_MAX_RECORDS"
    ):
        limits.RECORDS.check(value + 1, "x")


@pytest.mark.parametrize("text", ["0", "-1", "many", "1e9", "nan", "5 apples"])
def test_a_variable_that_is_no_number_is_refused(text, monkeypatch):
    monkeypatch.setenv("RAYSWEEP_MAX_RECORDS", text)
    with pytest.raises(InputError, match=r"RAYSWEEP_MAX_RECORDS is '.*': set it to a number of records"):
        limits.RECORDS.value()


def test_every_limit_is_documented_with_its_default():
    text = (Path(__file__).parent.parent / "docs" / "security.md").read_text()
    for limit in limits.ALL:
        assert f"| `{limit.variable}` | {limit.default:,.0f} {limit.unit} |" in text


def test_variables_that_are_set_are_passed_on(monkeypatch):
    monkeypatch.setenv("RAYSWEEP_MAX_RECORDS", "5")
    assert limits.overrides() == {"RAYSWEEP_MAX_RECORDS": "5"}


def test_a_file_is_read_as_far_as_its_limit(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"a" * 2**20)
    assert limits.read_limited(path, limits.CONFIG_BYTES) == b"a" * 2**20
    path.write_bytes(b"a" * (2**20 + 1))
    with pytest.raises(InputError, match=r"a config has 1048577 bytes, and at most 1048576"):
        limits.read_limited(path, limits.CONFIG_BYTES)


# The pattern for a URL's login before it was matched in linear time.
_LOGIN = re.compile(r"(://)(?:[^\s/@'\"]+|[^\s@'\"]*:[^\s@'\"]*)@|(:/)[^\s/@'\":]+:[^\s@'\"]+@")


def test_logins_in_urls_are_hidden_as_by_one_pattern():
    rng = random.Random(1)
    for _ in range(20_000):
        text = "".join(rng.choice([":", "/", "@", "a", "b", " ", "'", "://", ":/"]) for _ in range(rng.randrange(14)))
        assert redacted(text, {}) == _LOGIN.sub(lambda found: f"{found[1] or found[2]}***@", text), text


@pytest.mark.parametrize("piece", [":", "://", ":/", ":/x", "@", "a@:/", "token='", "api-", "sk-", "hf_", "Bearer "])
def test_redaction_takes_linear_time(piece):
    begun = time.process_time()
    redacted(piece * (300_000 // len(piece)), {})
    assert time.process_time() - begun < 3  # quadratic: minutes


def test_values_that_python_cannot_write_are_named():
    assert shown(2**20_000) == "a int too large to show"
    assert len(shown("x" * 10**7)) < 100
    assert "and 90 more" in nearest("x" * 10**6, [f"name{i}" for i in range(1090)])


def test_aliases_count_each_time():
    laughs = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
    with pytest.raises(InputError, match=r"YAML from line \d+: a config has more than 100000 values"):
        read_yaml(laughs)
    few = "a: &a {b: [1, 2]}\nc: *a\nd: {<<: *a, e: 1}"
    assert read_yaml(few) == {"a": {"b": [1, 2]}, "c": {"b": [1, 2]}, "d": {"b": [1, 2], "e": 1}}


PATTERNS = [
    "abc|def",
    r"\bno+\b",
    "a*",
    "(a+)+$",
    "(?i)REFUSE",
    r"(?P<x>.)(?P=x)",
    "a?" * 9 + "b",
    "[^ ]+ no$",
    "(a|aa)+b",
    "é.*",
]


@pytest.mark.parametrize("mode", ["search", "match", "fullmatch"])
def test_patterns_find_what_re_finds(mode):
    rng = random.Random(mode)
    for regex in PATTERNS:
        pattern = LimitedPattern(regex, mode)
        for n in (0, 5, 12, 300):
            text = (
                "".join(rng.choice(["a", "b", "no", " ", "refuse", "é", "\ud800", "\n"]) for _ in range(n)) * (n != 300)
                or " a"
            )
            assert pattern.found(text) == (getattr(re.compile(regex), mode)(text) is not None), (regex, text)


@pytest.mark.parametrize("regex", ["(a+)+$", "(a|a)+$", "a?" * 30 + "a" * 30, "(.*)*x", "(?:a{1,50}){1,50}$"])
def test_a_pattern_that_takes_too_long_is_refused(regex, monkeypatch):
    monkeypatch.setenv("RAYSWEEP_MAX_PATTERN_SECONDS", "0.3")
    pattern = LimitedPattern(regex)
    with pytest.raises(InputError, match=r"takes more than 0\.3 seconds, .* RAYSWEEP_MAX_PATTERN_SECONDS"):
        pattern.found("a" * 29 + "b")
    assert not pattern.found("c")
