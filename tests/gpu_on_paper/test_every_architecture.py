"""Every tested architecture measured on a pretended GPU, and spread over two: the CPU's figures, and no device ever mixed.

The CPU's figures are compared with plain references in tests/studies. A sample runs in `make test`, all of them in `make soak`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from architectures import DECODERS, ENCODERS, WRAPPERS, build, build_pair
from placing import kinds, spread
from pretend import Machine, to_gpu
from streams import late
from transformers import PreTrainedTokenizerBase

from raysweep.data.examples import Example
from raysweep.models.adapter import Adapter
from raysweep.models.checkpoint import describe
from raysweep.models.stream import StreamedModel
from raysweep.studies.capture import POOLINGS, capture_states
from raysweep.studies.generation import generate_text
from raysweep.studies.removal import Removal
from raysweep.studies.removal_tables import remove_at_layer
from raysweep.studies.streamed import StreamedPair
from raysweep.studies.substitution import Pair, sweep_losses
from raysweep.studies.windows import Window, windows_of_widths

PREDICTING = DECODERS | WRAPPERS
TOKENS = 64
TOLERANCE = 1e-5  # recurrent layers round by the addresses of what they read
SEVERAL_STREAMS = ("gemma3n",)  # of states, and components are removed from one
SHARED = "zamba2"  # its layers share weights: it is not streamed, and on two devices its own forward fails
REMOVALS = [Removal((0,)), Removal((0, 1), "paper", "all", keep_mean=True)]


def in_words(examples: list[Example]) -> list[Example]:
    """Those without the last few tokens, which stand for images in some models."""
    return [e for e in examples if max(e.tokens) < 317]


@pytest.mark.parametrize("kind", kinds(PREDICTING))
def test_a_sweep(kind: str, gpu: Machine, random_examples: Callable[..., list[Example]]) -> None:
    base, tuned = build_pair(PREDICTING[kind])
    examples, pair = in_words(random_examples(5)), Pair(Adapter(base), Adapter(tuned))
    windows = windows_of_widths(pair.n_layers, [1, 2])
    expected = sweep_losses(pair, examples, windows, batch_tokens=TOKENS)
    pair = Pair(Adapter(to_gpu(base)), Adapter(to_gpu(tuned)))
    found = sweep_losses(pair, examples, windows, batch_tokens=TOKENS)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", kinds(PREDICTING, ENCODERS))
def test_a_capture(kind: str, gpu: Machine, random_examples: Callable[..., list[Example]]) -> None:
    model, examples = build((PREDICTING | ENCODERS)[kind]), in_words(random_examples(5))
    expected = [capture_states(Adapter(model), examples, pooling=how, batch_tokens=TOKENS).states for how in POOLINGS]
    adapter = Adapter(to_gpu(model))
    for how, states in zip(POOLINGS, expected, strict=True):
        found = capture_states(adapter, examples, pooling=how, batch_tokens=TOKENS).states
        assert found.device.type == "cpu"
        torch.testing.assert_close(found, states, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", kinds(PREDICTING))
def test_text(
    kind: str, gpu: Machine, random_examples: Callable[..., list[Example]], tokenizer: PreTrainedTokenizerBase
) -> None:
    base, tuned = build_pair(PREDICTING[kind])
    examples, windows = in_words(random_examples(3, longest=12))[:2], [Window(0, 0), Window(0, 2), Window(1, 3)]
    expected = generate_text(Pair(Adapter(base), Adapter(tuned)), tokenizer, examples, windows, new_tokens=4)
    pair = Pair(Adapter(to_gpu(base)), Adapter(to_gpu(tuned)))
    assert generate_text(pair, tokenizer, examples, windows, new_tokens=4) == expected


@pytest.mark.parametrize(
    "kind", kinds({kind: tiny for kind, tiny in PREDICTING.items() if kind not in SEVERAL_STREAMS})
)
def test_a_removal(
    kind: str, gpu: Machine, random_examples: Callable[..., list[Example]], tokenizer: PreTrainedTokenizerBase
) -> None:
    model, examples = build(PREDICTING[kind]), in_words(random_examples(6, longest=12))

    def tables(adapter: Adapter) -> dict[str, pd.DataFrame]:
        return remove_at_layer(adapter, tokenizer, examples, 1, REMOVALS, shown=1, new_tokens=2, batch_tokens=TOKENS)

    expected = tables(Adapter(model))
    found = tables(Adapter(to_gpu(model)))
    for name, table in expected.items():
        pd.testing.assert_frame_equal(found[name], table, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", kinds({kind: tiny for kind, tiny in PREDICTING.items() if kind != SHARED}))
def test_a_streamed_sweep(
    kind: str, gpu: Machine, tmp_path: Path, random_examples: Callable[..., list[Example]]
) -> None:
    base, tuned = build_pair(PREDICTING[kind])
    examples, pair = in_words(random_examples(5)), Pair(Adapter(base), Adapter(tuned))
    windows = windows_of_widths(pair.n_layers, [1, 2])
    expected = sweep_losses(pair, examples, windows, batch_tokens=TOKENS)
    base.save_pretrained(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "tuned")
    with late(gpu) as streams:
        sources = [StreamedModel(describe(str(tmp_path / name)), device="cuda") for name in ("base", "tuned")]
        found = sweep_losses(StreamedPair.of(*sources), examples, windows, batch_tokens=TOKENS)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    assert streams.errors == []


@pytest.mark.parametrize("kind", kinds({kind: tiny for kind, tiny in PREDICTING.items() if kind != SHARED}))
def test_a_sweep_spread_over_two(kind: str, two_gpus: Machine, random_examples: Callable[..., list[Example]]) -> None:
    base, tuned = build_pair(PREDICTING[kind])
    examples, pair = in_words(random_examples(5)), Pair(Adapter(base), Adapter(tuned))
    windows = windows_of_widths(pair.n_layers, [1, 2])
    expected = sweep_losses(pair, examples, windows, batch_tokens=TOKENS)
    pair = Pair(Adapter(spread(base, 1)), Adapter(spread(tuned, 3)))
    assert two_gpus.live[0]
    assert two_gpus.live[1]
    found = sweep_losses(pair, examples, windows, batch_tokens=TOKENS)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
