"""What raysweep promises of a GPU, as checks of one small architecture: tests run them, and mutants.py shows that each can fail."""

from __future__ import annotations

import copy
import gc
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import placing
import torch
from architectures import DECODERS, build, build_pair
from pretend import Machine, pretended, to_gpu
from streams import late
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raysweep.data.examples import Example
from raysweep.engine.calls import Loading, Outcome, SubstituteCall
from raysweep.engine.residents import Residents
from raysweep.engine.work import Worker
from raysweep.lab.tokenizer import train_tokenizer
from raysweep.models.adapter import Adapter
from raysweep.models.checkpoint import describe
from raysweep.models.memory import free_bytes, hold_to_share
from raysweep.models.same import NOTHING
from raysweep.models.stream import StreamedModel
from raysweep.studies.call_memory import TokenBytes
from raysweep.studies.capture import capture_states
from raysweep.studies.generation import generate_text
from raysweep.studies.passes import most_states
from raysweep.studies.process_state import restored_process_state
from raysweep.studies.streamed import StreamedPair
from raysweep.studies.substitution import Pair, sweep_losses
from raysweep.studies.windows import Window, windows_of_widths

LAYERS = 4
WINDOWS = windows_of_widths(LAYERS, [1, 2])
TOKENS = 64
CHECKS: dict[str, Callable[[], None]] = {}


def check(function: Callable[[], None]) -> Callable[[], None]:
    CHECKS[function.__name__] = function
    return function


@cache
def _models() -> tuple[PreTrainedModel, PreTrainedModel]:
    return build_pair(DECODERS["llama"])


@cache
def _saved() -> list[str]:
    folder = tempfile.mkdtemp(prefix="raysweep-checks-")
    for name, model in zip(("base", "tuned"), _models(), strict=True):
        model.save_pretrained(f"{folder}/{name}")
    return [f"{folder}/base", f"{folder}/tuned"]


@cache
def _tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(["one two three", "2 + 3 = 5"] * 4, vocabulary=320)


