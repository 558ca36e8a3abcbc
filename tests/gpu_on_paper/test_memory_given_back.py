"""Memory of the pretended GPU after a sweep that ran out of it, and while it is repeated, with the collector off."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest
import torch
from pretend import Machine, to_gpu
from transformers import PreTrainedModel

from raysweep.data.examples import Example
from raysweep.models.adapter import Adapter
from raysweep.models.release import drop_locals
from raysweep.studies.substitution import Pair, sweep_losses
from raysweep.studies.windows import Window


@pytest.fixture(autouse=True)
def _no_collections() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("at", [1, 10, 60])
def test_a_sweep_that_runs_out_of_memory_holds_none_of_it(
    at: int,
    gpu: Machine,
    tiny_pair: Callable[..., tuple[PreTrainedModel, PreTrainedModel]],
    random_examples: Callable[..., list[Example]],
) -> None:
    base, tuned = (to_gpu(model) for model in tiny_pair("llama", 3))
    pair, windows = Pair(Adapter(base), Adapter(tuned)), [Window(0, 0), Window(0, 2)]
    before = dict(gpu.live)
    gpu.fail_at = gpu.allocations + at
    short = False
    try:
        sweep_losses(pair, random_examples(4), windows, batch_tokens=64)
    except torch.OutOfMemoryError as error:  # it is gone after this, as it is when a worker tries again
        short = True
        drop_locals(error)
    assert short
    assert dict(gpu.live) == before
