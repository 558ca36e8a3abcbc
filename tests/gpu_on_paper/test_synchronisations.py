"""How often the host waits for the device: never for a block call or a token, and once for a batch that has ended.

Budgets are for raysweep's own lines. What transformers' lines cost is listed in `THEIRS`, so that nothing new goes unseen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import DECODERS, ENCODERS, WRAPPERS, build, build_pair
from placing import kinds, spread
from pretend import Machine, OnGpu, line, to_gpu
from streams import late
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from raysweep.data.batches import make_batches
from raysweep.data.examples import Example
from raysweep.models import directional
from raysweep.models.adapter import Adapter
from raysweep.models.checkpoint import describe
from raysweep.models.stream import StreamedModel
from raysweep.models.surgery import removed
from raysweep.numerics.device_products import device_products
from raysweep.studies import gradient
from raysweep.studies.answers import generate_answers
from raysweep.studies.capture import POOLINGS, Collector, capture_states
from raysweep.studies.generation import generate_text, greedy_text
from raysweep.studies.gradient import first_order
from raysweep.studies.removal import Removal
from raysweep.studies.removal_effects import removal_effects
from raysweep.studies.streamed import StreamedPair
from raysweep.studies.substitution import Pair, Work, sweep_losses
from raysweep.studies.windows import Window, windows_of_widths

PREDICTING = DECODERS | WRAPPERS
TOKENS = 64
Draw = Callable[..., list[Example]]

# Files of transformers' whose lines make the host wait. For each forward around the blocks (a recording, a part of a head call):
FORWARD = {
    "transformers/masking_utils.py",  # whether texts are packed (find_packed_sequence_indices), whether anything is padded
    "transformers/modeling_rope_utils.py",  # how long the longest text is
    "transformers/modeling_utils.py",  # whether padding lacks a mask (warn_if_padding_and_no_attention_mask)
}
# For each call of a block, by the architectures that do it:
BLOCK = {
    "transformers/models/gemma3n/modeling_gemma3n.py": ("gemma3n",),  # an MLP's sparsity, as a tensor (_gaussian_topk)
    "transformers/models/falcon/modeling_falcon.py": ("falcon", "falcon_alibi"),  # a list as an index (_split_heads)
}


def texts(draw: Draw, n: int = 6) -> list[Example]:
    """Examples without the last few tokens, which stand for images in some models, and with several tokens of response."""
    return [e for e in draw(3 * n) if max(e.tokens) < 317][:n]


def on_gpu(kind: str) -> Pair:
    """A pair, and what it has in common known: that is set-up."""
    base, tuned = build_pair(PREDICTING[kind])
    pair = Pair(Adapter(to_gpu(base)), Adapter(to_gpu(tuned)))
    assert pair.same is not None
    return pair


def n_batches(adapter: Adapter, lengths: Sequence[int]) -> int:
    return len(make_batches(lengths, TOKENS, [adapter.table(length) for length in lengths]))


def check_theirs(gpu: Machine, kind: str) -> None:
    """Every line that is not raysweep's is a known one."""
    known = FORWARD | {file for file, architectures in BLOCK.items() if kind in architectures}
    found = {at.partition(":")[0] for _, at in gpu.waits if not at.startswith("raysweep/")}
    assert found <= known, gpu.waits


@pytest.mark.parametrize("kind", kinds(PREDICTING))
def test_a_sweep_waits_once_for_each_batch(kind: str, gpu: Machine, random_examples: Draw) -> None:
    pair, examples, work = on_gpu(kind), texts(random_examples), Work()
    gpu.forget()
    sweep_losses(pair, examples, windows_of_widths(pair.n_layers, [1, 2]), batch_tokens=TOKENS, work=work)
    batches = n_batches(pair.tuned, [example.length - 1 for example in examples])
    assert work.heads > 4 * batches > 4, "there is enough to wait for"
    assert gpu.n_waits(ours=True) <= batches, gpu.waits
    check_theirs(gpu, kind)


