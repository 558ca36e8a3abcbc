"""What a plan says calls will take, against what their workers then count, and how the difference is told."""

from __future__ import annotations

import json
import math
import mmap
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from raysweep.config import Config
from raysweep.data.batches import make_batches
from raysweep.engine import rates
from raysweep.engine.accuracy import compare
from raysweep.engine.calls import Call, CaptureCall, Outcome, SubstituteCall
from raysweep.engine.demands import Demands
from raysweep.engine.dispatch import Slot
from raysweep.engine.driver import Done, drive
from raysweep.engine.estimate import options, reckon
from raysweep.engine.events import read_events
from raysweep.engine.executor import LocalBackend
from raysweep.engine.facts import Facts
from raysweep.engine.graph import Graph
from raysweep.engine.inspection import inspect
from raysweep.engine.loading import batch_budget
from raysweep.engine.loads import Loads
from raysweep.engine.pending import model_calls
from raysweep.engine.plan import plan
from raysweep.engine.rates import Rates
from raysweep.engine.reckoning import Estimate
from raysweep.engine.room import Needs, sweep_batches
from raysweep.engine.work import Worker
from raysweep.models.memory import Peak
from raysweep.models.stream import StreamedModel
from raysweep.planned import plan_run
from raysweep.report.accuracy import accuracy_line, accuracy_records
from raysweep.studies import streamed
from raysweep.studies.passes import Need, Pass
from raysweep.studies.windows import windows_of_widths

STREAM = "execution.residency=stream"
GRADIENT = "studies.substitution={widths: [2], estimator: gradient, sample: 2}"
SWEEP_ONLY = ("studies.similarity=null", "studies.correlation=null")
FROZEN = (1, 4)


def estimate(config: Config, facts: Facts, graph: Graph, workers: int = 1) -> Estimate:
    """Of all that the graph has."""
    return reckon(config, facts, list(model_calls(config, facts, graph, set())), workers).estimate


