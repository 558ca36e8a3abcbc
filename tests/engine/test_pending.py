"""What is pending: which calls a graph still needs, what each carries, and when a task's tables can be made."""

from __future__ import annotations

import pickle

import pytest

from raysweep.config import parse_config
from raysweep.engine.calls import CaptureCall, GenerateCall, SubstituteCall
from raysweep.engine.inspection import inspect
from raysweep.engine.loading import batch_budget
from raysweep.engine.pending import model_calls, window_names
from raysweep.engine.plan import plan
from raysweep.engine.result_calls import result_call
from raysweep.numerics.measures.registry import Parameters
from raysweep.studies.windows import Window


@pytest.fixture(scope="module")
def graph(small):
    return plan(*small)


def calls_for(config, facts, graph, done=()):
    return list(model_calls(config, facts, graph, set(done)))


def keys_of(call):
    return (*getattr(call, "keys", ()), *(part.key for part in getattr(call, "captures", ())))


def with_overrides(config, *overrides):
    return parse_config(config.model_dump(), overrides=overrides)


def test_fused_there_is_one_call_a_chunk(small, graph):
    calls = calls_for(*small, graph)
    assert [call.name for call in calls] == [
        *(f"capture m/first chunk {index}" for index in range(3)),
        *(f"capture m/second chunk {index}" for index in range(2)),
        *(f"substitute m/first 0-5 chunk {index}" for index in range(3)),
    ]
    substitutions = list(graph.of_kind("substitute"))
    for index, call in enumerate(calls[5:]):
        assert isinstance(call, SubstituteCall)
        assert call.windows == tuple(task.window for task in substitutions)
        assert call.keys == tuple(task.parts[index] for task in substitutions)
        assert call.tasks == tuple(task.name for task in substitutions)
        assert [e.id for e in call.examples] == list(range(4 * index, min(4 * index + 4, 10)))
        assert (call.base.folder.name, call.tuned.folder.name) == ("base", "tuned")


def test_apart_there_is_one_call_a_window_and_chunk(small, graph):
    config, facts = small
    calls = calls_for(with_overrides(config, "execution.fuse=false"), facts, graph)
    apart = [call for call in calls if isinstance(call, SubstituteCall)]
    assert [call.name for call in apart[:8]] == [
        *(f"substitute m/first {w} chunk 0" for w in ("none", "0-1", "1-2", "2-3", "3-4", "4-5", "0-5")),
        "substitute m/first none chunk 1",
    ]
    assert len(apart) == 7 * 3
    assert all(len(call.windows) == len(call.keys) == len(call.tasks) == 1 for call in apart)
    fused = [call for call in calls_for(config, facts, graph) if isinstance(call, SubstituteCall)]
    assert {key for call in apart for key in call.keys} == {key for call in fused for key in call.keys}


def test_only_missing_parts_are_asked_for(small, graph):
    everything = {key for task in graph.tasks for key in task.keys}
    assert calls_for(*small, graph, everything) == []
    by_name = {task.name: task for task in graph.tasks}
    lacking = {
        by_name["substitute m/first 1-2"].parts[0],
        by_name["substitute m/first 3-4"].parts[0],
        by_name["substitute m/first none"].parts[2],
        by_name["similarity m/second"].parts[1],
    }
    calls = calls_for(*small, graph, everything - lacking)
    assert [call.name for call in calls] == [
        "capture m/second chunk 1",
        "substitute m/first 1-4 chunk 0",
        "substitute m/first none chunk 2",
    ]
    assert calls[1].windows == (Window(1, 3), Window(3, 5))
    assert {key for call in calls for key in keys_of(call)} == lacking


def test_results_that_are_missing_need_no_model(small, graph):
    parts = {key for task in graph.tasks for key in task.parts}
    assert calls_for(*small, graph, parts) == []


def test_a_call_carries_how_to_load_and_no_model(small, graph):
    config, facts = small
    for asked, budget in (("auto", 1024), ("77", 77)):
        calls = calls_for(with_overrides(config, f"execution.batch_tokens={asked}"), facts, graph)
        assert {(c.loading.dtype, c.loading.device, c.loading.batch_tokens) for c in calls} == {
            ("float32", "cpu", budget)
        }
    for call in calls:
        assert len(pickle.dumps(call)) < 100_000, "a call is handed to other processes"


