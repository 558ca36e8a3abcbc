"""Runs on a real Ray: the same tables as in one process, each worker with its own GPU, and what is refused.

The cluster has four pretended GPUs; nothing is computed on one.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
from pathlib import Path

import pytest
from ray_cluster import free_port

from raysweep.engine import events
from raysweep.engine.driver import drive
from raysweep.engine.ray_worker import RayWorker
from raysweep.errors import InputError, RunError


def is_joined():
    import ray  # not before the command line would: it settles on a token as it is imported

    return ray.is_initialized()


# --- the same tables ----------------------------------------------------------------------------------------------


def check_workers(done, events_of, workers):
    """They were so many processes of their own, without GPUs, and the cluster is left."""
    ready = events_of(done, events.WORKERS_READY)[-1]
    assert (ready["executor"], ready["workers"], ready["each"]) == ("ray", workers, "1 CPU")
    assert len({worker["pid"] for worker in ready["seen"]} | {os.getpid()}) == workers + 1
    assert all(worker["visible"] == "" for worker in ready["seen"]), "no worker without GPUs sees one"
    assert all(worker["threads"] == 1 for worker in ready["seen"])
    assert not is_joined(), "it leaves the cluster"


def test_on_three_workers_the_tables_are_the_same_and_once_finished_none_is_started(
    on_ray, tmp_path, finished, tables_of, same_tables, events_of
):
    done = drive(on_ray(tmp_path, "execution.workers=3"))
    assert done.failed == {}
    same_tables(tables_of(done), tables_of(finished))
    check_workers(done, events_of, 3)
    again = drive(on_ray(tmp_path, "execution.workers=3"))
    assert again.n_calls == 0
    assert len(events_of(again, events.WORKERS_READY)) == 1


def test_a_run_begun_here_goes_on_there_on_one_worker(
    on_ray, make_config, tmp_path, finished, tables_of, same_tables, events_of
):
    fewer = drive(make_config(tmp_path, "datasets.0.limit=4", "datasets.1.limit=4"))
    assert fewer.failed == {}
    done = drive(on_ray(tmp_path, "execution.workers=1"))
    assert done.n_calls == 2 + 1 + 2 + 3
    same_tables(tables_of(done), tables_of(finished))
    check_workers(done, events_of, 1)
    assert drive(make_config(tmp_path)).n_calls == 0


def test_a_worker_that_hangs_is_given_up_and_replaced(on_ray, tmp_path, finished, tables_of, same_tables, events_of):
    """The worker is stopped before its first call. It counts as dead after the deadline, and its process is gone."""
    stopped = []

    def listen(event):
        if event["event"] == events.WORKERS_READY:
            (worker,) = event["seen"]
            os.kill(worker["pid"], signal.SIGSTOP)
            stopped.append(worker)

    done = drive(on_ray(tmp_path, "execution.workers=1", "execution.call_deadline=3"), listener=listen)
    assert done.failed == {}
    ((worker,), (given_up, *_)) = stopped, events_of(done, events.WORKER_GIVEN_UP)
    assert (given_up["pid"], given_up["host"]) == (worker["pid"], worker["host"])
    assert given_up["seconds"] >= given_up["deadline"] >= 3
    assert re.fullmatch(
        rf"the worker \(process {worker['pid']} on {worker['host']}\) ran this for \d+ s and was stopped: "
        r"\d+ s were expected, and execution.call_deadline allows \d+ s",
        given_up["error"],
    )
    first, second = (event["call"] for event in events_of(done, events.CALL_STARTED)[:2])
    assert given_up["call"] == first
    (retried, *_) = events_of(done, events.CALL_RETRIED)
    assert (retried["call"], retried["failure"], retried["attempt"]) == (first, "lost", 1)
    assert events_of(done, events.CALL_RETURNED)[0]["call"] == second, "the call behind it was not begun"
    assert not Path(f"/proc/{worker['pid']}").exists()
    same_tables(tables_of(done), tables_of(finished))


def test_a_worker_whose_cuda_context_is_dead_is_replaced(on_ray, tmp_path, events_of, monkeypatch):
    """The first process fails its first call as CUDA would; that call and the one behind it run in the next process."""
    marker = tmp_path / "failed"

    class Dying(RayWorker):
        def run(self, call):
            def broken(call):
                raise RuntimeError("CUDA error: unspecified launch failure")

            if not marker.exists():
                marker.touch()
                self._worker._within_memory = broken
            return super().run(call)

    monkeypatch.setattr("raysweep.engine.ray_executor.RayWorker", Dying)
    done = drive(on_ray(tmp_path / "run", "execution.workers=1", "studies={similarity: {}}"))
    assert done.failed == {}
    ((ready,), (retried,)) = events_of(done, events.WORKERS_READY), events_of(done, events.CALL_RETRIED)
    assert (retried["failure"], retried["attempt"]) == ("lost", 1)
    assert retried["error"] == "RuntimeError: CUDA error: unspecified launch failure"
    assert "in broken" in retried["traceback"]
    first, second = (event["call"] for event in events_of(done, events.CALL_STARTED)[:2])
    assert retried["call"] == first
    assert [event["call"] for event in events_of(done, events.CALL_RETURNED)] == [second]
    (worker,) = ready["seen"]
    assert worker["pid"] not in {event["measured"]["pid"] for event in events_of(done, events.CALL_DONE)}
    assert not Path(f"/proc/{worker['pid']}").exists()


def test_a_signal_while_ray_starts_leaves_nothing_of_it(monkeypatch):
    """Ray's own handler for SIGTERM, which it installs first of all, raises SystemExit."""
    import ray

    from raysweep.config_execution import ExecutionConfig
    from raysweep.engine.ray_backend import RayBackend

    did = []

    def init(**how):
        did.append("init")
        raise SystemExit(15)

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: did.append("shutdown"))
    with pytest.raises(SystemExit):
        RayBackend(ExecutionConfig(executor="ray")).open("nowhere", 1)
    assert did == ["init", "shutdown"]


