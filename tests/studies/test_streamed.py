"""Streamed sweeps: the resident ones' figures, each layer read once a pass, and nothing left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import DECODERS, WRAPPERS, build_pair, plain_losses

from raysweep.data.examples import Example
from raysweep.errors import InputError
from raysweep.models.adapter import Adapter
from raysweep.models.checkpoint import describe
from raysweep.models.loading import load_model
from raysweep.models.prefetch import THREAD
from raysweep.models.stream import StreamedModel
from raysweep.models.streaming import streamed_layers
from raysweep.studies.capture import Collector, Pooling, capture_states
from raysweep.studies.passes import Pass, group_passes, most_states
from raysweep.studies.schedule import schedule
from raysweep.studies.streamed import StreamedPair
from raysweep.studies.substitution import Pair, sweep_losses
from raysweep.studies.windows import UNTOUCHED, Window, windows_of_widths

PREDICTING = DECODERS | WRAPPERS
SHARED = "zamba2"


def saved(kind: str, folder: Path) -> tuple[Path, Path]:
    for model, name in zip(build_pair(PREDICTING[kind]), ("base", "tuned"), strict=True):
        model.save_pretrained(folder / name, max_shard_size="30KB")
    return folder / "base", folder / "tuned"


def streamed(folders: tuple[Path, Path], memory: int | None = None) -> StreamedPair:
    base, tuned = (StreamedModel(describe(str(folder))) for folder in folders)
    return StreamedPair.of(base, tuned, memory)


def no_thread() -> bool:
    return not any(thread.name.startswith(THREAD) for thread in threading.enumerate())


@pytest.mark.parametrize("kind", [kind for kind in PREDICTING if kind != SHARED])
def test_a_streamed_sweep_gives_the_resident_losses_and_those_of_the_plain_reference(
    kind: str, tmp_path: Path, random_examples: Callable[..., list[Example]]
) -> None:
    folders = saved(kind, tmp_path)
    examples = [e for e in random_examples(5) if max(e.tokens) < 317]
    resident = Pair(*(Adapter(load_model(describe(str(folder)))) for folder in folders))
    pair = streamed(folders)
    windows = windows_of_widths(pair.n_layers, [1, 2])
    for budget in (16, 4096):
        expected = sweep_losses(resident, examples, windows, batch_tokens=budget)
        before = pair.bytes_read
        found = sweep_losses(pair, examples, windows, batch_tokens=budget)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
        assert pair.bytes_read - before == sum(source.decoder_bytes for source in pair.sources)
    assert no_thread()
    base, tuned = build_pair(PREDICTING[kind])
    plain = plain_losses(base, tuned, examples[:2], windows, PREDICTING[kind].block_path)
    np.testing.assert_allclose(found[:, :2], plain, rtol=0, atol=1e-5)


def test_layers_that_share_weights_are_refused_by_name(tmp_path: Path) -> None:
    folders = saved(SHARED, tmp_path)
    with pytest.raises(InputError, match=r"\(Zamba2ForCausalLM\) cannot be streamed: its layers .*share weights"):
        StreamedModel(describe(str(folders[0])))


def test_each_pass_reads_each_layer_once_and_none_that_it_does_not_need(
    tmp_path: Path, random_examples: Callable[..., list[Example]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = streamed(saved("llama", tmp_path))
    examples = random_examples(6)
    whole = windows_of_widths(4, [2])
    monkeypatch.setattr(
        StreamedPair, "passes", lambda self, batches, *_: [Pass((0, 1)), Pass(tuple(range(2, len(batches))))]
    )
    before = pair.bytes_read
    in_two = sweep_losses(pair, examples, whole, batch_tokens=24)
    assert pair.bytes_read - before == 2 * sum(source.decoder_bytes for source in pair.sources)
    monkeypatch.undo()
    np.testing.assert_array_equal(in_two, sweep_losses(pair, examples, whole, batch_tokens=24))
    before = pair.sources[0].files.bytes_read
    sweep_losses(pair, examples, [UNTOUCHED, Window(1, 3)])
    assert pair.sources[0].files.bytes_read - before == pair.sources[0].decoder_bytes // 2


@pytest.mark.parametrize("kind", ["llama", "gemma3n", "qwen3_next"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_capture_and_sweep_share_each_layer_of_the_base(
    kind: str, pooling: Pooling, tmp_path: Path, random_examples: Callable[..., list[Example]]
) -> None:
    pair = streamed(saved(kind, tmp_path))
    examples = random_examples(6)
    windows = [UNTOUCHED, Window(2, 3)]  # of the base one layer alone is swept
    for chosen in (examples, examples[2:4]):
        collector = Collector(pair.base, chosen, pooling, 64)
        before = [source.files.bytes_read for source in pair.sources]
        losses = sweep_losses(pair, examples, windows, batch_tokens=64, collector=collector)
        read = [source.files.bytes_read - n for source, n in zip(pair.sources, before, strict=True)]
        assert read == [source.decoder_bytes for source in pair.sources]
        np.testing.assert_array_equal(losses, sweep_losses(pair, examples, windows, batch_tokens=64))
        alone = capture_states(
            Adapter(load_model(describe(str(tmp_path / "base")))), chosen, pooling=pooling, batch_tokens=64
        )
        captured = collector.captured()
        np.testing.assert_allclose(captured.states, alone.states, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(captured.example_ids, alone.example_ids)
        np.testing.assert_array_equal(captured.token_pos, alone.token_pos)


def test_layers_of_a_pair_of_one_checkpoint_are_not_overwritten_while_they_are_used(tmp_path: Path) -> None:
    folder = str(saved("llama", tmp_path)[0])
    model, weights = StreamedModel(describe(folder)), load_model(describe(folder)).state_dict()
    pair = StreamedPair.of(model, model)
    steps = schedule(pair.n_layers, [UNTOUCHED, Window(0, 1)]).steps
    before = pair.sources[0].files.bytes_read
    for step, blocks in zip(steps, pair.layers(steps, all_of_base=True), strict=True):
        time.sleep(0.05)  # the next one is on its way
        for name, value in blocks[0].named_parameters():
            assert torch.equal(value, weights[f"{pair.base.block_path}.{step.layer}.{name}"]), (step.layer, name)
    assert pair.sources[0].files.bytes_read - before == model.decoder_bytes


def test_a_layers_weights_are_in_memory_while_it_is_used_only(tmp_path: Path) -> None:
    model = StreamedModel(describe(str(saved("llama", tmp_path)[0])))
    slots = {slot.host.data_ptr() for slot in model._slots}
    size = model.layer_bytes
    for layer, [block] in enumerate(streamed_layers([[(model, i)] for i in range(4)])):
        filled = [i for i, other in enumerate(model.adapter.blocks) if not next(other.parameters()).is_meta]
        assert filled == [layer]
        assert all(any(s <= p.data_ptr() < s + size for s in slots) for p in block.parameters())
    assert all(weight.is_meta for block in model.adapter.blocks for weight in block.parameters())


def test_giving_up_leaves_no_thread_and_no_weights(tmp_path: Path) -> None:
    model = StreamedModel(describe(str(saved("llama", tmp_path)[0])))
    with closing(streamed_layers([[(model, i)] for i in range(4)])) as layers:
        next(layers)
    assert no_thread()
    assert all(weight.is_meta for block in model.adapter.blocks for weight in block.parameters())
    assert len(list(streamed_layers([[(model, i)] for i in range(4)]))) == 4, "and it can be used again"


def test_a_file_cut_short_meanwhile_is_told_with_its_tensor(
    tmp_path: Path, random_examples: Callable[..., list[Example]]
) -> None:
    base, tuned = build_pair(DECODERS["llama"])
    base.save_pretrained(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "tuned")
    pair = streamed((tmp_path / "base", tmp_path / "tuned"))
    path = tmp_path / "tuned" / "model.safetensors"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(InputError, match=r"tuned/model.safetensors: tensor model\.layers\.\d\.\S+ ends at byte \d+"):
        sweep_losses(pair, random_examples(2), windows_of_widths(4, [1]))
    assert no_thread()


def test_too_small_a_budget_says_the_least_that_does(
    tmp_path: Path, random_examples: Callable[..., list[Example]]
) -> None:
    pair = streamed(saved("llama", tmp_path), memory=10**6)
    with pytest.raises(InputError, match=r"^a memory budget of 0\.01 GB is too small: .* need \d+\.\d\d GB; set exec"):
        sweep_losses(pair, random_examples(2), windows_of_widths(4, [1]))


def test_passes_are_runs_of_batches_that_fit() -> None:
    assert group_passes([3, 3, 3, 9, 1], 7) == [[0, 1], [2], [3], [4]]
    assert group_passes([], 7) == []


def test_states_at_a_time_are_those_of_the_widest_step() -> None:
    assert most_states(4, [UNTOUCHED]) == 1
    assert most_states(4, windows_of_widths(4, [1])) == 6  # four windows, [0, 4) and the trunk
