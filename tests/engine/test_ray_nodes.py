"""Two Ray nodes with two pretended GPUs each: who sees which, checkpoints loaded as seldom as can be, a node that dies.

Nothing is computed on a GPU.
"""

from __future__ import annotations

import json
import signal
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch
from command_line import started
from ray_cluster import head, node

from raysweep.config import parse_config
from raysweep.engine import events
from raysweep.engine.driver import drive
from raysweep.engine.events import read_events

MODELS, SETS = 6, 5


@pytest.fixture(scope="module")
def address():
    with head(cpus=4, gpus=2, visible="0,1") as at, node(at, cpus=4, gpus=2, visible="4,5"):
        yield at


def seen_in_calls(done, events_of):
    """What CUDA_VISIBLE_DEVICES was inside the worker of each call: of those with a model, and of tables."""
    seen = {event["call"]: event["measured"]["visible_gpus"] for event in events_of(done, events.CALL_DONE)}
    tables = {call for call in seen if call.startswith(("similarity", "correlate"))}
    return {seen[call] for call in seen.keys() - tables}, {seen[call] for call in tables}


# --- GPUs ---------------------------------------------------------------------------------------------------------


def test_each_worker_sees_its_own_gpu_on_either_node_and_tables_none(
    on_ray, tmp_path, finished, tables_of, same_tables, events_of
):
    done = drive(on_ray(tmp_path, "execution.gpus_per_worker=1", "execution.fuse=false"))
    assert done.failed == {}
    (ready,) = events_of(done, events.WORKERS_READY)
    assert (ready["workers"], ready["each"]) == (4, "1 CPU and 1 GPU")
    assert sorted(worker["visible"] for worker in ready["seen"]) == ["0", "1", "4", "5"]
    assert all(worker["gpus"] == [worker["visible"]] for worker in ready["seen"])
    assert Counter(Counter(worker["node"] for worker in ready["seen"]).values()) == {2: 2}
    models, tables = seen_in_calls(done, events_of)
    assert models <= {"0", "1", "4", "5"}
    assert tables == {""}
    same_tables(tables_of(done), tables_of(finished))


@pytest.mark.soak
def test_a_share_of_a_gpu_is_of_one_and_no_more_than_fit(on_ray, tmp_path, events_of):
    shared = ("execution.gpus_per_worker=0.5", "execution.workers=5", "execution.fuse=false")
    done = drive(on_ray(tmp_path, *shared))
    assert done.failed == {}
    (ready,) = events_of(done, events.WORKERS_READY)
    visible = Counter(worker["visible"] for worker in ready["seen"])
    assert visible.keys() <= {"0", "1", "4", "5"}
    assert max(visible.values()) == 2, "five workers on four GPUs"
    models, tables = seen_in_calls(done, events_of)
    assert models <= visible.keys()
    assert tables == {""}


@pytest.mark.soak
def test_a_worker_of_two_gpus_has_both_of_its_node(on_ray, tmp_path, events_of):
    done = drive(on_ray(tmp_path, "execution.gpus_per_worker=2", "execution.fuse=false"))
    assert done.failed == {}
    (ready,) = events_of(done, events.WORKERS_READY)
    assert (ready["workers"], ready["each"]) == (2, "1 CPU and 2 GPU")
    pairs = {frozenset("01"), frozenset("45")}
    assert {frozenset(worker["visible"].split(",")) for worker in ready["seen"]} == pairs
    models, tables = seen_in_calls(done, events_of)
    assert {frozenset(visible.split(",")) for visible in models} <= pairs
    assert tables == {""}