def test_generation(make_config):
    config = make_config("nowhere", "studies.substitution.generate={examples: 2, tokens: 5}")
    facts = inspect(config)
    graph = plan(config, facts)
    calls = calls_for(config, facts, graph)
    (call,) = (call for call in calls if isinstance(call, GenerateCall))
    assert call.name == "generate m/first 0-5"
    assert ([e.id for e in call.examples], call.new_tokens) == ([0, 1], 5)
    tasks = list(graph.of_kind("generate"))
    assert call.keys == tuple(task.results["generation"] for task in tasks)
    done = {key for call in calls if call.name.startswith("generate") for key in call.keys[:-1]}
    (rest,) = (call for call in calls_for(config, facts, graph, done) if isinstance(call, GenerateCall))
    assert rest.windows == (tasks[-1].window,)


def test_captured_parts_have_names_of_their_own(small, graph):
    captures = [call for call in calls_for(*small, graph) if isinstance(call, CaptureCall)]
    assert len({(call.dataset, part.name) for call in captures for part in call.captures}) == len(captures) == 5
    assert [call.captures[0].name[:6] for call in captures[:3]] == ["00000-", "00001-", "00002-"]
    assert {call.pooling for call in captures} == {"last"}


def test_tasks_that_are_equal_in_all_but_the_name_are_computed_once(make_config):
    config = make_config("nowhere", "studies={substitution: {widths: [3]}}")
    twins = [{**config.models[0].model_dump(), "name": name} for name in ("m", "n")]
    both = parse_config({**config.model_dump(), "models": twins})
    facts = inspect(both)
    graph = plan(both, facts)
    assert [t.parts for t in graph.cell("substitute", "m", "first")] == [
        t.parts for t in graph.cell("substitute", "n", "first")
    ]
    assert [call.name for call in calls_for(both, facts, graph)] == [
        f"substitute m/first 0-5 chunk {i}" for i in range(3)
    ]


# --- results ------------------------------------------------------------------------------------------------------


def test_result_calls_carry_the_studies_settings(make_config):
    config = make_config(
        "nowhere",
        "studies.similarity={metrics: [cka_rbf, cka_linear], pooling: mean, neighbourhood: 5, neighbours: 7}",
        "studies.correlation={resamples: 9, seed: 4, drop_ends: 1}",
    )
    facts = inspect(config)
    graph = plan(config, facts)
    similarity, correlation = graph.cell("similarity", "m", "first")[0], next(graph.of_kind("correlate"))
    call = result_call(config, facts, graph, similarity)
    assert (call.name, call.tasks) == ("similarity m/first", ("similarity m/first",))
    assert (call.parts, call.results) == (similarity.parts, similarity.results)
    assert (call.metrics, call.pooling, call.neighbourhood) == (("cka_rbf", "cka_linear"), "mean", 5)
    assert (call.resamples, call.seed, call.parameters) == (9, 4, Parameters(neighbours=7))
    call = result_call(config, facts, graph, correlation)
    assert (call.key, call.parts) == (correlation.results["correlation"], similarity.parts)
    assert call.losses == {task.window: task.parts for task in graph.of_kind("substitute")}
    assert (call.metrics, call.pooling, call.neighbourhood) == (("cka_rbf", "cka_linear"), "mean", 5)
    assert (call.resamples, call.seed, call.drop_ends, call.parameters) == (9, 4, 1, Parameters(neighbours=7))


# --- small decisions ----------------------------------------------------------------------------------------------


def test_batch_budget():
    assert [batch_budget("auto", device) for device in ("cpu", "cuda", "cuda:1", "mps")] == [1024, 8192, 8192, 8192]
    assert [batch_budget(256, device) for device in ("cpu", "cuda")] == [256, 256]


def test_fused_windows_have_a_short_name():
    assert window_names([Window(0, 0), Window(3, 5), Window(1, 2)]) == "1-4"
    assert window_names([Window(0, 0)]) == "none"
