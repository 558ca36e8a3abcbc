"""The ledger against the plain rule: a table can be made when all it is made from is committed, and it is not."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter

import pytest

from raysweep.engine.graph import Graph
from raysweep.engine.ledger import Ledger
from raysweep.engine.plan import plan


@pytest.fixture
def graph(small):
    return plan(*small)


def can_be_made(task, tasks, done):
    """The rule, written plainly."""
    lacks = not all(key in done for key in task.results.values())
    has_parts = all(key in done for key in task.parts)
    return lacks and has_parts and all(key in done for name in task.needs for key in tasks[name].keys)


def test_committing_in_any_order_gives_every_table_once_and_as_soon_as_can_be(graph):
    tasks = {task.name: task for task in graph.tasks}
    made = [task for task in graph.tasks if task.results and (task.parts or task.needs)]
    chance = random.Random(3)
    for _ in range(40):
        keys = [key for task in graph.tasks for key in task.keys]
        chance.shuffle(keys)
        done = set(keys[: chance.randrange(len(keys))])
        ledger = Ledger(graph, done)
        expected = [task.name for task in made if can_be_made(task, tasks, done)]
        given = [task.name for task in ledger.take_makeable()]
        assert sorted(given) == sorted(expected)
        while len(done) < len(keys):
            key = chance.choice([key for key in keys if key not in done])
            assert ledger.lacks(key)
            before = sum(all(k in done for k in task.keys) for task in graph.tasks)
            assert ledger.n_done == before
            done.add(key)
            finished = ledger.commit([key])
            assert len(finished) == ledger.n_done - before
            assert all(k in done for task in finished for k in task.keys)
            assert not ledger.lacks(key)
            fresh = [task.name for task in ledger.take_makeable()]
            expected = [t.name for t in made if can_be_made(t, tasks, done) and t.name not in given]
            assert sorted(fresh) == sorted(expected)
            given += fresh
        assert ledger.n_done == len(graph.tasks)
        assert len(given) == len(set(given))


def test_what_is_still_to_be_made_is_counted(graph):
    ledger = Ledger(graph, ())
    assert ledger.to_make() == Counter(similarity=2, correlate=1)
    first = graph.cell("similarity", "m", "first")[0]
    ledger.commit(first.parts)
    assert ledger.to_make() == Counter(similarity=2, correlate=1), "possible, and not given yet"
    assert ledger.take_makeable() == [first]
    assert ledger.to_make() == Counter(similarity=1, correlate=1)
    assert Ledger(graph, {key for task in graph.tasks for key in task.keys}).to_make() == Counter()


def test_keys_of_another_run_are_none_of_its_business(graph):
    ledger = Ledger(graph, ())
    assert ledger.commit(["foreign"]) == []
    assert ledger.n_done == 0


def test_it_shrinks(graph):
    ledger = Ledger(graph, ())
    for task in graph.tasks:
        ledger.commit(task.keys)
    assert not any(ledger.lacks(key) for task in graph.tasks for key in task.keys)
    assert (ledger._tasks_of, ledger._missing, ledger._missing_parts) == ({}, {}, {})


def test_a_task_that_drops_keys_is_done_without_them_and_others_are_not(graph):
    tasks = list(graph.of_kind("substitute"))
    twin = dataclasses.replace(tasks[0], model="n")
    ledger = Ledger(Graph((*graph.tasks, twin)), ())
    first, *rest = tasks[0].parts
    ledger.commit([first])
    assert not ledger.drop(tasks[0], rest[:1])
    assert ledger.drop(tasks[0], rest[1:])
    assert ledger.n_done == 1
    assert all(ledger.lacks(key) for key in rest), "the other task of these parts still needs them"
    assert not ledger.drop(tasks[0], rest), "known already"
    assert ledger.drop(twin, rest)
    assert not any(ledger.lacks(key) for key in rest)


def test_dropped_keys_make_tables_makeable(graph):
    ledger = Ledger(graph, ())
    (correlation,) = graph.of_kind("correlate")
    similarity = graph.cell("similarity", "m", "first")[0]
    ledger.commit(similarity.keys)
    for task in graph.of_kind("substitute"):
        assert correlation not in ledger.take_makeable()
        ledger.commit(task.parts[:1])
        ledger.drop(task, task.parts[1:])
    assert ledger.take_makeable() == [correlation]