@cache
def _examples() -> Sequence[Example]:
    rng = np.random.default_rng(0)
    return [Example(i, rng.integers(3, 300, n), n // 2, "", "") for i, n in enumerate((9, 24, 13, 20, 6))]


def on_gpu() -> list[PreTrainedModel]:
    return [to_gpu(copy.deepcopy(model)) for model in _models()]  # type: ignore[misc]


def spread() -> list[PreTrainedModel]:
    """The pair over two GPUs, cut at different layers."""
    return [placing.spread(copy.deepcopy(model), cut) for model, cut in zip(_models(), (1, 3), strict=True)]


def pair(models: Sequence[PreTrainedModel]) -> Pair:
    return Pair(*map(Adapter, models))


def losses(of: Pair, tokens: int = 4 * TOKENS) -> np.ndarray:
    """In calls of several states each."""
    return sweep_losses(of, _examples(), WINDOWS, batch_tokens=tokens)


@cache
def _expected() -> np.ndarray:
    return losses(pair(_models()))


@check
def a_sweep_has_the_losses_of_the_cpu() -> None:
    with pretended():
        np.testing.assert_array_equal(losses(pair(on_gpu())), _expected())


@check
def a_spread_sweep_has_the_losses_of_the_cpu() -> None:
    with pretended(2):
        np.testing.assert_array_equal(losses(pair(spread())), _expected())


@check
def a_streamed_sweep_waits_for_its_copies() -> None:
    with pretended() as gpu, late(gpu) as streams:
        sources = [StreamedModel(describe(folder), device="cuda") for folder in _saved()]
        np.testing.assert_array_equal(losses(StreamedPair.of(*sources)), _expected())
        assert streams.errors == []


@check
def a_capture_has_the_states_of_the_cpu() -> None:
    expected = capture_states(Adapter(_models()[0]), _examples(), batch_tokens=TOKENS).states
    with pretended(), late_copies():
        found = capture_states(Adapter(on_gpu()[0]), _examples(), batch_tokens=TOKENS).states
        assert torch.equal(found, expected)


@contextmanager
def late_copies() -> Iterator[None]:
    from pretend import machine

    with late(machine()):
        yield


@check
def text_is_the_cpus() -> None:
    args = (_tokenizer(), _examples()[:2], [Window(0, 0), Window(0, 2)])
    expected = generate_text(pair(_models()), *args, new_tokens=3)
    with pretended(), late_copies():
        assert generate_text(pair(on_gpu()), *args, new_tokens=3) == expected


def waits(work: Callable[[], object], gpu: Machine) -> int:
    gpu.forget()
    work()
    return gpu.n_waits(ours=True)


@check
def a_sweep_waits_once_a_batch() -> None:
    """And three times for labels and tokens at most: what differs by windows and layers is not waited for."""
    with pretended() as gpu:
        swept = pair(on_gpu())
        losses(swept, TOKENS)  # what both have in common is found out once
        batches = 2
        few = waits(lambda: sweep_losses(swept, _examples(), WINDOWS[:2], batch_tokens=TOKENS), gpu)
        many = waits(lambda: losses(swept, TOKENS), gpu)
        assert many == few <= batches, gpu.waits


@check
def a_sweep_calls_blocks_and_head_as_often_as_its_states_need() -> None:
    """Each distinct state takes each layer once, several in a call; each that ended takes the head once."""
    rows = len(_examples()) * (max(example.length for example in _examples()) - 1)
    stack = 4 * TOKENS // rows
    taken = [tuple(layer in range(w.start, w.stop) for layer in range(LAYERS)) for w in WINDOWS]
    blocks = 0
    for layer in range(LAYERS):
        states = {each[: layer + 1] for each in taken}
        for in_base in (False, True):
            blocks += math.ceil(sum(state[layer] == in_base for state in states) / stack)
    with pretended() as gpu:
        swept, logits = pair(on_gpu()), mock.Mock(side_effect=Adapter.logits)
        gpu.forget()
        with mock.patch.object(Adapter, "logits", lambda self, states: logits(self, states)):
            losses(swept)
        assert stack > 1
        assert gpu.calls["attention"] == blocks
        assert logits.call_count == len(set(taken))


@check
def a_capture_waits_once_a_batch() -> None:
    with pretended() as gpu:
        adapter = Adapter(on_gpu()[0])
        batches = 1
        assert waits(lambda: capture_states(adapter, _examples(), batch_tokens=TOKENS), gpu) <= batches, gpu.waits


@check
def text_waits_for_nothing_of_ours_per_token() -> None:
    with pretended() as gpu:
        swept, args = pair(on_gpu()), (_tokenizer(), _examples()[:1], [Window(0, 0), Window(0, 2)])
        few = waits(lambda: generate_text(swept, *args, new_tokens=2), gpu)
        assert waits(lambda: generate_text(swept, *args, new_tokens=5), gpu) == few, gpu.waits


@contextmanager
def collector_off() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def loading(**settings: object) -> Loading:
    return replace(Loading("float32", "cuda", None, TOKENS), **settings)  # type: ignore[arg-type]


def call(*, tokens: int = TOKENS) -> SubstituteCall:
    """A sweep as a worker is handed it."""
    base, tuned = map(describe, _saved())
    examples = tuple(_examples())
    return SubstituteCall(
        "substitute m/d",
        "m",
        "d",
        ("substitute m/d",),
        base,
        loading(batch_tokens=tokens),
        examples,
        tuned,
        tuple(WINDOWS),
        tuple(f"{n:064}" for n in range(len(WINDOWS))),
        NOTHING,
        (len(examples),),
    )


def found_losses(outcome: Outcome) -> np.ndarray:
    assert outcome.error is None, outcome.error
    table = outcome.commits[0].table
    assert table is not None
    return np.array(table["loss"]).reshape(len(WINDOWS), -1)


@check
def an_evicted_model_leaves_the_device() -> None:
    """Also one that is spread over devices, whose hooks are in reference cycles, with Python's collector off."""
    with pretended(2) as gpu, collector_off():
        for made in (on_gpu, spread):
            held = Residents(2)
            held._models[("x", "", "float32")] = Adapter(made()[0])  # as `adapter` keeps it
            held.clear()
            assert gpu.live[0] == gpu.live[1] == 0, made.__name__


@check
def a_sweep_goes_on_after_running_out_of_memory() -> None:
    """In smaller batches, with the memory of the attempt that failed given back, with Python's collector off."""
    with pretended() as gpu:
        worker = Worker(Path(tempfile.mkdtemp()))
        np.testing.assert_allclose(found_losses(worker.attempt(call())), _expected(), rtol=0, atol=1e-5)
        held = gpu.live[0]
    with pretended() as gpu, collector_off():
        worker = Worker(Path(tempfile.mkdtemp()))
        worker.attempt(call())
        gpu.forget()
        gpu.fail_at = 500
        outcome = worker.attempt(call())
        np.testing.assert_allclose(found_losses(outcome), _expected(), rtol=0, atol=1e-5)
        assert outcome.measured["out_of_memory"] == 1
        assert gpu.live[0] == held


@check
def a_load_that_runs_out_of_memory_is_tried_again() -> None:
    """With batches as before, which are not at fault."""
    with pretended() as gpu:
        worker = Worker(Path(tempfile.mkdtemp()))
        gpu.fail_at = 20
        outcome = worker.attempt(call())
        np.testing.assert_allclose(found_losses(outcome), _expected(), rtol=0, atol=1e-5)
        assert outcome.measured["out_of_memory"] == 1
        assert outcome.measured["batch_tokens"] == TOKENS


@check
def a_worker_plans_with_its_share_of_a_gpu() -> None:
    with pretended(memory=10**6), mock.patch.dict("raysweep.models.memory._shares", clear=True):
        hold_to_share("cuda", 0.5)
        assert free_bytes("cuda") <= 500_000


@check
def batches_fit_into_the_memory_that_is_left() -> None:
    with mock.patch("raysweep.studies.substitution.LOGIT_BYTES", 2**12):
        with pretended() as gpu:
            swept = pair(on_gpu())
            held = gpu.live[0]
            sweep_losses(swept, _examples(), WINDOWS, batch_tokens=4096)
            limit = held + (gpu.peak[0] - held) // 2
            del swept
        with pretended(memory=limit):
            found = sweep_losses(pair(on_gpu()), _examples(), WINDOWS, batch_tokens=4096)
        np.testing.assert_allclose(found, _expected(), rtol=0, atol=1e-5)


@check
def a_deeper_streamed_model_starts_with_as_few_values() -> None:
    written = []
    for layers in (2, 6):
        folder = tempfile.mkdtemp(prefix="raysweep-checks-")
        build(DECODERS["llama"], num_hidden_layers=layers).save_pretrained(folder)
        with Written() as values, mock.patch.object(Adapter, "_probe"):
            StreamedModel(describe(folder))
        written.append(values.n)
    assert written[0] == written[1]


class Written(TorchDispatchMode):
    """Counts the values that operations write."""

    n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and not out.is_meta and (func._schema.is_mutable or "randn" in str(func)):
            self.n += out.numel()
        return out


@check
def a_dead_context_takes_no_more_calls() -> None:
    with pretended() as gpu:
        worker = Worker(Path(tempfile.mkdtemp()))
        gpu.break_at = 300
        assert worker.attempt(call()).failure == "lost"
        operations = gpu.operations
        assert worker.attempt(call()).failure == "lost"
        assert gpu.operations == operations


@check
def a_sweep_takes_no_more_memory_than_reckoned() -> None:
    rows, longest = len(_examples()), max(example.length for example in _examples()) - 1
    with pretended() as gpu, mock.patch("raysweep.studies.substitution.LOGIT_BYTES", 2**12):
        swept = pair(on_gpu())
        token, states = TokenBytes.of_model(swept.tuned), most_states(LAYERS, WINDOWS)
        gpu.forget()
        held, tokens = gpu.live[0], rows * longest
        losses(swept, tokens)
        waiting = tokens * (states * token.state + longest * token.mask)
        reckoned = waiting + token.at_work(tokens, longest, states, tokens) + 3 * 2**12
        assert gpu.peak[0] - held <= reckoned


@check
def a_training_leaves_torchs_settings() -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.fp32_precision, cudnn.benchmark
    try:
        with restored_process_state():
            matmul.fp32_precision = "tf32"
            cudnn.benchmark = not before[1]
        assert (matmul.fp32_precision, cudnn.benchmark) == before
    finally:
        matmul.fp32_precision, cudnn.benchmark = before