# --- trainings ----------------------------------------------------------------------------------------------------

TRAINER = {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "report_to": "none"}


@pytest.mark.soak
def test_trainings_on_two_workers_give_the_same_tables(
    training_config, address, tmp_path, tables_of, same_tables, events_of
):
    """And one of two processes, which has the devices to itself once the others are done."""
    adaptation = {"similarity": {}, "adaptation": {"trainer": TRAINER, "seeds": [0], "top": 2}}
    here = drive(training_config(tmp_path / "here", {**adaptation, "finetune": {"trainer": TRAINER}}))
    asked = {"processes": 2, "strategy": "ddp", "trainer": {**TRAINER, "per_device_train_batch_size": 1}}
    execution = f"execution={{executor: ray, address: '{address}', chunk: 4, device: cpu, workers: 2}}"
    there = drive(training_config(tmp_path / "there", {**adaptation, "finetune": asked}, execution))
    assert (here.failed, there.failed) == ({}, {})
    ours, theirs = tables_of(there), tables_of(here)
    spread, alone = (tables.pop("training").query("study == 'finetune'") for tables in (ours, theirs))
    same_tables(ours, theirs)
    assert not list((tmp_path / "there" / "training").iterdir())

    last, other = (rows.query("split == 'test' and step == 2")["loss"].item() for rows in (spread, alone))
    assert last == pytest.approx(other, abs=1e-3)
    of_both = [
        event["measured"]["layer_applications"]
        for done in (there, here)
        for event in events_of(done, "call_done")
        if event["call"] == "finetune m/first"
    ]
    assert of_both[0] > of_both[1], "batches are half as large, and there are twice as many"


# --- GPUs ---------------------------------------------------------------------------------------------------------


def test_auto_takes_a_cluster_with_gpus_for_cuda_and_says_where_torch_finds_none(on_ray, tmp_path):
    with pytest.raises(RunError) as caught:
        drive(on_ray(tmp_path, "execution.device=auto", "execution.workers=1", "execution.memory=1GB"))
    assert "was given GPU" in str(caught.value)
    assert str(caught.value).endswith(
        "torch finds no CUDA device there; install a CUDA build of torch on that node, or set execution.device to cpu"
    )


# --- refused ------------------------------------------------------------------------------------------------------


def refusal(config, kind=InputError):
    with pytest.raises(kind) as caught:
        drive(config)
    assert not is_joined()
    return str(caught.value)


def test_more_workers_than_slots(on_ray, tmp_path, address):
    assert refusal(on_ray(tmp_path / "run", "execution.workers=5")) == (
        f"execution.workers asks for 5 workers of 1 CPU each, and there is room for 4: the cluster at {address} has 4 CPUs and "
        "4 GPUs on 1 node; use fewer, or smaller ones (execution.cpus_per_worker, gpus_per_worker)"
    )
    assert not (tmp_path / "run").exists()


def test_a_worker_that_fits_nowhere(on_ray, tmp_path, address):
    assert refusal(on_ray(tmp_path / "run", "execution.gpus_per_worker=8")) == (
        f"no worker of 1 CPU and 8 GPU fits: the cluster at {address} has 4 CPUs and 4 GPUs on 1 node; use smaller "
        "workers (execution.cpus_per_worker, gpus_per_worker), or set execution.device to cpu"
    )


def test_an_address_where_nothing_answers(on_ray, tmp_path):
    nowhere = f"127.0.0.1:{free_port()}"
    told = refusal(on_ray(tmp_path / "run", f"execution.address='{nowhere}'"))
    assert told == (
        f"nothing answers at execution.address '{nowhere}' ([Errno 111] Connection refused); is the cluster up, and is this "
        "its head's port (6379 by default)?"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.soak
def test_an_address_where_something_else_answers(on_ray, tmp_path, monkeypatch):
    monkeypatch.setattr("raysweep.engine.ray_backend._ANSWER_SECONDS", 8.0)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        foreign = f"127.0.0.1:{server.getsockname()[1]}"
        threading.Thread(target=lambda: server.accept()[0].close(), daemon=True).start()
        told = refusal(on_ray(tmp_path / "run", f"execution.address='{foreign}'"))
    assert (
        told == f"the service at execution.address '{foreign}' is not a Ray head; give host:port of the head, or auto"
    )


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("somewhere", "execution.address 'somewhere' is not an address; give host:port of the head node, or auto"),
        (
            "ray://127.0.0.1:10001",
            "execution.address 'ray://127.0.0.1:10001' is a Ray Client address, which raysweep does not support; run "
            "on a node of the "
            "cluster or as a job there, with the head's host:port (6379 by default) or auto",
        ),
    ],
)
def test_what_is_no_address(on_ray, tmp_path, given, told):
    assert refusal(on_ray(tmp_path / "run", f"execution.address='{given}'")) == told


def test_a_worker_that_cannot_start_is_told_in_words(on_ray, tmp_path, monkeypatch):
    """As where a node lacks a library: the actor's start raises, and so does every one after it."""
    from raysweep.engine import ray_executor

    class Broken(ray_executor.RayWorker):
        def __init__(self, *arguments):
            raise ModuleNotFoundError("No module named 'torch'")

    monkeypatch.setattr(ray_executor, "RayWorker", Broken)
    told = refusal(on_ray(tmp_path), RunError)
    assert told == (
        "a worker could not start on its node (ModuleNotFoundError: No module named 'torch'); are the same raysweep, torch "
        "and Python installed there?"
    )
