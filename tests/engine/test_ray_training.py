"""One training over two processes of a Ray cluster: what one process makes of it, copied (DDP) or sharded (FSDP2 on gloo)."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError
from ray_cluster import descendants
from small_trainings import TRAINER
from torch.distributed.checkpoint import FileSystemReader

from raysweep.config_execution import ExecutionConfig
from raysweep.engine import ray_training, ray_trainings
from raysweep.engine.calls import Outcome, TrainCall
from raysweep.engine.dispatch import Node
from raysweep.engine.inspection import inspect
from raysweep.engine.pending import model_calls
from raysweep.engine.plan import plan
from raysweep.engine.ray_backend import RayBackend
from raysweep.engine.ray_executor import Share
from raysweep.engine.ray_token import use_token
from raysweep.engine.ray_training import FINAL, train_on_ray
from raysweep.engine.training_work import untold
from raysweep.errors import InputError, RunError
from raysweep.models.checkpoint import describe
from raysweep.models.loading import load_model, load_tokenizer
from raysweep.studies.consolidate import consolidate
from raysweep.studies.finetune import finetune
from raysweep.studies.training import Recipe, Trained

STEPS, FROZEN = 50, 1


def recipe(batch):
    """Fifty steps of eight examples in all; every loss is logged, and two checkpoints are written."""
    arguments = {"max_steps": STEPS, "per_device_train_batch_size": batch, "learning_rate": 1e-3, "logging_steps": 1}
    return Recipe(Trained("freeze", (FROZEN,)), arguments={**arguments, "eval_steps": 10, "save_steps": 20}, keep=(40,))


@pytest.fixture(scope="module")
def data(tiny, tokenizer, random_examples, tmp_path_factory):
    """(base with tied embeddings, tokenizer, examples to train on, examples to test on), as `finetune` takes them."""
    folder = tmp_path_factory.mktemp("base")
    tiny("llama", 3, tie_word_embeddings=True, initializer_range=0.1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return describe(str(folder)), tokenizer, random_examples(40), random_examples(7, seed=1)


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """The training in this process alone."""
    return finetune(*data, recipe(8), tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def cluster(one_node):
    """A node's process, whose cluster this process has joined."""
    use_token(starting=False)
    backend = RayBackend(ExecutionConfig(executor="ray", address=one_node.address, device="cpu"))
    backend.device("cpu")
    yield one_node
    backend.close()


def check(done, alone, base, folder):
    """The losses of every step, the counts and the weights are those of one process; what is frozen is the base's."""
    ours, theirs = (rows.sort_values(["split", "step"]).reset_index(drop=True) for rows in (done.rows, alone.rows))
    assert ours[["step", "split"]].equals(theirs[["step", "split"]])
    assert sum(ours["split"] == "train") == STEPS
    np.testing.assert_allclose(ours["loss"], theirs["loss"], atol=1e-3, rtol=0)
    assert ours["loss"].iloc[-1] < ours["loss"].iloc[0] - 0.1, "it has learnt, so that equal losses say something"
    assert (done.steps, done.frozen, done.changed, done.unchanged) == (STEPS, alone.frozen, alone.changed, ())
    final = describe(str(folder / FINAL))
    assert (final.shapes, final.dtype) == (base.shapes, base.dtype)
    weights, started = load_model(final).state_dict(), load_model(base).state_dict()
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(weights[name], value, atol=1e-4, rtol=0)
        assert torch.equal(weights[name], started[name]) == (f".{FROZEN}." in name), name
    load_tokenizer(final)


def test_copies_in_two_processes_are_trained_as_in_one(data, alone, cluster, tmp_path):
    told = []
    done = train_on_ray(*data, recipe(4), tmp_path, processes=2, strategy="ddp", tell=told.append)
    check(done, alone, data[0], tmp_path)
    assert done.resumed_from is None
    assert [(now.step, now.split, now.loss) for now in told if now.split == "test"] == [
        (step, split, loss) for step, split, loss in done.rows.itertuples(index=False) if split == "test"
    ]
    assert not (tmp_path / "ray").exists()


def test_shards_of_two_processes_are_trained_as_one_model_and_resumed_after_a_kill(
    data, alone, cluster, tmp_path, monkeypatch
):
    monkeypatch.setattr(ray_training, "_LOOK_SECONDS", 0.01)
    killed = []

    def kill(now):
        if now.step > 20 and not killed:
            killed.append(next(pid for pid, name in descendants(cluster.pid).items() if "RayTrainWorker" in name))
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(RunError, match=r"process [01] of the training died \(.*run again, and it continues from"):
        train_on_ray(*data, recipe(4), tmp_path, processes=2, strategy="fsdp", tell=kill)
    assert not (tmp_path / "final").exists()
    done = train_on_ray(*data, recipe(4), tmp_path, processes=2, strategy="fsdp")
    assert done.resumed_from in (20, 40)
    check(done, alone, data[0], tmp_path)

    shards = tmp_path / "checkpoint-40" / "pytorch_model_fsdp_0"
    index = FileSystemReader(shards).read_metadata()
    for name, entry in index.state_dict_metadata.items():
        assert len(entry.chunks) == 2, f"{name} is in two parts, one of each process"
        assert entry.chunks[0].sizes[0] < entry.size[0], "neither has the whole of it"
    consolidate(tmp_path / "checkpoint-40", str(data[0].folder), tmp_path / "whole")
    gathered = load_model(describe(str(tmp_path / "step-40"))).state_dict()
    for name, value in load_model(describe(str(tmp_path / "whole"))).state_dict().items():
        assert torch.equal(value, gathered[name]), name