# --- affinity -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many_models(tiny_pair, tokenizer, tmp_path_factory):
    """A folder with six bases and, of each, five checkpoints tuned on a data set each; all of one layer or two."""
    folder = tmp_path_factory.mktemp("many")
    base, _ = tiny_pair("llama", 2, max_position_embeddings=128)
    for m in range(MODELS):
        for name in (f"m{m}", *(f"m{m}-d{d}" for d in range(SETS))):
            with torch.no_grad():
                base.model.embed_tokens.weight += 0.01
            base.save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
    for d in range(SETS):
        records = ({"question": f"{d} {'one ' * (1 + i % 5)}?", "answer": "two three"} for i in range(8))
        (folder / f"d{d}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.mark.soak
def test_six_models_by_five_sets_on_four_workers_are_loaded_as_seldom_as_can_be(
    many_models, address, tmp_path, events_of
):
    sets = [f"d{d}" for d in range(SETS)]
    at = str(many_models)
    config = parse_config(
        {
            "name": "affinity",
            "models": [
                {"name": f"m{m}", "base": f"{at}/m{m}", "tuned": {d: f"{at}/m{m}-{d}" for d in sets}}
                for m in range(MODELS)
            ],
            "datasets": [{"name": d, "path": f"{at}/{d}.jsonl", "format": "gsm8k"} for d in sets],
            "studies": {"substitution": {"widths": [1]}},
            "execution": {"executor": "ray", "address": address, "workers": 4, "device": "cpu", "chunk": 2},
            "storage": str(tmp_path),
        }
    )
    done = drive(config)
    assert done.failed == {}
    needed, loads = defaultdict(set), Counter()
    for event in events_of(done, events.CALL_DONE):
        model, _, dataset = event["call"].split()[1].partition("/")
        needed[event["measured"]["pid"]] |= {model, f"{model}-{dataset}"}
        loads[event["measured"]["pid"]] += event["measured"]["loads"]
    assert len(needed) == 4, "all have worked"
    assert loads == {pid: len(checkpoints) for pid, checkpoints in needed.items()}, "each at most once a worker"
    assert loads.total() <= 1.25 * MODELS * (1 + SETS)


# --- ends ---------------------------------------------------------------------------------------------------------


@pytest.mark.soak
def test_sighup_stops_cleanly_and_leaves_the_cluster_as_it_was(on_ray, tmp_path, address):
    config, log = tmp_path / "config.yaml", tmp_path / "run" / "events.jsonl"
    config.write_text(on_ray(tmp_path / "run", "execution.chunk=1", "execution.workers=1").to_yaml())
    process = started("run", config, RAY_AUTH_MODE="token")
    while not any(event["event"] == "chunk_committed" for event in read_events(log)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    sent = time.monotonic()
    process.send_signal(signal.SIGHUP)
    _, said = process.communicate(timeout=120)
    assert time.monotonic() - sent < 10
    assert process.returncode == 129, said
    assert "Traceback" not in said
    found = list(read_events(log))
    assert found[-1]["event"] == "run_interrupted"
    (ready,) = (event for event in found if event["event"] == "workers_ready")
    until = time.monotonic() + 30
    for worker in ready["seen"]:
        while Path(f"/proc/{worker['pid']}").exists():
            assert time.monotonic() < until, "its workers end with it"
            time.sleep(0.1)
    assert drive(on_ray(tmp_path / "run", "execution.chunk=1", "execution.workers=1")).failed == {}


def test_the_work_of_a_node_that_dies_moves(on_ray, address, tmp_path, make_config, tables_of, same_tables, events_of):
    """A third node's worker is killed with it in the middle of the run; another goes on on a living one."""
    whole = drive(make_config(tmp_path / "whole", "execution.chunk=1"))
    with node(address, cpus=4) as other:
        config = on_ray(tmp_path / "run", "execution.chunk=1", "execution.workers=3")
        there, seen = {}, []

        def listen(event):
            if event["event"] == events.WORKERS_READY:
                there.update({worker["pid"]: worker["node"] for worker in event["seen"]})
            if event["event"] == events.CALL_DONE and "pid" in event["measured"]:
                seen.append(event["measured"]["pid"])
                if len(seen) == 4:
                    other.kill()

        done = drive(config, listener=listen)
    assert done.failed == {}
    assert Counter(Counter(there.values()).values()) == {1: 3}, "a worker a node"
    same_tables(tables_of(done), tables_of(whole))
    keys = Counter(key for event in events_of(done, events.CHUNK_COMMITTED) for key in event["keys"])
    assert set(keys.values()) == {1}
    lost = events_of(done, events.CALL_RETRIED)
    assert len(lost) <= 1, "of the dead worker the running call, and not the one behind it"
    assert all("died while running this" in event["error"] for event in lost)
