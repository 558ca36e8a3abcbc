"""Whether a slot or its calls are to blame: the rule, without a worker."""

from __future__ import annotations

from dataclasses import dataclass

from raysweep.engine.calls import Call, Outcome
from raysweep.engine.slot_health import LIMIT, SlotHealth

PAIR = (0, 1)


@dataclass(frozen=True)
class OnModel(Call):
    @property
    def affinity(self):
        return ("base",)


def ended(name, failure=None, kind=OnModel):
    call = kind(name, "m", "d", ())
    return Outcome(call) if failure is None else Outcome(call, error=f"{name} failed", failure=failure)


def judged(health, slot, names, failure=None, slots=PAIR):
    return [health.judge(slot, ended(name, failure), slots) for name in names]


def test_a_slot_that_fails_what_others_complete_is_quarantined():
    health = SlotHealth()
    first, second, third = judged(health, 0, "abc", "raised")
    assert [verdict.outcome.failure for verdict in (first, second, third)] == ["raised", "raised", "unstarted"]
    assert not health.may_work(0)
    assert health.witnesses[0].name == "c"
    (verdict,) = judged(health, 1, "c")
    (found,) = verdict.quarantined
    assert (found.slot, [o.call.name for o in found.charged], found.witness, found.error) == (
        0,
        ["a", "b"],
        "c",
        "c failed",
    )
    assert not health.may_work(0)
    assert health.witnesses == {}
    assert health.judge(0, ended("d", "raised"), PAIR).outcome.failure == "unstarted", (
        "what it still had is not charged"
    )


def test_calls_that_fail_everywhere_quarantine_nobody():
    health = SlotHealth()
    judged(health, 1, "z")
    judged(health, 0, "abc", "refused")
    assert not health.may_work(0)
    (verdict,) = judged(health, 1, "c", "refused")
    assert (verdict.outcome.failure, verdict.quarantined) == ("refused", ())
    assert health.may_work(0)
    assert health.may_work(1)
    judged(health, 1, "ab", "refused")
    assert health.may_work(1), "these have failed on the other slot as well"


def test_one_success_in_between_clears_a_slot():
    health = SlotHealth()
    judged(health, 0, "ab", "lost")
    judged(health, 0, "c")
    judged(health, 0, "de", "lost")
    assert health.may_work(0)


def test_one_call_that_fails_again_and_again_is_one():
    health = SlotHealth()
    judged(health, 0, "a" * 9, "lost")
    assert health.may_work(0)


def test_the_last_slot_is_never_suspended():
    health = SlotHealth()
    judged(health, 0, "abc", "raised")
    judged(health, 1, "defgh", "raised")
    assert health.may_work(1)
    health = SlotHealth()
    assert [verdict.outcome.failure for verdict in judged(health, 0, "abcdef", "raised", slots=(0,))] == ["raised"] * 6


def test_two_broken_slots_do_not_clear_each_other():
    health, slots = SlotHealth(), (0, 1, 2)
    judged(health, 0, "abc", "raised", slots)
    (verdict,) = judged(health, 1, "c", "raised", slots)
    assert verdict.outcome.failure == "unstarted", "a failure on a slot that has done nothing yet proves nothing"
    assert not health.may_try(1, health.witnesses[0])
    judged(health, 1, "de", "raised", slots)
    assert not health.may_work(1)
    judged(health, 2, "x", None, slots)
    quarantined = [found.slot for verdict in judged(health, 2, "ce", None, slots) for found in verdict.quarantined]
    assert quarantined == [0, 1]


def test_when_no_worker_survives_anything_nothing_works():
    health = SlotHealth()
    verdicts = judged(health, 0, "abc", "lost") + judged(health, 1, "cde", "lost")
    assert [verdict.nothing_works for verdict in verdicts] == [False] * 5 + [True]
    alone = SlotHealth()
    assert [verdict.nothing_works for verdict in judged(alone, 0, "abc", "lost", slots=(0,))] == [False, False, True]
    alone = SlotHealth()
    assert not any(verdict.nothing_works for verdict in judged(alone, 0, "abcdef", "raised", slots=(0,)))
    assert LIMIT == 3


def test_a_success_anywhere_means_that_something_works():
    health = SlotHealth()
    judged(health, 0, "ab", "lost", slots=(0,))
    judged(health, 0, "c", None, slots=(0,))
    assert not any(verdict.nothing_works for verdict in judged(health, 0, "de", "lost", slots=(0,)))


def test_tables_and_calls_that_were_not_begun_do_not_count():
    health = SlotHealth()
    for name in "abcd":
        health.judge(0, ended(name, "raised", kind=Call), PAIR)
        health.judge(0, ended(name, "unstarted"), PAIR)
    assert health.may_work(0)
