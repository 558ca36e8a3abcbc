"""Runs on paper: 300 cells on 64 and 512 GPUs, what planning and simulating them takes, and a simulation against a real run.

60 models by 5 data sets of 300 made-up examples each: the laboratory's sizes at this machine's rates, and those of a 7B model at
rates that are assumed (a layer's products at 200 TFLOP/s, 2 GB/s read a node), not measured. The loads are told beside the least
possible: each checkpoint once, and two on every worker that does something. The real run has two Ray workers of one thread
each and no tables; its makespan is from its first call to its last. It is simulated by the rates at which the run before it
went.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from common import machine, spread
from transformers import LlamaConfig

from raysweep.config import Config, parse_config
from raysweep.data.examples import Example
from raysweep.engine import events
from raysweep.engine.driver import drive
from raysweep.engine.estimate import reckon
from raysweep.engine.facts import Cell, Facts, ModelFacts
from raysweep.engine.inspection import libraries
from raysweep.engine.pending import model_calls
from raysweep.engine.plan import plan
from raysweep.engine.rates import Rates
from raysweep.engine.simulate import Simulation, simulate
from raysweep.models.checkpoint import Checkpoint, describe
from raysweep.models.loading import skeleton
from raysweep.planned import plan_run

MODELS, SETS, EXAMPLES, LIMIT = 60, 5, 300, 10.0
ROUNDS = 3


def seven_billion(folder: Path) -> Checkpoint:
    """A 7B Llama in bfloat16, without weights."""
    LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32000
    ).save_pretrained(folder)
    empty = Checkpoint("7B", folder, LlamaConfig.from_pretrained(folder).to_dict(), {}, 0, False, "7B")
    shapes = {name: tuple(tensor.shape) for name, tensor in skeleton(empty).state_dict().items()}
    whole = replace(empty, shapes=shapes)
    return replace(whole, bytes=2 * whole.n_parameters)


def cells(one: Checkpoint, dtype: str, widths: list[int]) -> tuple[Config, Facts]:
    """60 models of this one's sizes, each fine-tuned on 5 data sets."""
    sets = [f"d{i}" for i in range(SETS)]
    names = [f"m{i:02d}" for i in range(MODELS)]
    config = parse_config(
        {
            "name": "paper",
            "models": [{"name": n, "base": n, "tuned": {d: f"{n}-{d}" for d in sets}} for n in names],
            "datasets": [{"name": d, "path": d, "format": "gsm8k"} for d in sets],
            "studies": {"substitution": {"widths": widths}, "similarity": {}},
            "execution": {"executor": "ray", "device": "cpu"},
            "storage": "nowhere",
        }
    )
    random = np.random.default_rng(0)
    examples = {}
    for name in sets:
        lengths = random.integers(60, 260, EXAMPLES)
        tokens = [random.integers(3, 100, length) for length in lengths]
        examples[name] = [Example(i, t, max(2, len(t) * 2 // 3), "", "") for i, t in enumerate(tokens)]

    def named(name: str) -> Checkpoint:
        return replace(one, source=name, fingerprint=f"{one.fingerprint}-{name}")

    models = {n: ModelFacts(named(n), {d: named(f"{n}-{d}") for d in sets}, dtype) for n in names}
    size = config.execution.chunk
    chunks = {d: tuple(tuple(e[i : i + size]) for i in range(0, EXAMPLES, size)) for d, e in examples.items()}
    return config, Facts(
        models, {(n, d): Cell(n, d, chunks[d], 0, 0, 0) for n in names for d in sets}, "cpu", libraries()
    )


def on_paper(told: str, config: Config, facts: Facts, given: Rates | None) -> None:
    """Plan, and simulate on 64 and 512 GPUs."""
    rates = dict.fromkeys(facts.models, given) if given else None
    if rates is None:  # timing a layer is no part of planning, and is kept
        reckon(config, facts, list(model_calls(config, facts, plan(config, facts), set())))
    print(f"  {told}")
    for gpus in (64, 512):
        started = time.perf_counter()
        graph = plan(config, facts)
        calls = list(model_calls(config, facts, graph, set()))
        reckoned = reckon(config, facts, calls, gpus, rates)
        planned = time.perf_counter() - started
        found = simulate(calls, reckoned.cost, workers=gpus, nodes=gpus // 8)
        took = time.perf_counter() - started
        assert reckoned.estimate.call_seconds is not None
        working = sum(bool(spans) for spans in found.timelines)
        least = max(found.least_loads, 2 * working)
        print(
            f"    {gpus} GPUs: makespan {words(found)}, {found.makespan * gpus / reckoned.estimate.call_seconds:.3f} × of the work "
            f"divided evenly, idle {found.idle_share:.1%}; {found.loads} loads ({found.loads / least:.2f} × of the least, "
            f"{least}), {found.bytes_read / 1e12:.3f} TB read; {found.cut} calls cut; {len(graph.tasks):,} tasks and "
            f"{len(calls):,} calls planned in {planned:.1f} s, simulated in {took - planned:.1f} s (limit {LIMIT:g} together)",
            flush=True,
        )


def words(found: Simulation) -> str:
    return f"{found.makespan / 3600:.2f} h" if found.makespan > 6000 else f"{found.makespan:.1f} s"


def real(storage: str, limit: int, before: str | None) -> tuple[float, float]:
    """(simulated, real) makespan of one run on two workers; simulated by the rates of the run `before`."""
    times: dict[str, list[datetime]] = {events.CALL_STARTED: [], events.CALL_DONE: []}

    def listen(event: Mapping[str, Any]) -> None:
        if event["event"] in times:
            times[event["event"]].append(datetime.fromisoformat(event["time"]))

    sets = {"sums": "gsm8k", "facts": "boolq"}
    config = parse_config(
        {
            "name": "real",
            "models": [{"name": "tiny", "base": "lab://tiny", "tuned": {name: f"lab://tiny/{name}" for name in sets}}],
            "datasets": [{"name": n, "path": f"lab://{n}/test", "format": f, "limit": limit} for n, f in sets.items()],
            "studies": {"substitution": {"widths": [5]}},
            "execution": {"executor": "ray", "device": "cpu", "workers": 2, "chunk": 32},
            "storage": storage,
        }
    )
    simulated = plan_run(config, gpus=2, nodes=1, rates=before).simulation
    drive(config, listener=listen)
    assert simulated is not None
    return simulated.makespan, (max(times[events.CALL_DONE]) - min(times[events.CALL_STARTED])).total_seconds()


def against_real(rounds: int) -> None:
    """Every run is simulated by the rates of the one before it; the first, a short one, by a moment's clock."""
    print("  against a real run on two Ray workers of one thread (limit 0.85 to 1.15)")
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds + 1):
            before = f"{folder}/{turn - 1}" if turn else None
            simulated, took = real(f"{folder}/{turn}", 128 if turn else 64, before)
            ratio = simulated / took
            how = "a moment's clock" if before is None else "the run before"
            print(f"    by the rates of {how}: simulated {simulated:.2f} s, real {took:.2f} s: {ratio:.3f}", flush=True)
            ratios += [ratio] if turn else []
    print(f"    simulated ÷ real: {spread(ratios)}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=["paper", "real"])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    asked = parser.parse_args()
    print(f"runs on paper; {machine()}")
    if asked.only != "real":
        on_paper(
            "the laboratory's sizes, this machine's rates", *cells(describe("lab://tiny"), "float32", [5, 4]), None
        )
        with tempfile.TemporaryDirectory() as folder:
            assumed = Rates(2 * 202e6 / 200e12, 2 * 131e6 / 200e12, 2e9, "assumed")
            on_paper("7B, rates assumed", *cells(seven_billion(Path(folder)), "bfloat16", [5]), assumed)
    if asked.only != "paper":
        against_real(asked.rounds)


if __name__ == "__main__":
    main()
