"""Runs on paper: against closed forms, and what holds of any of them; the driver's own loop, without a worker."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysweep.engine.calls import Call
from raysweep.engine.dispatch import CallCost, Load
from raysweep.engine.paper import workers_on
from raysweep.engine.simulate import Simulation, Span, simulate
from raysweep.errors import InputError
from raysweep.planned import plan_run
from raysweep.report.simulation import simulation_lines, timeline


@dataclass(frozen=True)
class Needing(Call):
    """A call that needs these checkpoints and takes so many seconds."""

    needs: tuple[str, ...] = ()
    seconds: float = 1.0

    @property
    def affinity(self):
        return self.needs


def calls(models, sets, chunks, seconds=1.0):
    """Sweeps of pairs: base `m`, tuned `m-d`."""
    return [
        Needing(f"sweep {m} {d} {c}", str(m), str(d), (), (f"{m}", f"{m}-{d}"), seconds)
        for m in range(models)
        for d in range(sets)
        for c in range(chunks)
    ]


def costs(load):
    return lambda call: CallCost(call.seconds, 0, {name: Load(100, load) for name in call.needs})


# --- closed forms -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "workers"), [(1, 1), (7, 1), (8, 4), (9, 4), (1000, 7), (3, 5)])
def test_equal_calls_take_as_many_rounds_as_there_must_be(n, workers):
    found = simulate(calls(1, 1, n, seconds=2.0), costs(0.0), workers=workers)
    rounds = -(-n // workers)
    assert found.makespan == pytest.approx(2.0 * rounds)
    assert found.idle_share == pytest.approx(1 - n / (rounds * workers))
    assert found.calls == n


def test_each_worker_of_one_pair_loads_it_and_nodes_read_side_by_side():
    both = calls(1, 1, 40)
    one = simulate(both, costs(0.5), workers=4)
    # Each reads two checkpoints after those before it: the last is ready after 4 s, and 4 t − (1 + 2 + 3 + 4) = 40.
    assert one.loads == 8
    assert one.bytes_read == 800
    assert [spans[0].loading for spans in one.timelines] == [1.0, 2.0, 3.0, 4.0]
    assert one.makespan == pytest.approx(13.0)
    two = simulate(both, costs(0.5), workers=4, nodes=2)
    assert [spans[0].loading for spans in two.timelines] == [1.0, 2.0, 1.0, 2.0]


def test_as_many_pairs_as_workers_are_loaded_once_each():
    found = simulate(calls(4, 5, 3), costs(0.1), workers=4)
    assert (found.loads, found.least_loads) == (24, 24)
    assert found.makespan == pytest.approx(15 + 4 * 0.1 * 2 + 4 * 0.1, abs=1.0)


# --- what holds of any --------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(1, 6)), min_size=1, max_size=12),
    seconds=st.lists(st.floats(0.01, 5.0), min_size=1, max_size=8),
    workers=st.integers(1, 9),
    nodes=st.integers(1, 3),
    load=st.sampled_from([0.0, 0.01, 1.0, 30.0]),
    resident=st.integers(2, 4),
)
def test_every_call_is_made_once_and_nobody_waits_while_its_group_does(sizes, seconds, workers, nodes, load, resident):
    made = [
        Needing(f"{i} {c}", f"{m}", f"{d}", (), (f"{m}", f"{m}-{d}"), seconds[(i + c) % len(seconds)])
        for i, (m, d, n) in enumerate(sizes)
        for c in range(n)
    ]
    found = simulate(made, costs(load), workers=workers, nodes=min(nodes, workers), resident=resident)
    done = Counter(span.call for spans in found.timelines for span in spans)
    assert done == Counter(call.name for call in made)
    group = {call.name: call.needs for call in made}
    # A call is with its worker at the latest when the one before it there begins: two are in flight.
    handed = {}
    for spans in found.timelines:
        assert all(after.begin >= before.end - 1e-9 for before, after in pairwise(spans))
        handed |= {span.call: spans[max(0, i - 1)].begin for i, span in enumerate(spans)}
    for last in (spans[-1] for spans in found.timelines if spans):
        assert all(handed[name] <= last.end + 1e-9 for name in done if group[name] == group[last.call])
    ends = {span.call: span.end for spans in found.timelines for span in spans}
    assert found.makespan == pytest.approx(max(ends.values()))
    work = sum(call.seconds for call in made)
    assert found.makespan >= work / workers - 1e-9
    assert found.makespan <= work + load * found.loads + 1e-9


@settings(max_examples=60, deadline=None)
@given(
    models=st.integers(1, 8),
    sets=st.integers(1, 5),
    chunks=st.integers(1, 12),
    workers=st.integers(1, 8),
    load=st.sampled_from([0.2, 5.0]),
)
def test_loads_are_bounded(models, sets, chunks, workers, load):
    """Each checkpoint once a worker, but for a base that one comes back to with the last call of all; beyond the least, what
    sharing bases and helping take.

    All of these runs were looked at: 14 of 7,680 load one base again, for help that takes less than is left.
    Loads that cost nothing are none to be saved.
    """
    found = simulate(calls(models, sets, chunks), costs(load), workers=workers)
    names = {
        f"sweep {m} {d} {c}": (f"{m}", f"{m}-{d}") for m in range(models) for d in range(sets) for c in range(chunks)
    }
    a_worker = [{name for span in spans for name in names[span.call]} for spans in found.timelines]
    assert found.loads <= sum(map(len, a_worker)) + 1, "loaded again where it was once: a base, for helping"
    assert found.loads <= found.least_loads + 2 * models * workers


def test_of_two_that_need_help_alike_it_helps_where_its_base_is():
    """Else the last worker would load base 3 again, which it had made room with."""
    found = simulate(calls(4, 2, 5), costs(0.2), workers=5)
    assert found.loads == 19


def test_six_models_by_five_sets_on_four_workers():
    """The issue's row, on paper; test_ray_affinity.py has it on Ray."""
    for load in (0.05, 0.5):
        found = simulate(calls(6, 5, 4), costs(load), workers=4)
        assert found.loads <= 1.25 * found.least_loads
        assert found.idle_share < 0.1


