"""What a plan says a run will cost, against counts made by hand and by brute force."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysweep.config import parse_config
from raysweep.engine import rates
from raysweep.engine.plan import cost, plan
from raysweep.studies.schedule import layer_applications
from raysweep.studies.windows import Window, windows_of_widths


def distinct_states(n_layers, windows):
    """Brute force: a state behind layer ℓ is known by which of the layers 0 … ℓ came from the base."""
    choices = {"".join("B" if w.start <= layer < w.stop else "T" for layer in range(n_layers)) for w in windows}
    return len({choice[: layer + 1] for choice in choices for layer in range(n_layers)})


@pytest.mark.parametrize(
    ("n_layers", "widths", "expected"),
    [
        # trunk 6; branches 6 (start 0, which [0, 6) shares) + 4 × 2; tails 4 + 3 + 2 + 1
        (6, [2], 30),
        (32, [5], 577),
        (32, list(range(1, 33)), 6016),
    ],
)
def test_layer_applications_by_hand(n_layers, widths, expected):
    windows = windows_of_widths(n_layers, widths)
    assert layer_applications(n_layers, windows) == expected == distinct_states(n_layers, windows)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.data())
def test_layer_applications_by_brute_force(n_layers, data):
    spans = st.tuples(st.integers(0, n_layers - 1), st.integers(1, n_layers)).map(sorted)
    chosen = data.draw(st.lists(spans.filter(lambda s: s[0] < s[1]), max_size=8, unique_by=tuple))
    windows = [Window(0, 0), *(Window(*span) for span in chosen)]
    assert layer_applications(n_layers, windows) == distinct_states(n_layers, windows)


def counted(config, facts):
    """Tokens by (data set, chunk): of whole examples as substitution runs them, and of prompts."""
    cells = {name: cell.chunks for (_, name), cell in facts.cells.items()}
    whole = {(n, i): sum(len(e.tokens) for e in chunk) for n, chunks in cells.items() for i, chunk in enumerate(chunks)}
    prompts = {(n, i): sum(e.n_prompt for e in chunk) for n, chunks in cells.items() for i, chunk in enumerate(chunks)}
    return whole, prompts


def test_cost_of_everything(small, world):
    config, facts = small
    graph = plan(config, facts)
    needed = cost(config, facts, graph, set())
    whole, prompts = counted(config, facts)
    swept = sum(tokens for (name, _), tokens in whole.items() if name == "first")
    captured = sum(prompts.values())
    assert needed.layer_applications == 30 + 6 + 6
    assert needed.token_applications == pytest.approx(30 * swept + 6 * captured, rel=0.1)
    # one layer: q and o 16 × 16, k and v 16 × 8, three of 16 × 40, two norms
    per_layer = 2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 40 + 2 * 16
    assert needed.flops == 2 * per_layer * needed.token_applications
    size = {name: (world / name / "model.safetensors").stat().st_size for name in ("base", "tuned")}
    assert needed.bytes_to_read == size["base"] + size["tuned"]
    weights = 4 * 2 * (6 * per_layer + 2 * 320 * 16 + 16)
    states = 4 * 16 * (7 + 2) * max(tokens for (name, _), tokens in whole.items() if name == "first")
    assert needed.memory == pytest.approx(weights + states, rel=0.02)


def test_what_is_done_costs_nothing(small):
    config, facts = small
    graph = plan(config, facts)
    everything = {key for task in graph.tasks for key in task.keys}
    assert vars(cost(config, facts, graph, everything)) == {
        "layer_applications": 0,
        "token_applications": 0,
        "flops": 0.0,
        "bytes_to_read": 0,
        "memory": 0,
        "identical": {},
    }


def test_what_is_half_done_costs_the_rest(small, world):
    config, facts = small
    graph = plan(config, facts)
    captured = {key for task in graph.of_kind("similarity") for key in task.keys}
    kept = {"substitute m/first none", "substitute m/first 1-2"}
    done = captured | {key for task in graph.tasks if task.name not in kept for key in task.parts}
    needed = cost(config, facts, graph, done)
    assert needed.layer_applications == 6 + 2 + 3, "the trunk, the branch, its tail"
    whole, _ = counted(config, facts)
    swept = sum(tokens for (name, _), tokens in whole.items() if name == "first")
    assert needed.token_applications == pytest.approx(11 * swept, rel=0.1)

    only_second = {key for task in graph.tasks if task.dataset == "first" for key in task.keys}
    needed = cost(config, facts, graph, only_second)
    assert needed.layer_applications == 6
    assert needed.bytes_to_read == (world / "base" / "model.safetensors").stat().st_size


def test_time_follows_the_work(small, monkeypatch):
    config, facts = small
    graph = plan(config, facts)
    needed = cost(config, facts, graph, set())
    asked = []
    monkeypatch.setattr(rates, "matmul_rate", lambda *args: asked.append(args) or 1e6)
    assert rates.seconds_for(config, facts, needed) == needed.flops / 1e6
    assert asked == [(1024, 16, "float32", "cpu")]
    larger = parse_config(config.model_dump(), overrides=["execution.batch_tokens=99"])
    rates.seconds_for(larger, facts, needed)
    assert asked[-1][0] == 99
    done = {key for task in graph.tasks for key in task.keys}
    assert rates.seconds_for(config, facts, cost(config, facts, graph, done)) == 0


def test_the_rate_of_this_machine(monkeypatch):
    monkeypatch.setattr(rates, "_SECONDS", 0.01)
    assert 1e6 < rates.matmul_rate(64, 32, "float32", "cpu") < 1e15