@pytest.mark.parametrize("kind", kinds(PREDICTING, ENCODERS))
def test_a_capture_waits_once_for_each_batch(kind: str, gpu: Machine, random_examples: Draw) -> None:
    adapter, examples = Adapter(to_gpu(build((PREDICTING | ENCODERS)[kind]))), texts(random_examples)
    batches = n_batches(adapter, [example.n_prompt for example in examples])
    for pooling in POOLINGS:
        gpu.forget()
        capture_states(adapter, examples, pooling=pooling, batch_tokens=TOKENS)  # type: ignore[arg-type]
        assert gpu.n_waits(ours=True) <= batches, (pooling, gpu.waits)
        check_theirs(gpu, kind)


def test_a_sweep_that_captures_waits_once_for_each_batch_of_both(gpu: Machine, random_examples: Draw) -> None:
    pair, examples = on_gpu("llama"), texts(random_examples)
    collector = Collector(pair.base, examples, "last", TOKENS)
    gpu.forget()
    sweep_losses(pair, examples, windows_of_widths(4, [1]), batch_tokens=TOKENS, collector=collector)
    assert gpu.n_waits(ours=True) <= 2 * n_batches(pair.tuned, [example.length - 1 for example in examples]), gpu.waits
    assert collector.captured().states.shape == (4, len(examples), 16)


def test_a_sweep_spread_over_two_waits_once_for_each_batch(two_gpus: Machine, random_examples: Draw) -> None:
    base, tuned = build_pair(DECODERS["llama"])
    pair, examples = Pair(Adapter(spread(base, 1)), Adapter(spread(tuned, 3))), texts(random_examples)
    assert pair.same is not None
    two_gpus.forget()
    sweep_losses(pair, examples, windows_of_widths(4, [1, 2]), batch_tokens=TOKENS)
    assert two_gpus.n_waits(ours=True) <= n_batches(pair.tuned, [e.length - 1 for e in examples]), two_gpus.waits


def test_a_streamed_sweep_waits_once_for_each_batch(gpu: Machine, tmp_path: Path, random_examples: Draw) -> None:
    examples = texts(random_examples)
    for name, model in zip(("base", "tuned"), build_pair(DECODERS["llama"]), strict=True):
        model.save_pretrained(tmp_path / name)
    with late(gpu) as streams:
        sources = [StreamedModel(describe(str(tmp_path / name)), device="cuda") for name in ("base", "tuned")]
        pair = StreamedPair.of(*sources)
        gpu.forget()
        sweep_losses(pair, examples, windows_of_widths(4, [1, 2]), batch_tokens=TOKENS)
    assert streams.errors == []
    assert gpu.n_waits(ours=True) <= n_batches(pair.tuned, [e.length - 1 for e in examples]), gpu.waits


def test_a_removal_waits_once_for_each_batch_of_its_two_passes(gpu: Machine, random_examples: Draw) -> None:
    adapter, examples = Adapter(to_gpu(build(DECODERS["llama"]))), texts(random_examples, 9)
    removals = [Removal((0,)), Removal((0, 1), "paper", "all", keep_mean=True), Removal((1,), keep_mean=True)]
    gpu.forget()
    removal_effects(adapter, examples, 1, removals, batch_tokens=TOKENS)
    assert gpu.n_waits(ours=True) <= 2 * n_batches(adapter, [e.length - 1 for e in examples]), gpu.waits
    check_theirs(gpu, "llama")


def waits_by_token(gpu: Machine, write: Callable[[int], object]) -> tuple[int, float, float]:
    """How often raysweep's lines make the host wait for a text; and for each further token, theirs and transformers'."""
    found = []
    for new_tokens in (4, 12):
        gpu.forget()
        write(new_tokens)
        found.append((gpu.n_waits(ours=True), gpu.n_waits()))
    (ours, total), (more_ours, more_total) = found
    by_ours = (more_ours - ours) / 8
    return ours, by_ours, (more_total - total) / 8 - by_ours


class _Endless:
    """A tokenizer whose texts never end, so that all have as many tokens."""

    pad_token_id, eos_token_id = 0, None

    def decode(self, tokens: Sequence[int], **_: Any) -> str:
        return " ".join(map(str, tokens))


