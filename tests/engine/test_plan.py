"""The plan: which tasks, under which names and keys. It touches neither disk nor model."""

from __future__ import annotations

import builtins
import dataclasses
import io
import json

import pytest

from raysweep.config import parse_config
from raysweep.engine.graph import Graph, Task
from raysweep.engine.inspection import inspect
from raysweep.engine.plan import plan

# 6 layers: every window of two layers, and the two rows that every sweep has.
WINDOWS = ["none", "0-1", "1-2", "2-3", "3-4", "4-5", "0-5"]


def names(graph):
    return [task.name for task in graph.tasks]


def test_one_task_a_window_and_one_cka_pass_a_cell(small):
    graph = plan(*small)
    assert names(graph) == [
        *(f"substitute m/first {window}" for window in WINDOWS),
        "similarity m/first",
        "correlate m/first",
        "similarity m/second",
    ]


def test_parts_and_what_is_made_of_them(small):
    graph = plan(*small)
    for task in graph.of_kind("substitute"):
        assert len(task.parts) == 3, "10 records in chunks of 4"
        assert (task.results, task.needs) == ({}, ())
        assert task.keys == task.parts
    first, second = graph.of_kind("similarity")
    assert (len(first.parts), len(second.parts)) == (3, 2)
    assert list(first.results) == ["similarity", "dynamics", "critical", "health"]
    assert first.keys == (*first.parts, *first.results.values())
    (correlation,) = graph.of_kind("correlate")
    assert list(correlation.results) == ["correlation"]
    assert correlation.parts == ()
    assert correlation.needs == ("similarity m/first", *(f"substitute m/first {window}" for window in WINDOWS))
    keys = [key for task in graph.tasks for key in task.keys]
    assert len(set(keys)) == len(keys)


def test_the_plan_is_a_pure_function(small, monkeypatch):
    before = plan(*small)

    def refuse(*args, **kwargs):
        raise AssertionError(f"the plan opened {args[0]}")

    monkeypatch.setattr(builtins, "open", refuse)
    monkeypatch.setattr(io, "open", refuse)
    assert plan(*small) == before


def test_a_graph_survives_json(small):
    graph = plan(*small)
    written = json.loads(json.dumps([task.to_json() for task in graph.tasks]))
    assert Graph(tuple(Task.from_json(task) for task in written)) == graph
    assert [task["name"] for task in written] == names(graph)


def test_several_widths_and_generation(make_config):
    config = make_config(
        "nowhere", "studies.substitution.widths=[5, 1, 5]", "studies.substitution.generate={examples: 2}"
    )
    graph = plan(config, inspect(config))
    windows = ["none", "0", "1", "2", "3", "4", "5", "0-4", "1-5", "0-5"]
    assert [task.name for task in graph.of_kind("substitute")] == [f"substitute m/first {w}" for w in windows]
    assert [task.name for task in graph.of_kind("generate")] == [f"generate m/first {w}" for w in windows]
    for task in graph.of_kind("generate"):
        assert (task.parts, list(task.results)) == ((), ["generation"])


@pytest.mark.parametrize(
    ("overrides", "kinds"),
    [
        (["studies.correlation="], {"substitute", "similarity"}),
        (["studies={substitution: {}}"], {"substitute"}),
        (["studies={similarity: {}}"], {"similarity"}),
    ],
)
def test_a_study_that_is_left_out_has_no_tasks(make_config, overrides, kinds):
    config = make_config("nowhere", *overrides)
    assert {task.kind for task in plan(config, inspect(config)).tasks} == kinds


def test_several_models_and_tuned_checkpoints(world):
    base, tuned = str(world / "base"), str(world / "tuned")
    config = parse_config(
        {
            "name": "n",
            "models": [
                {"name": "a", "base": base, "tuned": {"first": tuned, "second": tuned}},
                {"name": "b", "base": tuned},
            ],
            "datasets": [
                {"name": name, "path": str(world / f"{name}.jsonl"), "format": "gsm8k"} for name in ("first", "second")
            ],
            "studies": {"substitution": {"widths": [6]}, "similarity": {}, "correlation": {}},
            "storage": "nowhere",
        }
    )
    assert names(plan(config, inspect(config))) == [
        *("substitute a/first none", "substitute a/first 0-5", "similarity a/first", "correlate a/first"),
        *("substitute a/second none", "substitute a/second 0-5", "similarity a/second", "correlate a/second"),
        *("similarity b/first", "similarity b/second"),
    ]


def test_results_know_everything_they_are_made_from(small):
    config, facts = small
    graph = plan(config, facts)

    def changed(**studies):
        values = {**config.model_dump(), "studies": {**config.studies.model_dump(), **studies}}
        other = {task.name: task for task in plan(parse_config(values), facts).tasks}
        return {
            task.name
            for task in graph.tasks
            if task.name in other and set(task.results.values()) != set(other[task.name].results.values())
        }

    everything = {"similarity m/first", "similarity m/second", "correlate m/first"}
    assert changed(similarity={"metrics": ["cka_rbf"]}) == everything
    assert changed(similarity={"neighbourhood": 5}) == everything
    assert changed(similarity={"components": 3, "neighbours": 3, "variance": 0.5}) == set(), "CKA takes none of them"
    assert changed(similarity={"pooling": "mean"}) == everything
    assert changed(correlation={"resamples": 21}) == everything
    assert changed(correlation={"resamples": 20, "seed": 1}) == everything
    assert changed(correlation={"resamples": 20, "drop_ends": 1}) == {"correlate m/first"}
    assert changed(substitution={"widths": [2, 3]}) == {"correlate m/first"}
    assert changed(correlation={"resamples": 20}) == set()


@pytest.mark.parametrize(
    ("metric", "parameter"), [("cca_top_k", "components"), ("cknna", "neighbours"), ("pwcca", "variance")]
)
def test_similarity_depends_on_the_parameters_that_its_metrics_take(small, metric, parameter):
    config, facts = small

    def results(**changes):
        similarity = {"metrics": ["cka_linear", metric], "components": 4, "neighbours": 4, "variance": 0.5, **changes}
        values = {**config.model_dump(), "studies": {"similarity": similarity}}
        return [task.results for task in plan(parse_config(values), facts).of_kind("similarity")]

    others = {"components": 5, "neighbours": 5, "variance": 0.6}
    assert results() == results(**{name: value for name, value in others.items() if name != parameter})
    assert results() != results(**{parameter: others[parameter]})


def test_capture_does_not_depend_on_responses(small):
    config, facts = small
    cell = facts.cells["m", "first"]
    shorter = tuple(tuple(dataclasses.replace(e, tokens=e.tokens[:-1]) for e in chunk) for chunk in cell.chunks)
    cells = {**facts.cells, ("m", "first"): dataclasses.replace(cell, chunks=shorter)}
    one, other = (
        {task.name: task.parts for task in plan(config, f).tasks}
        for f in (facts, dataclasses.replace(facts, cells=cells))
    )
    assert one["similarity m/first"] == other["similarity m/first"]
    assert not set(one["substitute m/first 2-3"]) & set(other["substitute m/first 2-3"])
