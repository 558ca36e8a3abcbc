"""A run with trainings on paper, against the ends that can be told by hand."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from raysweep.engine.calls import CaptureCall, Loading, TrainCall
from raysweep.engine.dispatch import CallCost, Load
from raysweep.engine.graph import Graph, Task
from raysweep.engine.phases import fitted, in_phases
from raysweep.engine.simulate import simulate
from raysweep.studies.training import Recipe

LOADING = Loading("float32", "cuda", None, 8192)
BASE = SimpleNamespace(fingerprint="base", n_layers=2)
SECONDS = {"capture": 10.0, "finetune": 100.0, "sweep": 30.0}


def costs(call):
    loads = {name: Load(50, 5.0) for name in call.affinity}
    return CallCost(SECONDS[call.name.split()[0]], 0, loads)


def run_on(workers):
    return lambda calls: simulate(calls, costs, workers=workers, may_cut=lambda call: False)


def make_capture(name, task, base=BASE):
    return CaptureCall(name, "m", "d", (task,), base, LOADING, (), (), "last")


def make_training(dataset, processes):
    return TrainCall(
        f"finetune m/{dataset}", "m", dataset, (f"finetune m/{dataset}",), BASE, LOADING, (), (), "finetune", "all", Recipe(), None,
        f"key {dataset}", {}, processes=processes,
    )  # fmt: skip


def make_run(n, processes):
    graph = Graph(
        tuple(
            task
            for i in range(n)
            for task in (
                Task("similarity", "m", f"{i}"),
                Task("finetune", "m", f"{i}"),
                Task("substitute", "m", f"{i}", needs=(f"finetune m/{i}",)),
            )
        )
    )
    calls = [make_training(f"{i}", processes) for i in range(n)]
    calls += [make_capture(f"capture {i}", f"similarity m/{i}") for i in range(n)]
    calls += [
        make_capture(f"sweep {i}", f"substitute m/{i}", SimpleNamespace(fingerprint=f"tuned {i}")) for i in range(n)
    ]
    return calls, graph


def test_trainings_of_several_processes_come_between_what_they_need_and_what_needs_them():
    calls, graph = make_run(4, processes=4)
    found = in_phases(calls, graph, costs, run_on(8))
    # captures on eight workers: a node's store loads one after the other, so the fourth begins after 20 s
    captures = run_on(8)(calls[4:8]).makespan
    sweeps = run_on(8)(calls[8:]).makespan
    trained = 2 * (5.0 + 100.0)  # two at a time, four processes each
    assert found.makespan == pytest.approx(captures + trained + sweeps)
    assert found.calls == 12
    begins = {span.call: span.begin for spans in found.timelines for span in spans}
    assert min(begins[f"finetune m/{i}"] for i in range(4)) == pytest.approx(captures)
    assert min(begins[f"sweep {i}"] for i in range(4)) == pytest.approx(captures + trained)
    holding = [sum(span.call == "finetune m/0" for span in spans) for spans in found.timelines]
    assert sum(holding) == 4


def test_trainings_of_one_process_are_workers_calls():
    calls, graph = make_run(2, processes=1)
    found = in_phases(calls, graph, costs, run_on(2))
    assert found.calls == 6
    first = run_on(2)([call for call in calls if not call.name.startswith("sweep")]).makespan
    assert found.makespan == pytest.approx(first + run_on(2)(calls[4:]).makespan)


def test_a_run_without_trainings_is_simulated_as_it_was():
    calls, graph = make_run(3, processes=4)
    captures = calls[3:6]
    assert in_phases(captures, graph, costs, run_on(2)) == run_on(2)(captures)


def test_no_more_processes_than_gpus():
    calls, _ = make_run(1, processes=8)
    assert [call.processes for call in fitted(calls, 2) if isinstance(call, TrainCall)] == [2]
    assert fitted(calls, 8) == calls
    assert fitted([replace(calls[0], processes=1)], 4)[0].processes == 1
