"""Memory and rates are measured where the workers are, and the driver of workers elsewhere uses no GPU itself."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from other_process import look, refuse

from raysweep.engine import events, measuring, ray_executor, ray_worker
from raysweep.engine.driver import drive
from raysweep.engine.events import read_events
from raysweep.engine.executor import LocalBackend
from raysweep.engine.inspection import inspect
from raysweep.engine.measuring import Measured, measure_apart, reported
from raysweep.engine.pending import model_calls
from raysweep.engine.plan import plan
from raysweep.engine.rates import Rates, slowest
from raysweep.engine.ray_executor import RayExecutor, Share
from raysweep.engine.ray_measuring import gpu_types
from raysweep.engine.residency import find_memory, usable_bytes
from raysweep.planned import plan_run
from raysweep.progress import Progress

SLOW, FAST = Rates(1e-6, 2e-6, 1e9, "a layer"), Rates(1e-7, 3e-6, 2e9, "a layer")


class Cluster(LocalBackend):
    """Workers elsewhere on `place`: one for each of `sizes` and `rates`, or none, for a reason; `asked` has what was run."""

    def __init__(self, place="cuda", sizes=(), rates=(), why=""):
        super().__init__()
        self.place, self.sizes, self.rates, self.why, self.asked = place, sizes, rates, why, []

    def device(self, asked):
        return self.place

    def measure(self, function, *arguments):
        self.asked.append(function.__name__)
        if self.why:
            return Measured((), why=self.why)
        values = {"usable_bytes": self.sizes, "time_models": [{"m": each} for each in self.rates]}
        return Measured(tuple(values[function.__name__]), "nodes of the cluster with 2 types of GPU")


@pytest.fixture
def planned_on(make_config, monkeypatch):
    """planned_on(cluster, "key=value", …): the plan of the plain config there."""

    def run(cluster, *overrides):
        monkeypatch.setattr("raysweep.engine.executor.backend_for", lambda execution: cluster)
        return plan_run(make_config("nowhere", *overrides))

    return run


# --- what a plan makes of it --------------------------------------------------------------------------------------


def test_a_plan_has_the_least_memory_and_the_slowest_rates_of_the_workers(planned_on, small):
    model = small[1].models["m"]
    weights = 4 * (model.base.n_parameters + model.tuned["first"].n_parameters)
    cluster = Cluster(sizes=[10**12, weights - 1], rates=[FAST, SLOW])
    planned = planned_on(cluster)
    assert cluster.asked == ["usable_bytes", "time_models"], "each once"
    assert planned.residency["m"] == "stream, its weights (0.01 GB) do not fit in 0.01 GB"
    assert planned.seconds > 0
    assert "timed on nodes of the cluster with 2 types of GPU; " in planned.to_text()
    assert planned.to_json()["timed_on"] == "nodes of the cluster with 2 types of GPU"
    roomy = planned_on(Cluster(sizes=[10**12], rates=[FAST]))
    assert roomy.residency["m"] == "resident, its weights (0.01 GB) fit in 1000.00 GB"
    assert slowest([FAST, SLOW]) == Rates(1e-6, 3e-6, 1e9, "a layer")


def test_a_plan_says_why_no_worker_could_be_measured(planned_on):
    why = "no worker of 1 CPU and 1 GPU was free on the cluster within 60 s"
    planned = planned_on(Cluster(why=why))
    assert planned.residency["m"] == (
        f"resident, the workers' memory is not known, because {why}; set execution.memory to allow streaming"
    )
    assert planned.seconds is None
    assert f"time         not known, because {why}, so nothing could be timed" in planned.to_text()
    nothing = planned_on(Cluster(sizes=[None], rates=[None])).to_text()
    assert "because cuda is not available on nodes of the cluster with 2 types of GPU, so nothing" in nothing


def test_a_plan_suggests_bfloat16_where_it_is_faster(planned_on):
    planned = planned_on(Cluster("cpu", sizes=[10**12], rates=[replace(SLOW, bfloat16_gain=1.84)]))
    assert planned.to_json()["bfloat16"] == {"m": 1.84}
    assert (
        "faster       dtype: bfloat16 would make the layers of m 1.8 times as fast (one layer timed on "
        in planned.to_text()
    )
    little = planned_on(Cluster("cpu", sizes=[10**12], rates=[replace(SLOW, bfloat16_gain=1.19)]))
    assert (little.bfloat16, "faster" in little.to_text()) == ({}, False)


def test_memory_that_is_given_is_not_measured(planned_on, make_config):
    cluster = Cluster(rates=[FAST])
    planned = planned_on(cluster, "execution.memory=12GB")
    assert cluster.asked == ["time_models"]
    assert planned.residency["m"] == "resident, its weights (0.01 GB) fit in 12.00 GB"


def test_loads_cost_something_where_the_driver_sees_no_gpu(make_config):
    from raysweep.engine.estimate import reckon

    cluster, config = Cluster(sizes=[10**12], rates=[FAST]), make_config("nowhere")
    facts = inspect(config, cluster.device, measure=cluster.measure)
    calls = list(model_calls(config, facts, plan(config, facts), set()))
    found = reckon(config, facts, calls, measure=cluster.measure)
    loads = found.cost(calls[-1]).loads.values()
    assert [load.seconds for load in loads] == [load.bytes / FAST.read_bytes for load in loads]
    assert found.rates == {"m": FAST}


# --- a run --------------------------------------------------------------------------------------------------------


def test_a_run_asks_its_backend(make_config, tmp_path):
    cluster = Cluster("cpu", sizes=[10**12], rates=[SLOW])
    done = drive(make_config(tmp_path / "run"), backend=cluster)
    assert not done.failed
    assert cluster.asked == ["usable_bytes", "time_models"]
    (finished,) = (event for event in read_events(done.folder.events) if event["event"] == events.RUN_FINISHED)
    assert set(finished["rates"]) == {"m"}


def test_a_run_that_cannot_measure_says_so_once_and_goes_on(make_config, tmp_path, capsys):
    reasons = []

    def listen(event):
        Progress()(event)
        reasons.extend([event["why"]] if event["event"] == events.WORKERS_UNMEASURED else [])

    done = drive(make_config(tmp_path / "run"), backend=Cluster("cpu", why="all GPUs are in use"), listener=listen)
    assert not done.failed
    assert reasons == ["all GPUs are in use"]
    assert (
        "warning: no worker could be measured, because all GPUs are in use: the plan has no " in capsys.readouterr().err
    )
    assert done.folder.read_plan()[1]["estimate"]["seconds"] is None
    assert reported(Cluster(why="busy").measure, None)(usable_bytes).why == "busy", "with nobody to report it to"


# --- the driver of workers on Ray ---------------------------------------------------------------------------------


def test_a_plan_for_ray_on_this_machine_uses_no_gpu_in_its_process(make_config, monkeypatch):
    """Here torch raises if anything of CUDA is used: only its count of devices is pretended."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    workers, gpus = Cluster(sizes=[10**12], rates=[FAST]), []

    def apart(each, function, *arguments):
        gpus.append(each)
        return workers.measure(function, *arguments)

    monkeypatch.setattr("raysweep.engine.ray_backend.measure_apart", apart, raising=False)
    planned = plan_run(make_config("nowhere", "execution={executor: ray, device: auto, gpus_per_worker: 0.5}"))
    assert planned.device == "cuda"
    assert planned.residency["m"] == "resident, its weights (0.01 GB) fit in 1000.00 GB"
    assert planned.seconds is not None
    assert gpus == [0.5, 0.5]


