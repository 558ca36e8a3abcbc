"""A streamed model's start: no more work for a deeper model, and stand-in values that are sound in every dtype."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import DECODERS, build
from torch.utils._python_dispatch import TorchDispatchMode

from raysweep.models import stream
from raysweep.models.checkpoint import describe
from raysweep.models.stream import StreamedModel


class Written(TorchDispatchMode):
    """Counts values drawn, copied and computed, off the device `meta`. Views and memory without values are no work."""

    def __init__(self) -> None:
        super().__init__()
        self.values: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        work = not (func.is_view or func in (torch.ops.aten.empty.memory_format, torch.ops.aten.detach.default))
        if work and isinstance(out, torch.Tensor) and not out.is_meta:
            self.values[str(func)] += out.numel()
        return out


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """start(kind, dtype, times): a streamed model with its layers repeated so often, and the work until its probe.

    Also every layer's values as the probe finds them, by name.
    """

    def make(kind: str, dtype: str = "float32", times: int = 1):
        tiny = DECODERS[kind]
        sizes = dict(tiny.sizes)
        sizes["num_hidden_layers"] *= times
        if "layer_types" in sizes:
            sizes["layer_types"] = sizes["layer_types"] * times
        folder = tmp_path / f"{kind}-{times}"
        if not folder.exists():
            build(replace(tiny, sizes=sizes)).save_pretrained(folder)
        found, work = {}, {}
        written, adapter = Written(), stream.Adapter

        def probe(model):
            work.update(written.values)
            found.update({n: v.clone() for n, v in model.state_dict().items() if n.startswith(f"{tiny.block_path}.")})
            return adapter(model)

        with monkeypatch.context() as patched, written:
            patched.setattr(stream, "Adapter", probe)
            model = StreamedModel(describe(str(folder)), dtype=dtype)
        return model, work, found

    return make


@pytest.mark.parametrize(("kind", "dtype"), [("llama", "float32"), ("qwen3_next", "bfloat16")])
def test_starting_draws_and_writes_no_more_for_a_model_four_times_as_deep(start, kind: str, dtype: str) -> None:
    model, work, _ = start(kind, dtype)
    deep, same_work, _ = start(kind, dtype, times=4)
    assert deep.n_layers == 4 * model.n_layers
    assert work
    assert same_work == work
    assert deep.layer_bytes == model.layer_bytes


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["gpt_oss", "deepseek_v3", "nemotron_h"])
def test_stand_ins_are_small_in_layers_of_several_kinds_and_dtypes(start, kind: str, dtype: str) -> None:
    """A value of one dtype read as another may be NaN."""
    model, _, found = start(kind, dtype)
    assert len(found) > model.n_layers
    for name, value in found.items():
        if value.is_floating_point():
            assert value.abs().max() < 0.2, f"{name} ({value.dtype})"  # not NaN either
            assert value.numel() < 2 or value.std() > 0
        else:
            assert not value.any(), name


def test_layers_have_their_values_of_a_dtype_in_the_same_part_of_a_slot(start) -> None:
    model, _, _ = start("deepseek_v3", "bfloat16")
    regions = model._regions
    assert list(regions) == [torch.bfloat16, torch.float32]
    for places in model._places:
        at = sorted((p.start, p.start + p.empty.numel() * p.dtype.itemsize, p.dtype) for p in places.values())
        assert all(stop <= start for (_, stop, _), (start, _, _) in pairwise(at))
        assert all(start in regions[dtype] and stop <= regions[dtype].stop for start, stop, dtype in at)
