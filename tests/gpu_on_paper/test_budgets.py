"""Batches and passes on a pretended GPU fit into its memory, a worker's share of it, or execution.memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import DECODERS, build_pair
from pretend import Machine, pretended, to_gpu
from streams import late

from raysweep.data.examples import Example
from raysweep.errors import InputError
from raysweep.models import memory
from raysweep.models.adapter import Adapter
from raysweep.models.checkpoint import describe
from raysweep.models.stream import StreamedModel
from raysweep.studies import substitution
from raysweep.studies.streamed import StreamedPair
from raysweep.studies.substitution import Pair, sweep_losses
from raysweep.studies.windows import Window, windows_of_widths

LOGITS = 2**16  # so that states count


@pytest.fixture(autouse=True)
def small_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("substitution", "streamed"):
        monkeypatch.setattr(f"raysweep.studies.{module}.LOGIT_BYTES", LOGITS)
    monkeypatch.setattr(memory, "_shares", {})


@pytest.fixture
def examples(random_examples: Callable[..., list[Example]]) -> list[Example]:
    return random_examples(24)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for model, name in zip(build_pair(DECODERS["llama"]), ("base", "tuned"), strict=True):
        model.save_pretrained(tmp_path / name)
    return tmp_path / "base", tmp_path / "tuned"


@pytest.fixture
def late_gpu(gpu: Machine) -> Iterator[Machine]:
    with late(gpu):
        yield gpu


def streamed(folders: tuple[Path, Path], budget: int | None = None) -> StreamedPair:
    base, tuned = (StreamedModel(describe(str(folder)), device="cuda") for folder in folders)
    return StreamedPair.of(base, tuned, budget)


def resident() -> Pair:
    base, tuned = (Adapter(to_gpu(model)) for model in build_pair(DECODERS["llama"]))
    return Pair(base, tuned)


WINDOWS = windows_of_widths(4, [2])


def sizes_tried(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens that batches of a sweep are made of."""
    tried, real = [], substitution.make_batches

    def noted(lengths, budget, kinds):
        tried.append(budget)
        return real(lengths, budget, kinds)

    monkeypatch.setattr(substitution, "make_batches", noted)
    return tried


def swept(pair: Pair, examples: list[Example]) -> np.ndarray:
    return sweep_losses(pair, examples, WINDOWS, batch_tokens=8192)


def test_a_resident_call_has_smaller_batches_on_a_gpu_with_less_memory(
    examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pretended() as large:
        pair = resident()
        held, expected = large.live[0], swept(pair, examples)
        room = (large.peak[0] - held) // 2
    pair = None
    with pretended(memory=held + room) as small:
        pair = resident()
        tried = sizes_tried(monkeypatch)
        np.testing.assert_allclose(swept(pair, examples), expected, rtol=0, atol=1e-5)
        assert tried[0] < 8192
        assert small.peak[0] <= held + room


def test_a_workers_share_counts_as_its_memory(
    examples: list[Example], gpu: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = resident()
    held, expected = gpu.live[0], swept(pair, examples)
    limit = held + (gpu.peak[0] - held) // 2
    memory.hold_to_share("cuda", limit / gpu.memory)
    tried = sizes_tried(monkeypatch)
    gpu.forget()
    np.testing.assert_allclose(swept(pair, examples), expected, rtol=0, atol=1e-5)
    assert tried[0] < 8192
    assert gpu.peak[0] <= limit


@pytest.mark.parametrize("more", [2**19, 2**21])
def test_a_streamed_sweep_keeps_within_its_budget(
    more: int, examples: list[Example], folders: tuple[Path, Path], late_gpu: Machine
) -> None:
    pair = streamed(folders)
    expected, held = swept(pair, examples), late_gpu.live[0]
    pair = StreamedPair.of(*pair.sources, held + more)
    late_gpu.forget()
    np.testing.assert_allclose(swept(pair, examples), expected, rtol=0, atol=1e-5)
    assert held + more // 10 < late_gpu.peak[0] <= held + more


def test_a_budget_that_what_is_there_fills_is_refused_with_the_minimum(
    examples: list[Example], folders: tuple[Path, Path], late_gpu: Machine
) -> None:
    other = torch.empty(10**8, dtype=torch.uint8, device="cuda")  # another model of this process
    pair = streamed(folders, 10**8)
    with pytest.raises(InputError, match=r"^a memory budget of 0\.10 GB is too small: .* need 0\.1[1-9] GB; set exec"):
        swept(pair, examples)
    del other


def test_without_a_gpu_batches_are_as_asked(examples: list[Example], monkeypatch: pytest.MonkeyPatch) -> None:
    base, tuned = (Adapter(model) for model in build_pair(DECODERS["llama"]))
    pair = Pair(base, tuned)
    assert pair.room() is None
    tried = sizes_tried(monkeypatch)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 0)
    sweep_losses(pair, examples, [Window(0, 1)], batch_tokens=8192)
    assert tried == [8192]
