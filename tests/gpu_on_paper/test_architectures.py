"""Every tested architecture measured on a pretended GPU, and spread over two: the CPU's figures, and no device ever mixed.

The CPU's figures are compared with plain references in tests/studies. A sample runs in `make test`, all of them in `make soak`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from architectures import DECODERS, WRAPPERS, build_pair
from pretend import Machine, to_gpu

from raysweep.data.examples import Example
from raysweep.models.adapter import Adapter
from raysweep.studies.substitution import Pair, sweep_losses
from raysweep.studies.windows import windows_of_widths

PREDICTING = DECODERS | WRAPPERS
SAMPLE = ("llama", "gemma3n", "mixtral", "falcon", "bamba")
KINDS = [pytest.param(kind, marks=() if kind in SAMPLE else pytest.mark.soak) for kind in PREDICTING]
TOKENS = 64


def in_words(examples: list[Example]) -> list[Example]:
    """Those without the last few tokens, which stand for images in some models."""
    return [e for e in examples if max(e.tokens) < 317]


@pytest.mark.parametrize("kind", KINDS)
def test_a_sweep_has_the_losses_of_the_cpu(
    kind: str, gpu: Machine, random_examples: Callable[..., list[Example]]
) -> None:
    base, tuned = build_pair(PREDICTING[kind])
    examples, pair = in_words(random_examples(5)), Pair(Adapter(base), Adapter(tuned))
    windows = windows_of_widths(pair.n_layers, [1, 2])
    expected = sweep_losses(pair, examples, windows, batch_tokens=TOKENS)
    pair = Pair(Adapter(to_gpu(base)), Adapter(to_gpu(tuned)))
    np.testing.assert_array_equal(sweep_losses(pair, examples, windows, batch_tokens=TOKENS), expected)