def test_it_is_the_same_each_time():
    once, again = (simulate(calls(3, 2, 5), costs(0.3), workers=4) for _ in range(2))
    assert once.timelines == again.timelines


# --- a config's ---------------------------------------------------------------------------------------------------


RATES = "layer=1e-4,read=1e6"


def test_a_plan_on_gpus_is_simulated_and_the_last_sweeps_are_cut(make_config, tmp_path):
    config = make_config(tmp_path / "run", "execution.chunk=16", "studies.similarity=null", "studies.correlation=null")
    whole = plan_run(config, gpus=1, rates="layer=1e-2,read=1e9").simulation
    assert (whole.workers, whole.calls, whole.cut, whole.loads, whole.idle_share) == (1, 1, 0, 2, 0.0)
    many = plan_run(config, gpus=3, rates="layer=1e-2,read=1e9").simulation
    assert (many.cut, many.calls, many.workers) == (1, 3, 3)
    assert whole.makespan / 3 < many.makespan < whole.makespan / 1.5, "each piece has the trunk again"
    assert many.idle_share < 0.25
    assert {span.call for spans in many.timelines for span in spans} == {
        f"substitute m/first 0-5 chunk 0 piece {piece} of 3" for piece in (1, 2, 3)
    }


def test_what_a_simulation_tells(make_config, tmp_path):
    planned = plan_run(make_config(tmp_path / "run"), gpus=9, rates=RATES)
    told = planned.to_text()
    assert "simulated    9 workers on 2 nodes: " in told
    assert " of 2 checkpoints, " in told
    assert "… 3 more workers between these" in told
    plain = json.loads(json.dumps(planned.to_json()))["simulation"]
    assert (plain["workers"], plain["nodes"], len(plain["timelines"])) == (9, 2, 9)
    assert sum(len(spans) for spans in plain["timelines"]) == plain["calls"]
    assert plan_run(make_config(tmp_path / "run")).to_json()["simulation"] is None


def test_a_timeline_has_a_character_a_moment():
    spans = [Span("a", 0.0, 4.0, 1.0), Span("b", 6.0, 8.0, 0.0)]
    assert timeline(spans, 8.0, columns=8) == "▒███··██"
    lines = simulation_lines(Simulation(8.0, 0, 1, 1, 2, 0, 1, [spans]))
    assert lines[0] == "simulated    1 worker on 1 node: 8.00 s, workers idle 25.0% of the time"


def test_workers_on_so_many_gpus():
    assert workers_on(8, 1, 1.0) == 8
    assert workers_on(8, 2, 0.5) == 16
    assert workers_on(7, 2, 2.0) == 3, "four on one node, three on the other"
    with pytest.raises(InputError, match="--nodes 3: 2 GPUs cannot be spread"):
        workers_on(2, 3, 1.0)
    with pytest.raises(InputError, match="gpus_per_worker is 4, and a node has 2 GPUs at most"):
        workers_on(4, 2, 4.0)


@pytest.mark.parametrize("rates", ["", "fast", "layer=1", "layer=0,read=1", "layer=1,read=inf", "layer=1,read=2,x=3"])
def test_rates_that_are_none(make_config, tmp_path, rates):
    with pytest.raises(InputError, match="is not a run folder; give one, or layer=SECONDS,read=BYTES"):
        plan_run(make_config(tmp_path / "run"), gpus=2, rates=rates)


def test_rates_of_a_run(make_config, tmp_path, finished):
    found = plan_run(make_config(tmp_path / "run"), gpus=1, rates=str(finished.folder.root))
    assert found.simulation.makespan > 0
    with pytest.raises(InputError, match="has no timings for model 'other', only for m"):
        plan_run(make_config(tmp_path / "run", "models.0.name=other"), gpus=2, rates=str(finished.folder.root))


def test_a_device_that_cannot_be_timed_here_needs_rates(make_config, tmp_path):
    config = make_config(tmp_path / "run", "execution.device=cuda")
    with pytest.raises(InputError, match="cuda cannot be timed on this machine; give --rates"):
        plan_run(config, gpus=2)
    assert plan_run(config, gpus=2, rates=RATES).simulation.workers == 2


def test_nodes_without_gpus_are_refused(make_config, tmp_path):
    with pytest.raises(InputError, match="--nodes and --rates are for a simulation; give --gpus too"):
        plan_run(make_config(tmp_path / "run"), nodes=2)


def test_a_plan_for_ray_counts_the_workers_there_is_room_for(make_config, tmp_path, monkeypatch):
    """Of eight calls at most so many are done at once; nothing is started to know that."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 5)
    ray = "execution={executor: ray, device: cpu, chunk: 4}"
    assert plan_run(make_config(tmp_path / "run", ray)).workers == 5
    assert plan_run(make_config(tmp_path / "run", ray, "execution.cpus_per_worker=2")).workers == 2
    assert plan_run(make_config(tmp_path / "run", ray, "execution.workers=3")).workers == 3
    assert plan_run(make_config(tmp_path / "run")).workers == 1