def test_more_processes_than_there_is_room_for(data, cluster, tmp_path):
    with pytest.raises(RunError) as caught:
        train_on_ray(*data, recipe(4), tmp_path, processes=3, cpus=2)
    assert str(caught.value) == (
        "a training needs 3 processes of 2 CPU each, and the cluster's 1 nodes have room for 2; use fewer processes, "
        "or add nodes and run again"
    )


# --- given up, without a cluster ----------------------------------------------------------------------------------


def test_given_up_it_waits_for_no_training(tmp_path, monkeypatch):
    """As by Ctrl-C; a pool of threads would wait for its last one first."""

    def attempt(folder, call, cpus, device, tell, stop):
        if call.name == "long":
            stop.wait(20)
        return Outcome(call)

    monkeypatch.setattr(ray_trainings, "living_nodes", lambda: [Node(4, 0)])
    monkeypatch.setattr(ray_trainings, "_attempt", attempt)
    calls = [SimpleNamespace(name=name, processes=2) for name in ("short", "long")]
    ended = ray_trainings.run_trainings(tmp_path, calls, Share(1, 0), "cpu", untold)
    assert next(ended).call.name == "short"
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        ended.throw(KeyboardInterrupt)
    assert time.monotonic() - began < 5


def test_a_training_that_is_stopped_is_left_alone(tmp_path):
    stop, end = threading.Event(), threading.Event()
    stop.set()
    with pytest.raises(RunError, match="the training was stopped; run again, and it continues from its last"):
        ray_training._fit(SimpleNamespace(fit=lambda: end.wait(20)), tmp_path / "progress", None, stop)
    end.set()


# --- why it failed, without a cluster -----------------------------------------------------------------------------


class RaisedError(Exception):
    """As Ray Train hands over what a process raised."""

    def __init__(self, cause):
        self._base_exc = cause


class DeadError(Exception):
    """As Ray Train tells of a process that is gone."""

    health_check_failure = RuntimeError("the actor died")


LOST = RaisedError(RuntimeError("Connection closed by peer"))


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (
            WorkerGroupError("", {0: LOST, 1: RaisedError(InputError("it asks for layer 9"))}),
            InputError,
            "it asks for layer 9",
        ),
        (
            WorkerGroupError("", {0: LOST, 1: DeadError()}),
            RunError,
            "process 1 of the training died (RuntimeError: the actor died); run again, and it continues from its last "
            "complete checkpoint",
        ),
        (
            WorkerGroupError("", {0: LOST, 1: torch.OutOfMemoryError("CUDA out of memory")}),
            RunError,
            "process 1: OutOfMemoryError: CUDA out of memory",
        ),
        (
            WorkerGroupError("", {0: LOST}),
            RunError,
            "process 0 of the training failed: RuntimeError: Connection closed by peer",
        ),
        (
            ControllerError(TimeoutError("no worker came up")),
            RunError,
            "Ray Train could not run the training: TimeoutError: no worker came up",
        ),
    ],
)
def test_the_process_that_failed_first_is_told_of(error, kind, told):
    found = ray_training._in_words(error)
    assert type(found) is kind
    assert str(found) == told


def test_a_process_out_of_memory_ends_a_training_for_good_and_a_lost_one_does_not(
    training_config, tmp_path, monkeypatch
):
    config = training_config(tmp_path, {"finetune": {"trainer": TRAINER}})
    facts = inspect(config)
    call = next(call for call in model_calls(config, facts, plan(config, facts), set()) if isinstance(call, TrainCall))
    found = []
    for failure in (torch.OutOfMemoryError("CUDA out of memory"), LOST):
        error = WorkerGroupError("", {0: LOST, 1: failure})

        class Failing:
            def fit(self, error=error):
                raise error

        def fail(*arguments, trainer=Failing, **more):
            ray_training._fit(trainer(), tmp_path / "progress", None, threading.Event())

        monkeypatch.setattr(ray_trainings, "train_on_ray", fail)
        found.append(ray_trainings._attempt(tmp_path, call, 1, "cuda", lambda *told: None, threading.Event()))
    assert [outcome.failure for outcome in found] == ["refused", "raised"]
    assert found[0].error.startswith(
        "'finetune m/first' runs out of memory on cpu (process 1: OutOfMemoryError: CUDA out of memory); lower trainer's "
    )