def test_text_waits_for_a_token_only_where_generate_does(gpu: Machine, random_examples: Draw) -> None:
    """Which asks after each token whether all texts have ended."""
    pair, examples = on_gpu("llama"), texts(random_examples)[:2]
    windows = [Window(0, 0), Window(0, 2), Window(1, 3)]
    tokenizer: Any = _Endless()

    def write(new_tokens: int) -> None:
        generate_text(pair, tokenizer, examples, windows, new_tokens=new_tokens)

    assert waits_by_token(gpu, write) == (len(examples), 0, len(examples))


def test_a_text_without_components_waits_for_a_token_only_where_generate_does(
    gpu: Machine, random_examples: Draw
) -> None:
    adapter, example = Adapter(to_gpu(build(DECODERS["llama"]))), texts(random_examples)[0]
    tokenizer: Any = _Endless()

    def write(new_tokens: int) -> None:
        with removed(adapter, 1, np.eye(2, 16), mean_D=np.ones(16)):
            greedy_text(adapter.model, adapter.device, tokenizer, example, new_tokens)

    assert waits_by_token(gpu, write) == (1, 0, 1)


def test_sampled_answers_wait_for_a_token_only_where_generate_does(gpu: Machine, random_examples: Draw) -> None:
    """Which also asks, as prompts of unlike lengths are padded, whether anything is."""
    model, examples = to_gpu(build(DECODERS["llama"])), texts(random_examples)
    tokenizer: Any = _Endless()

    def write(new_tokens: int) -> None:
        generate_answers(model, tokenizer, examples, new_tokens=new_tokens, temperature=1.0, top_p=0.9)  # type: ignore[arg-type]

    assert waits_by_token(gpu, write) == (1, 0, 2)


def test_similarity_on_a_device_waits_at_its_end_alone(gpu: Machine) -> None:
    for layers, tile in ((2, 40), (6, 7)):
        states = [OnGpu(torch.randn(40, 8), torch.device("cuda:0")) for _ in range(layers)]
        gpu.forget()
        device_products(states, tile)
        assert gpu.n_waits() == 3


class _Reads(TorchDispatchMode):
    """Counts where raysweep's lines hand a tensor's values to the host: on a device, the host would wait each time."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        reads = func in (aten._local_scalar_dense.default, aten.equal.default, aten.bincount.default)
        self.count += reads and line().startswith("raysweep/")
        return func(*args, **(kwargs or {}))


class _Conversions(TorchFunctionMode):
    """The same of what torch does without an operation of its own; `at_hand` are on the host already."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.at_hand = 0, set[int]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.cpu):
            self.count += id(args[0]) not in self.at_hand
        return func(*args, **(kwargs or {}))


@contextmanager
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """How often the host reads tensors; `to_host` reads once, whatever it brings."""
    calls: list[list[torch.Tensor]] = []
    with _Reads() as operations, _Conversions() as conversions:

        def to_host(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            calls.append([tensor.detach() for tensor in tensors])
            conversions.at_hand |= set(map(id, calls[-1]))
            return calls[-1]

        for module in (gradient, directional):
            monkeypatch.setattr(module, "to_host", to_host, raising=False)
        yield lambda: operations.count + conversions.count + len(calls)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_a_gradient_estimate_waits_once_for_each_batch(
    share: float, random_examples: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU: gradients cannot be taken of pretended tensors. What is learnt once for each layer cancels out."""
    base, tuned = build_pair(DECODERS["llama"])
    pair, examples = Pair(Adapter(base), Adapter(tuned)), [e for e in texts(random_examples, 8) if e.length > 12][:4]
    assert pair.same is not None
    found = []
    for budget in (10**4, 1):  # one batch, and one for each example
        with reads(monkeypatch) as count:
            first_order(pair, examples, ("layer", "mlp"), share=share, batch_tokens=budget)
            found.append(count())
    assert found[1] - found[0] == len(examples) - 1


def test_the_modules_that_differ_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    base, tuned = build_pair(DECODERS["llama"])
    ours, theirs = Adapter(tuned).blocks[0], Adapter(base).blocks[0]
    theirs.mlp.load_state_dict(ours.mlp.state_dict())
    with _Reads() as operations:
        monkeypatch.setattr(directional, "to_host", lambda tensors: [torch.stack(list(tensors)).tolist()][0])
        found = directional.differing(ours, theirs)
    assert operations.count == 0
    assert found == {n for n in directional.owners(ours) if not n.startswith("mlp.")}
