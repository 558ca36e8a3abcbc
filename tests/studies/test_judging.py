"""Rules against answers written by hand, in both polarities; and what a rule refuses."""

from __future__ import annotations

import pytest

from raysweep.errors import InputError
from raysweep.studies.judging import Keywords, Pattern, judge_by_rule


@pytest.mark.parametrize(
    ("phrases", "answer", "contained"),
    [
        (("violet",), "It is VIOLET.", True),
        (("violet",), "It is violent.", False),
        (("red", "Straße"), "in der STRASSE", True),  # case folding, not lower case
        (("art",), "a party", True),  # a part of a word counts
        (("I cannot", "I'm sorry"), "", False),
        (("(.*)",), "anything", False),  # no expression
    ],
)
def test_phrases_are_sought_in_any_case_and_lacks_is_the_opposite(
    phrases: tuple[str, ...], answer: str, contained: bool
) -> None:
    assert Keywords(phrases).is_success(answer) is contained
    assert Keywords(phrases, "lacks").is_success(answer) is not contained


@pytest.mark.parametrize(
    ("regex", "answer", "matches"),
    [
        ("^violet$", "violet", True),
        ("^violet$", "a violet", False),
        ("violet", "VIOLET", False),
        ("(?i)vio", "VIO", True),
    ],
)
def test_a_pattern_says_for_itself_whether_case_matters(regex: str, answer: str, matches: bool) -> None:
    assert [(v.success, v.reason) for v in judge_by_rule(Pattern(regex), [answer])] == [(matches, None)]
    assert Pattern(regex, "lacks").is_success(answer) is not matches


def test_a_rule_that_can_judge_nothing_is_refused() -> None:
    for phrases in ((), ("a", "")):
        with pytest.raises(InputError, match="give phrases, none of them empty"):
            Keywords(phrases)
    with pytest.raises(InputError, match=r"'\[a' does not compile .*; correct it"):
        Pattern("[a")