@pytest.fixture(scope="module")
def frozen(world: Path, tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """The tuned model with layers 1 and 4 put back to the base's."""
    folder = tmp_path_factory.mktemp("frozen")
    base, tuned = (AutoModelForCausalLM.from_pretrained(world / name) for name in ("base", "tuned"))
    for layer in FROZEN:
        tuned.model.layers[layer].load_state_dict(base.model.layers[layer].state_dict())
    tuned.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tensor_bytes(folder: Path) -> dict[int | None, int]:
    """Bytes of tensors by layer (None: outside layers), read with the safetensors library."""
    found: dict[int | None, int] = {}
    with safe_open(folder / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118  # it is no mapping
            layer = int(name.split(".")[2]) if ".layers." in name else None
            tensor = file.get_tensor(name)
            found[layer] = found.get(layer, 0) + tensor.numel() * tensor.element_size()
    return found


def told(done: Done) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The estimate kept in the run folder, and what each model call of the latest start measured."""
    kept = json.loads(done.folder.plan.read_text())["about"]["estimate"]
    log = list(read_events(done.folder.events))
    begun = max(i for i, event in enumerate(log) if event["event"] == "run_started")
    kinds = ("capture", "substitute", "estimate")
    ended = [e for e in log[begun:] if e["event"] == "call_done" and e["call"].split()[0] in kinds]
    return kept, [event["measured"] for event in ended]


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("execution.batch_tokens=40",),
        ("execution.fuse=false",),
        ("execution.memory=50GB", STREAM),
        (STREAM,),
        (STREAM, "execution.batch_tokens=40"),
        (STREAM, "execution.fuse=false"),
        (STREAM, *SWEEP_ONLY),
        (GRADIENT,),
        (GRADIENT, "studies.substitution.points=3", "studies.substitution.reverse=true", "execution.batch_tokens=40"),
        (GRADIENT, "studies.substitution.points=2", "studies.substitution.reverse=true", STREAM),
    ],
    ids=" ".join,
)
def test_counts_are_what_the_workers_count(make_config: Callable[..., Config], tmp_path: Path, changes: Any) -> None:
    done = drive(make_config(tmp_path / "run", *changes))
    assert not done.failed
    kept, measured = told(done)
    assert kept["calls"] == len(measured) > 0
    assert kept["layer_applications"] == sum(m["layer_applications"] for m in measured) > 0
    assert kept["bytes_read"] == sum(m["bytes_read"] for m in measured) > 0
    assert 0.5 < kept["memory"] / max(m["peak_bytes"] for m in measured) < 2
    found = compare(kept, read_events(done.folder.events))
    assert found is not None
    assert found.is_whole
    assert found.ratio("layer_applications") == found.ratio("bytes_read") == 1


@pytest.mark.parametrize("passes", [[[0], [1], [2]], [[0, 1], [2]]])
def test_streamed_bytes_are_each_pass_and_identical_layers_once(
    make_config: Callable[..., Config],
    world: Path,
    frozen: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    passes: list[list[int]],
) -> None:
    monkeypatch.setattr(
        "raysweep.engine.pending.chunks_in_passes", lambda *how: [Pass(tuple(indices)) for indices in passes]
    )
    done = drive(make_config(tmp_path / "run", STREAM, *SWEEP_ONLY, f"models.0.tuned={{first: {frozen}}}"))
    base, tuned = tensor_bytes(world / "base"), tensor_bytes(frozen)
    read_of_base = sum(size for layer, size in base.items() if layer is not None and layer not in FROZEN)
    read_of_tuned = sum(size for layer, size in tuned.items() if layer is not None)
    expected = (base[None] or 0) + (tuned[None] or 0) + len(passes) * (read_of_base + read_of_tuned)
    kept, measured = told(done)
    assert kept["bytes_read"] == sum(m["bytes_read"] for m in measured) == expected


def test_batches_that_need_a_pass_each(
    make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for where in ("raysweep.engine.room.choose_passes", "raysweep.studies.streamed.choose_passes"):
        monkeypatch.setattr(where, lambda needs, room, disk: [Pass((index,)) for index in range(len(needs))])
    kept, measured = told(drive(make_config(tmp_path / "run", STREAM, *SWEEP_ONLY, "execution.batch_tokens=60")))
    assert kept["bytes_read"] == sum(m["bytes_read"] for m in measured)
    one, _ = told(drive(make_config(tmp_path / "other", STREAM, *SWEEP_ONLY)))
    assert kept["bytes_read"] > 2 * one["bytes_read"]


def test_a_pair_reckons_the_same_needs(small: tuple[Config, Facts], monkeypatch: pytest.MonkeyPatch) -> None:
    _, facts = small
    model, cell = facts.models["m"], facts.cells["m", "first"]
    windows = windows_of_widths(6, [2])
    batches = sweep_batches(model.base, cell.examples, 60)
    needs = Needs.of(model.base, "float32", batches, windows)
    asked: list[tuple[list[Need], int]] = []
    monkeypatch.setattr(streamed, "choose_passes", lambda n, room, disk: asked.append((list(n), room)) or [])
    monkeypatch.setattr("raysweep.models.memory.private_bytes", lambda: 123)
    pair = streamed.StreamedPair.of(*map(StreamedModel, (model.base, model.tuned["first"])), memory=10**9)
    assert len(batches) > 2
    tokens = [pair_tokens(batch.tokens // batch.length, batch.length) for batch in batches]
    pair.passes(tokens, windows, [0] * len(batches))
    assert asked == [(list(needs.batches), 10**9 - 123 - needs.at_work)]


def test_plans_of_streaming_to_a_gpu_have_its_hosts_pinned_memory(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config("nowhere", STREAM)
    facts = inspect(config)
    on_gpu = replace(facts, device="cuda")
    rates = {"m": Rates(1e-6, 0.0, 1e9, "")}
    here, there = (
        reckon(config, each, list(model_calls(config, each, plan(config, each), set())), rates=rates).estimate
        for each in (facts, on_gpu)
    )
    model = StreamedModel(facts.models["m"].base)
    assert here.pinned == 0
    assert there.pinned == 2 * 2 * 2 ** math.ceil(math.log2(model.layer_bytes)), "two slots of each checkpoint"
    planned = replace(plan_run(make_config("nowhere", STREAM)), device="cuda", pinned=there.pinned)
    assert re.search(r"\nmemory .*, on cuda, and \d\S* kB of pinned memory on its host\n", planned.to_text())
    assert "pinned" not in replace(planned, pinned=0).to_text()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_budget_leaves_the_same_room_for_states_on_a_gpu(device: str, make_config: Callable[..., Config]) -> None:
    config = make_config("nowhere", STREAM, "execution.memory=9GB")
    facts = replace(inspect(config), device=device)
    call = next(c for c in model_calls(config, facts, plan(config, facts), set()) if isinstance(c, SubstituteCall))
    residency = facts.models["m"].residency
    assert 0 < residency.room < 9 * 10**9
    assert Demands(facts, {}, Loads(2))._room(call) == residency.room


def pair_tokens(rows: int, length: int) -> Any:
    import torch

    return torch.zeros(rows, length, dtype=torch.int64)


def test_both_residencies_are_told(make_config: Callable[..., Config]) -> None:
    planned = plan_run(make_config("nowhere"))
    found = planned.options["m"]
    assert isinstance(found.resident, Estimate)
    assert isinstance(found.stream, Estimate)
    assert found.taken == "resident"
    assert (planned.bytes_to_read, planned.memory) == (found.resident.bytes_read, found.resident.memory)
    assert found.stream.calls < found.resident.calls, "chunks of a pass are one call"
    text = planned.to_text()
    assert "\n  resident   " in text
    assert " (chosen)\n  stream     " in text
    streamed_plan = plan_run(make_config("nowhere", STREAM))
    assert streamed_plan.options["m"].stream.bytes_read == found.stream.bytes_read
    assert streamed_plan.bytes_to_read == found.stream.bytes_read
    shown = streamed_plan.to_json()["options"]["m"]
    assert (shown["taken"], shown["why"]) == ("stream", "as asked")
    assert shown["resident"]["bytes_read"] == found.resident.bytes_read


def test_what_cannot_be_streamed_says_why(make_config: Callable[..., Config]) -> None:
    planned = plan_run(make_config("nowhere", "studies.substitution.generate={examples: 1, tokens: 2}"))
    assert isinstance(planned.options["m"].stream, str)
    assert planned.options["m"].stream.startswith(
        "model 'm' cannot be streamed: studies.substitution.generate generates token by token"
    )
    assert "  stream     not possible: model 'm' cannot be streamed: " in planned.to_text()
    assert planned.to_json()["options"]["m"]["stream"] == {"reason": planned.options["m"].stream}


def test_time_is_rates_times_counts(
    make_config: Callable[..., Config], small: tuple[Config, Facts], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, facts = make_config("nowhere", *SWEEP_ONLY), small[1]
    facts = replace(facts, cells={key: cell for key, cell in facts.cells.items() if key[1] == "first"})
    graph = plan(config, facts)
    cell, size = facts.cells["m", "first"], facts.models["m"].base.bytes + facts.models["m"].tuned["first"].bytes
    chunks = [[e.length - 1 for e in chunk] for chunk in cell.chunks]
    padded = sum(len(lengths) * max(lengths) for lengths in chunks)  # a batch a chunk
    labels = sum(e.n_tokens for e in cell.examples)
    fixed = {"layer": "", "read_bytes": 1e6, "head_seconds": 1e-3}
    monkeypatch.setattr("raysweep.engine.estimate.measured_rates", lambda *args: Rates(layer_seconds=2.0, **fixed))
    found = estimate(config, facts, graph)
    expected = 2.0 * 30 * padded + 1e-3 * 7 * labels + size / 1e6  # 30 applications, 7 rows
    assert found.call_seconds == pytest.approx(expected)
    assert (found.seconds, found.workers) == (found.call_seconds, 1)
    many = make_config("nowhere", *SWEEP_ONLY, "execution.executor=ray", "execution.workers=2")
    together = estimate(many, facts, graph, workers=2).seconds
    assert together is not None
    assert expected / 2 < together < 0.6 * expected, "both load the pair, and pieces of the last chunk share layers"
    more = make_config("nowhere", *SWEEP_ONLY, "execution.executor=ray", "execution.workers=9")
    assert estimate(more, facts, graph, workers=9).workers == 3, "there are three calls"

    # Streamed, a pass takes the longer of reading and computing.
    for layer_seconds in (2.0, 0.0):
        one = Rates(layer_seconds=layer_seconds, **fixed)
        monkeypatch.setattr("raysweep.engine.estimate.measured_rates", lambda *args, one=one: one)
        stream = options(config, facts, graph, set(), list(model_calls(config, facts, graph, set())))["m"].stream
        assert isinstance(stream, Estimate)
        decoder = sum(4 * 2 * math.prod(s) for n, s in facts.models["m"].base.shapes.items() if ".layers." in n)
        rest = stream.bytes_read - decoder
        assert 0 < rest < stream.bytes_read
        lengths = [e.length - 1 for e in cell.examples]
        batches = make_batches(lengths, batch_budget(config.execution.batch_tokens, facts.device))
        together = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
        takes = max(layer_seconds * 30 * together, decoder / 1e6)
        assert stream.call_seconds == pytest.approx(takes + rest / 1e6 + 1e-3 * 7 * labels)


def test_none_of_a_pair_makes_room_for_the_other_as_in_a_worker(small: tuple[Config, Facts]) -> None:
    config, facts = small
    calls = list(model_calls(config, facts, plan(config, facts), set()))
    pair = next(call for call in calls if isinstance(call, SubstituteCall))
    capture = next(call for call in calls if isinstance(call, CaptureCall))
    other = replace(capture, base=replace(capture.base, fingerprint="another"))
    found = reckon(config, facts, [pair, other, pair], rates={"m": Rates(1e-6, 0.0, 1e9, "")})
    assert found.estimate.bytes_read == 3 * pair.base.bytes + pair.tuned.bytes


def test_without_rates_there_is_no_time(make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raysweep.engine.estimate.measured_rates", lambda *args: None)
    planned = plan_run(make_config("nowhere"))
    assert planned.seconds is None
    assert planned.bytes_to_read > 0
    assert "time         not known, because cpu is not available on this machine" in planned.to_text()
    assert planned.to_json()["seconds"] is None


def test_a_resumed_run_is_compared_with_what_was_left(make_config: Callable[..., Config], tmp_path: Path) -> None:
    config = make_config(tmp_path / "run", *SWEEP_ONLY)
    drive(config)
    whole, _ = told(drive(make_config(tmp_path / "run", *SWEEP_ONLY, "studies.substitution.widths=[1, 2]")))
    done = drive(make_config(tmp_path / "other", *SWEEP_ONLY, "studies.substitution.widths=[1, 2]"))
    fresh, _ = told(done)
    assert 0 < whole["layer_applications"] < fresh["layer_applications"]
    kept, measured = told(drive(make_config(tmp_path / "run", *SWEEP_ONLY, "studies.substitution.widths=[1, 2, 3]")))
    assert kept["layer_applications"] == sum(m["layer_applications"] for m in measured)
    kept, measured = told(drive(config))
    assert kept is None, "nothing was left"
    assert measured == []


ESTIMATE = {
    "calls": 2,
    "layer_applications": 30,
    "bytes_read": 4000,
    "memory": 3_000_000,
    "call_seconds": 1.5,
    "seconds": 0.75,
    "workers": 2,
}


def ended(call: str, seconds: float, applications: int, read: int, peak: int) -> dict[str, Any]:
    measured = {"seconds": seconds, "layer_applications": applications, "bytes_read": read, "peak_bytes": peak}
    return {"event": "call_done", "call": call, "measured": measured}


def test_the_comparison_in_words() -> None:
    log = [
        {"event": "run_started"},
        ended("substitute m/d 0-1 chunk 7", 50.0, 9, 9, 9),
        {"event": "run_started"},
        ended("capture m/d chunk 0", 1.0, 6, 1000, 2_000_000),
        {"event": "call_done", "call": "similarity m/d", "measured": {"seconds": 80.0}},
        ended("substitute m/d 0-1 chunk 0", 1.0, 24, 4000, 1_500_000),
    ]
    found = compare(ESTIMATE, log)
    assert found is not None
    assert accuracy_line(found) == (
        "plan's estimate ÷ measured: time 0.75, bytes read 0.80, layer applications 1.00,\n  peak memory 1.50"
    )
    assert accuracy_records(found) == [
        {
            "measure": "seconds of sweeping and capture, all calls",
            "estimated": "1.50",
            "real": "2.00",
            "estimated ÷ real": "0.75",
        },
        {
            "measure": "bytes of checkpoints read",
            "estimated": "4,000",
            "real": "5,000",
            "estimated ÷ real": "0.80",
        },
        {"measure": "layer applications", "estimated": "30", "real": "30", "estimated ÷ real": "1.00"},
        {
            "measure": "peak memory of a worker, bytes",
            "estimated": "3,000,000",
            "real": "2,000,000",
            "estimated ÷ real": "1.50",
        },
    ]
    log[4:] = [{"event": "call_retried", "call": "substitute m/d 0-1 chunk 0"}]
    unlike = compare(ESTIMATE | {"call_seconds": None}, log)
    assert unlike is not None
    assert accuracy_line(unlike).replace("\n ", "") == (
        "plan's estimate ÷ measured: time not known, bytes read 4.00, layer applications 5.00, peak memory 1.50 "
        "(1 of 2 planned calls were done, 1 attempt failed or resumed)"
    )
    assert compare(None, log) is None
    assert compare(ESTIMATE, log[:1]) is None
    assert accuracy_records(None) == []


def test_the_peak_is_seen_after_it_is_over() -> None:
    with Peak() as before:
        pass
    with Peak() as peak, mmap.mmap(-1, 60_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        held.write(bytes(60_000_000))
        time.sleep(0.1)
    assert peak.bytes - before.bytes > 50_000_000


def test_rates_are_measured_once(small: tuple[Config, Facts], monkeypatch: pytest.MonkeyPatch) -> None:
    _, facts = small
    monkeypatch.setattr(rates, "_KNOWN", {})
    monkeypatch.setattr(rates, "_SECONDS", 0.01)
    asked: list[Any] = []
    whole = rates.layer_rate
    monkeypatch.setattr(rates, "layer_rate", lambda *args: asked.append(args) or whole(*args))
    first, again = (rates.measured_rates(facts.models["m"], "cpu", 64, 16) for _ in range(2))
    assert first == again
    assert first is not None
    assert first.layer == "a layer of its sizes"
    assert [dtype for _, dtype, *_ in asked] == ["float32", "bfloat16"]


def test_bfloat16_is_timed_on_a_cpu_only(small: tuple[Config, Facts], monkeypatch: pytest.MonkeyPatch) -> None:
    model = small[1].models["m"]
    monkeypatch.setattr(rates, "layer_rate", lambda _, dtype, *rest: {"float32": 3e-6, "bfloat16": 2e-6}[dtype])
    assert rates._bfloat16_gain(model, "cpu", 64, 16, None, 3e-6) == pytest.approx(1.5)
    assert rates._bfloat16_gain(model, "cuda", 64, 16, None, 3e-6) == 1, "there a checkpoint keeps its dtype"
    assert rates._bfloat16_gain(model, "cpu", 64, 16, None, 0.1) == 1, "it would take too long"
    monkeypatch.setattr(rates, "layer_rate", lambda *args: 1 / 0)
    assert rates._bfloat16_gain(model, "cpu", 64, 16, None, 3e-6) == 1


def test_a_call_that_was_cut_counts_once_and_calls_that_were_not_needed_do_not_count() -> None:
    name = "substitute m/d 0-1 chunk 0"
    pieces = [f"{name} piece {n} of 2" for n in (1, 2)]
    log: list[dict[str, Any]] = [
        {"event": "run_started"},
        {"event": "workers_ready", "workers": 2},
        ended("capture m/d chunk 0", 1.0, 6, 1000, 1),
        {"event": "call_cut", "call": name, "calls": pieces},
        ended(pieces[0], 1.0, 12, 2000, 1),
    ]
    found = compare(ESTIMATE, log)
    assert found is not None
    assert (found.calls, found.workers, found.is_whole) == ((2, 1), 2, False)
    found = compare(ESTIMATE, [*log, ended(pieces[1], 1.0, 14, 1000, 1)])
    assert found is not None
    assert (found.calls, found.is_whole) == ((2, 2), True)
    assert "calls" not in accuracy_line(found)
    dropped = {"event": "calls_dropped", "calls": {"substitute": 3, "similarity": 2}}
    stopped = compare(ESTIMATE | {"calls": 5}, [*log, ended(pieces[1], 1.0, 14, 1000, 1), dropped])
    assert stopped is not None
    assert (stopped.calls, stopped.is_whole) == ((2, 2), False)
    assert accuracy_line(stopped).endswith("(3 planned calls not needed)")


class TwoWorkers(LocalBackend):
    """Two workers in this process, each with models of its own, as an executor of Ray has them."""

    def workers(self) -> int:
        return 2

    def open(self, folder: Any, n_calls: int, tell: Any = None) -> Any:
        return InTurns([Worker(folder, self.resident) for _ in range(2)])


class InTurns:
    def __init__(self, workers: list[Worker]) -> None:
        self.slots = [Slot()] * len(workers)
        self.about = {"executor": "turns", "workers": len(workers)}
        self._workers = workers
        self._calls: list[tuple[int, Call]] = []

    def submit(self, index: int, call: Call) -> None:
        self._calls.append((index, call))

    def collect(self) -> list[Outcome]:
        """Sweeps take longest, and end last."""
        index, call = min(self._calls, key=lambda each: isinstance(each[1], SubstituteCall))
        self._calls.remove((index, call))
        return [self._workers[index].attempt(call)]

    def close(self) -> None:
        for worker in self._workers:
            worker.unload()


def test_the_estimate_counts_what_two_workers_both_load_and_both_go_through(
    make_config: Callable[..., Config], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Rates(1e-3, 1e-6, 1e9, "")  # so that cutting the sweep in two is worth the second load
    monkeypatch.setattr("raysweep.engine.estimate.measured_rates", lambda *args: slow)
    only = f"datasets=[{{name: first, path: {world / 'first.jsonl'}, format: gsm8k}}]"
    asked = (only, "execution.chunk=32")
    one = drive(make_config(tmp_path / "one", *asked))
    two = drive(make_config(tmp_path / "two", *asked), backend=TwoWorkers())
    log = list(read_events(two.folder.events))
    assert [event["event"] for event in log].count("call_cut") == 1
    estimated = [run.folder.read_plan()[1]["estimate"] for run in (one, two)]
    assert estimated[0]["bytes_read"] < estimated[1]["bytes_read"]
    assert estimated[0]["layer_applications"] < estimated[1]["layer_applications"]
    found = compare(estimated[1], log)
    assert found is not None
    assert found.is_whole, "pieces are one call"
    assert (found.ratio("bytes_read"), found.ratio("layer_applications")) == (1, 1)
