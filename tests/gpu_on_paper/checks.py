"""What raysweep promises of a GPU, as checks of one small architecture: tests run them, and mutants.py shows that each can fail."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch
from accelerate import dispatch_model
from architectures import DECODERS, build_pair
from pretend import Machine, pretended, to_gpu
from streams import late
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raysweep.data.examples import Example
from raysweep.lab.tokenizer import train_tokenizer
from raysweep.models.adapter import Adapter
from raysweep.models.checkpoint import describe
from raysweep.models.stream import StreamedModel
from raysweep.studies.capture import capture_states
from raysweep.studies.generation import generate_text
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
    placed = []
    for model, cut in zip(_models(), (1, 3), strict=True):
        place = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.norm": 1, "lm_head": 1}
        place |= {f"model.layers.{layer}": int(layer >= cut) for layer in range(LAYERS)}
        placed.append(dispatch_model(copy.deepcopy(model), device_map=place, main_device=0, force_hooks=True))
    return placed


def pair(models: Sequence[PreTrainedModel]) -> Pair:
    return Pair(*map(Adapter, models))


def losses(of: Pair) -> np.ndarray:
    return sweep_losses(of, _examples(), WINDOWS, batch_tokens=TOKENS)


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
        losses(swept)  # what both have in common is found out once
        batches = 2
        few = waits(lambda: sweep_losses(swept, _examples(), WINDOWS[:2], batch_tokens=TOKENS), gpu)
        many = waits(lambda: losses(swept), gpu)
        assert many == few <= batches, gpu.waits


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