def test_a_cpu_is_measured_in_this_process(make_config, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("raysweep.engine.measuring.subprocess.run", lambda *args, **how: pytest.fail("a process"))
    planned = plan_run(make_config("nowhere", "execution={executor: ray, device: cpu, workers: 1}"))
    assert planned.seconds > 0
    assert planned.timed_on == "this machine"


def test_workers_that_could_not_be_measured_are_asked_once(monkeypatch):
    from raysweep.config_execution import ExecutionConfig
    from raysweep.engine.ray_backend import RayBackend

    asked = []
    monkeypatch.setattr(
        "raysweep.engine.ray_backend.measure_apart", lambda *args: asked.append(args) or Measured((), why="x")
    )
    backend = RayBackend(ExecutionConfig(executor="ray"))
    backend._device = "cuda"
    assert [backend.measure(usable_bytes, "cuda").why for _ in range(2)] == ["x", "x"]
    assert asked == [(1.0, usable_bytes, "cuda")]


# --- in a process that ends ---------------------------------------------------------------------------------------


def test_a_process_of_its_own_sees_a_workers_gpus_and_ends(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = measure_apart(2.0, look, "and more")
    assert found.why == ""
    ((pid, gpus),) = found.values
    assert (pid != os.getpid(), gpus) == (True, "0,1")
    assert not Path(f"/proc/{pid}").exists()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5,GPU-7")
    assert measure_apart(1.0, look).values[0][1] == "GPU-5"


def test_what_goes_wrong_there_is_a_reason(monkeypatch):
    found = measure_apart(1.0, refuse, "no such device")
    assert found == Measured((), why="measuring failed on this machine (raysweep.errors.InputError: no such device)")
    monkeypatch.setattr(measuring, "SECONDS", 0.01)
    assert measure_apart(1.0, look).why == "a process on this machine gave no result within 0 s"


# --- shares of a GPU ----------------------------------------------------------------------------------------------


@pytest.fixture
def held(monkeypatch):
    """The shares that this process was limited to, on a pretended GPU."""
    shares = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("raysweep.models.memory.hold_to_share", lambda *args: shares.append(args))
    return shares


@pytest.mark.parametrize(
    ("gpus", "expected"), [(0.5, [("cuda", 0.5)]), (0.25, [("cuda", 0.25)]), (1, []), (2, []), (0, [])]
)
def test_a_worker_is_limited_to_its_share(held, monkeypatch, tmp_path, gpus, expected):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr("torch.set_num_threads", lambda n: None)
    ray_worker.RayWorker(tmp_path, 1, gpus, models=False)
    assert held == expected
    assert measuring.run_as_worker(gpus, lambda: len(held)) == 2 * len(expected), "and so is what measures for it"


def test_a_share_of_a_gpu_is_what_a_plan_counts_on(monkeypatch):
    numbers = {"current_device": 0, "mem_get_info": (90, 100), "memory_allocated": 0, "memory_reserved": 0}
    for name, value in {**numbers, "is_available": True, "set_per_process_memory_fraction": None}.items():
        monkeypatch.setattr(f"torch.cuda.{name}", lambda *args, value=value: value)
    monkeypatch.setattr("raysweep.models.memory._shares", {})
    assert measuring.run_as_worker(1.0, usable_bytes, "cuda") == 72, "most of what is free"
    assert measuring.run_as_worker(0.5, usable_bytes, "cuda") == 40, "most of half of all"


def test_the_executor_passes_each_worker_its_share(monkeypatch):
    made = []
    actor = SimpleNamespace(about=SimpleNamespace(remote=lambda: {"cuda": True}))
    kind = SimpleNamespace(remote=lambda *args: made.append(args) or actor)
    monkeypatch.setattr(ray_executor.ray, "remote", lambda cls: SimpleNamespace(options=lambda **how: kind))
    monkeypatch.setattr(ray_executor.ray, "get", lambda ref, timeout: ref)
    RayExecutor("nowhere", 2, Share(1, 0.5), "cuda")
    assert [gpus for _, _, gpus, *_ in made] == [0.5, 0.5]


def test_a_model_that_is_spread_has_the_memory_of_all_gpus(make_config, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    free = {"cuda": 30, "cuda:0": 30, "cuda:1": 12}
    monkeypatch.setattr("raysweep.models.memory.free_bytes", free.__getitem__)
    assert [usable_bytes("cuda"), usable_bytes("cuda:1"), usable_bytes("cuda", "auto")] == [30, 12, 42]
    config = make_config("nowhere", "execution={executor: ray, gpus_per_worker: 2}")
    assert find_memory(config, "cuda", measuring.measure_here).bytes == 42
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert find_memory(config, "cuda", measuring.measure_here).why == "cuda is not available on this machine"


# --- on a cluster -------------------------------------------------------------------------------------------------


def test_one_task_for_each_type_of_gpu_that_holds_a_worker():
    def node(gpus, gpu_type=None, cpus=8):
        return {"CPU": cpus, "GPU": gpus} | ({f"accelerator_type:{gpu_type}": 1.0} if gpu_type else {})

    nodes = [
        node(1, "T4"),
        node(4),
        node(8, "A100"),
        node(2, "L4"),
        node(8, "A100"),
        {"CPU": 64},
        node(8, "H100", cpus=0),
    ]
    assert gpu_types(nodes, Share(1, 1.0)) == ["A100", None, "L4", "T4"]
    assert gpu_types(nodes, Share(1, 2.0)) == ["A100", None, "L4"]
    assert gpu_types([*nodes, node(3, "V100")], Share(1, 0.5)) == ["A100", None, "V100", "L4"], "four at most"


def test_the_cluster_measures_with_a_workers_gpu_in_a_process_that_ends(address):
    import ray

    from raysweep.config_execution import ExecutionConfig
    from raysweep.engine.executor import backend_for
    from raysweep.engine.ray_measuring import measure_on_nodes

    def look_there(what):  # not importable there, so sent whole
        import os

        return os.getpid(), what, os.environ["CUDA_VISIBLE_DEVICES"].split(",")

    backend = backend_for(ExecutionConfig(executor="ray", address=address, gpus_per_worker=2))
    try:
        assert backend.device("auto") == "cuda"
        found = backend.measure(look_there, "seen")
        ((pid, what, gpus),) = found.values
        assert (pid != os.getpid(), what, len(gpus), found.where) == (True, "seen", 2, "a node of the cluster")
        until = time.monotonic() + 20
        while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
            time.sleep(0.1)
        assert not Path(f"/proc/{pid}").exists()

        taken = ray.util.placement_group([{"GPU": 4}])
        ray.get(taken.ready())
        busy = measure_on_nodes(Share(1, 1.0), look_there, "seen", seconds=1.0)
        assert busy.why == "no worker of 1 CPU and 1 GPU was free on the cluster within 1 s"
        ray.util.remove_placement_group(taken)
    finally:
        backend.close()
