"""Who gets which call, and what becomes of a failure: decisions, tested without a worker."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest

from raysweep.engine.call_queue import CallQueue
from raysweep.engine.calls import Call, Outcome
from raysweep.engine.dispatch import (
    CallCost,
    Held,
    Load,
    Node,
    Slot,
    choose_group,
    choose_pieces,
    is_final,
    level,
    may_queue_behind,
    room_for,
)

A, B, C = ("base", "a"), ("base", "b"), ("other", "c")


@dataclass(frozen=True)
class Needing(Call):
    """A call that needs these checkpoints."""

    needs: tuple[str, ...] = ()

    @property
    def affinity(self):
        return self.needs


def call(name, *needs):
    return Needing(name, "m", "d", (), tuple(needs))


def holding(*needs, room=2):
    held = Held(room)
    for group in needs:
        held.use(group)
    return held


def chosen(waiting, own=(), held=None, others=(), load=0.0, **how):
    held = holding(*([own] if own else [])) if held is None else held
    return choose_group(waiting, own, held, Counter(others), lambda needed: load * len(needed), **how)


# --- what a worker has loaded -------------------------------------------------------------------------------------


def test_the_checkpoint_used_longest_ago_makes_room():
    held = Held(2)
    assert held.use(A) == A
    assert held.use(B) == ("b",), "the base stays: it was used with either"
    assert held.lacking(A) == ("a",)
    assert (held.had(A), held.had(B), held.had(C)) == (1, 0, 0)
    assert holding(A, B, room=3).lacking(A) == ()


# --- which group --------------------------------------------------------------------------------------------------


def test_a_worker_goes_on_with_what_it_has_loaded():
    assert chosen({A: 1, B: 90}, B) == B
    assert chosen({A: 1, B: 90}, A, others=[A, A, A]) == A
    alone = ("base",)
    assert chosen({B: 90, alone: 1}, A) == alone, "for which nothing is to be loaded"


def test_then_it_takes_one_that_nobody_works_on():
    assert chosen({A: 1, C: 9}, others=[C]) == A
    assert chosen({A: 1, B: 5}) == A, "of one base the first"


def test_of_those_one_with_its_own_base_before_any():
    assert chosen({C: 9, A: 1, B: 5}, ("base", "gone")) == A


def test_else_of_a_base_that_nobody_works_on_and_the_most_work_first():
    other, third = ("base", "b"), ("third", "t")
    assert chosen({other: 90, C: 2, third: 5}, others=[A]) == third


def test_what_it_had_and_let_go_comes_after_what_it_never_had():
    held = holding(C, A, room=2)
    assert chosen({C: 9, ("third", "t"): 1}, A, held) == ("third", "t")


def test_another_base_is_loaded_only_where_that_takes_less_than_its_workers_need_without():
    assert chosen({B: 4}, others=[A], load=3.0) == B
    assert chosen({B: 4}, others=[A], load=5.0) is None
    assert chosen({B: 4}, others=[A, A], load=3.0) is None


def test_when_all_are_worked_on_it_helps_where_most_is_left_per_worker():
    assert chosen({A: 10, B: 12}, C, others=[A, B, B]) == A
    assert chosen({A: 10, B: 30}, C, others=[A, B, B]) == B


def test_where_as_much_is_left_it_helps_where_less_is_to_be_loaded():
    assert chosen({C: 10, A: 10}, held=holding(B), others=[A, C], load=1.0) == A, "its base is there"
    assert chosen({C: 12, A: 10}, held=holding(B), others=[A, C], load=1.0) == C


def test_help_that_comes_too_late_is_not_given():
    assert chosen({A: 10}, C, others=[A], load=4.0) == A
    assert chosen({A: 10}, C, others=[A], load=6.0) is None, "both checkpoints are to be loaded"
    assert chosen({A: 10}, C, others=[A], busy=True) is None


# --- the queue ----------------------------------------------------------------------------------------------------


def test_pairs_are_divided_among_workers_and_the_last_is_shared():
    names = {"a": A, "b": B}
    queue = CallQueue(call(f"{group} {i}", *names[group]) for group, n in (("a", 3), ("b", 5)) for i in range(n))
    slots, taken = [Slot(), Slot()], {0: [], 1: []}
    while queue:
        for index, slot in enumerate(slots):
            got = queue.take(index, slot)
            if got:
                taken[index].append(got.name)
    assert taken == {0: ["a 0", "a 1", "a 2", "b 3"], 1: ["b 0", "b 1", "b 2", "b 4"]}
    assert queue.seconds == 0


def test_what_a_dead_worker_had_is_forgotten():
    queue = CallQueue([call("a 1", *A), call("a 2", *A)], lambda _: CallCost(1.0, 0, {"base": Load(1, 9.0)}))
    assert queue.take(0, Slot()).name == "a 1"
    assert queue.take(1, Slot()) is None, "loading takes longer than what is left"
    queue.forget(0)
    assert queue.take(1, Slot()).name == "a 2", "nobody is at it any more"


def test_tables_come_first_and_go_only_where_they_are_made():
    queue = CallQueue([call("x", *A), call("table")])
    assert queue.take(0, Slot(results=False)).name == "x"
    assert queue.take(0, Slot(results=False)) is None
    assert len(queue) == 1
    assert queue.take(1, Slot(models=False)).name == "table"
    assert queue.take(1, Slot()) is None
    queue = CallQueue([call("x", *A), call("table")])
    assert queue.take(0, Slot()).name == "table"


def test_a_call_given_back_is_the_next_and_a_failed_one_the_last():
    queue = CallQueue(call(f"x {i}", *A) for i in range(3))
    first = queue.take(0, Slot())
    queue.push_back(first)
    assert queue.take(0, Slot()) is first
    queue.push(first)
    assert [queue.take(0, Slot()).name for _ in range(3)] == ["x 1", "x 2", "x 0"]


def test_calls_that_are_not_needed_are_taken_out():
    queue = CallQueue([call("x 1", *A), call("x 2", *B), call("y 3", *B), call("table 1")])
    assert queue.drop(lambda waiting: waiting.name.startswith("x")) == Counter(x=2)
    assert len(queue) == 2
    assert [queue.take(0, Slot()).name for _ in range(2)] == ["table 1", "y 3"]
    assert queue.drop(lambda waiting: True) == Counter()


def test_a_second_call_waits_behind_a_first_only_while_all_have_work():
    assert not may_queue_behind(1, 12.0, 4, 4.0), "of long calls each can have one"
    assert may_queue_behind(0, 0, 4)
    assert may_queue_behind(1, 4, 4)
    assert not may_queue_behind(1, 3, 4)


# --- cutting ------------------------------------------------------------------------------------------------------


def test_work_is_divided_as_evenly_as_can_be():
    assert level([0.0, 0.0], 8.0) == 4.0
    assert level([0.0, 6.0], 8.0) == 7.0
    assert level([10.0, 0.0, 1.0], 3.0) == 2.0
    with pytest.raises(ValueError, match="no worker"):
        level([], 1.0)


def test_a_last_call_is_cut_where_others_would_wait_for_it():
    halves, thirds = (0.6, 0.6), (0.45, 0.45, 0.45)  # with a trunk of a fifth
    assert choose_pieces(0.0, [0.0, 0.0], 0.0, 10.0, 0.0, [halves, thirds]) == 1
    assert choose_pieces(0.0, [0.0, 9.0], 0.0, 10.0, 0.0, [halves, thirds]) == 0
    assert choose_pieces(0.0, [9.0, 9.0], 0.0, 10.0, 0.0, [halves, thirds]) == -1, "they work on"
    assert choose_pieces(0.0, [0.0, 0.0], 18.0, 10.0, 0.0, [halves, thirds]) == -1, "other calls wait for them"
    assert choose_pieces(0.0, [0.0], 0.0, 10.0, 9.0, [halves]) == -1, "loading the pair there takes too long"
    assert choose_pieces(0.0, [0.0], 0.0, 0.05, 0.0, [halves]) == -1, "too short to be worth a call"
    assert choose_pieces(0.0, [0.0], 0.0, 10.0, 0.0, []) == -1


# --- failures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "attempts", "final"),
    [("refused", 1, True), ("raised", 1, False), ("raised", 3, True), ("lost", 2, False), ("lost", 3, True)],
)
def test_what_is_set_aside(failure, attempts, final):
    assert is_final(Outcome(call("x"), error="e", failure=failure), attempts, limit=3) is final


# --- room ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "room"),
    [
        ([Node(8, 4)], 1, 1, 4),
        ([Node(2, 4)], 1, 1, 2),
        ([Node(8, 4)], 1, 0.5, 8),
        ([Node(8, 4)], 1, 1 / 3, 8),
        ([Node(64, 4)], 1, 1 / 3, 12),
        ([Node(8, 1), Node(8, 1)], 1, 2, 0),
        ([Node(3, 0), Node(5, 0)], 2, 0, 3),
        ([], 1, 0, 0),
    ],
)
def test_room(nodes, cpus, gpus, room):
    assert room_for(nodes, cpus, gpus) == room
