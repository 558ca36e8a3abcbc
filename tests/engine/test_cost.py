"""What a plan says a run will cost, against counts made by hand and by brute force."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysweep.engine import rates
from raysweep.engine.cost import cost
from raysweep.engine.inspection import inspect
from raysweep.engine.plan import plan
from raysweep.errors import InputError
from raysweep.models.one_layer import build_one_layer
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


def test_cost_of_everything(small):
    config, facts = small
    assert cost(config, facts, plan(config, facts), set()).layer_applications == 30 + 6 + 6


def test_what_is_done_costs_nothing(small):
    config, facts = small
    graph = plan(config, facts)
    everything = {key for task in graph.tasks for key in task.keys}
    assert vars(cost(config, facts, graph, everything)) == {"layer_applications": 0, "identical": {}}


def test_what_is_half_done_costs_the_rest(small):
    config, facts = small
    graph = plan(config, facts)
    captured = {key for task in graph.of_kind("similarity") for key in task.keys}
    kept = {"substitute m/first none", "substitute m/first 1-2"}
    done = captured | {key for task in graph.tasks if task.name not in kept for key in task.parts}
    assert cost(config, facts, graph, done).layer_applications == 6 + 2 + 3, "the trunk, the branch, its tail"
    only_second = {key for task in graph.tasks if task.dataset == "first" for key in task.keys}
    assert cost(config, facts, graph, only_second).layer_applications == 6


def test_an_estimate_costs_three_a_layer_and_point(make_config):
    """Points at 0, 1/9, 4/9 and 1: two layers of six need the first three, all six the last one, too."""
    gradient = "studies.substitution={widths: [2], estimator: gradient, sample: 0, points: %d}"
    for points, ways in ((1, 1), (4, 4)):
        config = make_config("nowhere", gradient % points)
        facts = inspect(config)
        sample, captures = 6 + 6, 6 + 6  # the tuned model, all layers put back
        assert cost(config, facts, plan(config, facts), set()).layer_applications == 3 * 6 * ways + sample + captures


def test_the_rate_of_this_machine(monkeypatch):
    monkeypatch.setattr(rates, "_SECONDS", 0.01)
    assert 1e6 < rates.matmul_rate(64, 32, "float32", "cpu") < 1e15


def test_a_layer_alone_is_timed_as_the_model_has_it(small, monkeypatch):
    _, facts = small
    monkeypatch.setattr(rates, "_SECONDS", 0.01)
    base = facts.models["m"].base
    adapter = build_one_layer(base, "float32", "cpu")
    (block,) = adapter.blocks
    stored = {name.split("layers.0.")[1]: shape for name, shape in base.shapes.items() if "layers.0." in name}
    assert {name: tuple(weight.shape) for name, weight in block.named_parameters()} == stored
    assert all(0 < weight.std() < 0.1 for weight in block.parameters())
    assert 1e-9 < rates.layer_rate(base, "float32", "cpu", 64, 16) < 1e-2


def test_a_layer_that_stands_for_no_other_is_not_timed(small, monkeypatch):
    _, facts = small
    model = facts.models["m"]
    other = {name: (*shape, 1) if "layers.3." in name else shape for name, shape in model.base.shapes.items()}
    with pytest.raises(InputError, match=r"have different shapes, so one of them cannot represent all$"):
        build_one_layer(replace(model.base, shapes=other), "float32", "cpu")
    with pytest.raises(InputError, match=r"has 10880 bytes, which is too large to create one for timing$"):
        build_one_layer(model.base, "float32", "cpu", 1000)
    monkeypatch.setattr(rates, "_SECONDS", 0.01)
    monkeypatch.setattr(rates, "_KNOWN", {})
    monkeypatch.setattr(rates, "matmul_rate", lambda *args: 1e6)
    found = rates.measured_rates(replace(model, base=replace(model.base, shapes=other, digests={})), "cpu", 64, 16)
    per_layer = 2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 40 + 2 * 16
    assert found.layer_seconds == pytest.approx(2 * per_layer / 1e6)
    assert found.layer == "a matrix product of its width"


def test_reading_is_timed_on_the_checkpoint_itself(small, monkeypatch):
    _, facts = small
    clock = iter([0.0, 0.0, 2.0])
    monkeypatch.setattr(rates.time, "perf_counter", lambda: next(clock))
    header = facts.models["m"].base.bytes - 4 * facts.models["m"].base.n_parameters
    assert 8 < header < 10_000
    assert rates.read_rate(facts.models["m"].base, "float32") == 4 * facts.models["m"].base.n_parameters / 2.0


def test_nothing_is_timed_for_another_machines_device(small, monkeypatch):
    _, facts = small
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert rates.measured_rates(facts.models["m"], "cuda", 64, 16) is None
