"""Who gets which call, and what becomes of a failure: decisions, tested without a worker."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest

from raysweep.engine.call_queue import CallQueue
from raysweep.engine.calls import Call, Outcome
from raysweep.engine.dispatch import Node, Slot, choose_group, is_final, may_queue_behind, room_for

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


# --- which group --------------------------------------------------------------------------------------------------


def test_a_worker_goes_on_with_what_it_has_loaded():
    assert choose_group({A: 1, B: 90}, B, []) == B
    assert choose_group({A: 1, B: 90}, A, [A, A, A]) == A


def test_then_it_takes_the_first_that_nobody_works_on():
    assert choose_group({A: 1, B: 5, C: 9}, (), [A]) == B
    assert choose_group({A: 1, B: 5, C: 9}, (), []) == A


def test_of_those_one_with_its_own_base_before_any():
    assert choose_group({C: 9, A: 1, B: 5}, ("base", "gone"), []) == A


def test_when_all_are_worked_on_it_helps_where_most_is_left_per_worker():
    assert choose_group({A: 10, B: 12}, C, [A, B, B]) == A
    assert choose_group({A: 10, B: 30}, C, [A, B, B]) == B


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


def test_counts():
    queue = CallQueue([call("x 1", *A), call("x 2", *B), call("table 1")])
    assert queue.counts() == Counter(x=2, table=1)
    assert len(queue) == 3


def test_calls_that_are_not_needed_are_taken_out():
    queue = CallQueue([call("x 1", *A), call("x 2", *B), call("y 3", *B), call("table 1")])
    assert queue.drop(lambda waiting: waiting.name.startswith("x")) == Counter(x=2)
    assert queue.counts() == Counter(y=1, table=1)
    assert len(queue) == 2
    assert [queue.take(0, Slot()).name for _ in range(2)] == ["table 1", "y 3"]
    assert queue.drop(lambda waiting: True) == Counter()


def test_a_second_call_waits_behind_a_first_only_while_all_have_work():
    assert may_queue_behind(0, 0, 4)
    assert may_queue_behind(1, 4, 4)
    assert not may_queue_behind(1, 3, 4)


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
