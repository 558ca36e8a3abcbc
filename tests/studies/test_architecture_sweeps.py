"""The one-pass sweep on every tested architecture, against the plain way (tests/architectures.py), at two batch budgets.

Windows of one layer and of two cover every kind of layer an architecture has and every change between kinds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from architectures import DECODERS, ENCODERS, WRAPPERS, build, build_pair, plain_losses

from raysweep.data.examples import Example
from raysweep.errors import InputError
from raysweep.models.adapter import Adapter
from raysweep.studies.substitution import Pair, sweep_losses, sweep_windows
from raysweep.studies.windows import windows_of_widths

TOLERANCE = 1e-5
PREDICTING = DECODERS | WRAPPERS


@pytest.mark.parametrize("kind", PREDICTING)
def test_one_pass_gives_the_plain_losses(kind: str, random_examples: Callable[..., list[Example]]) -> None:
    base, tuned = build_pair(PREDICTING[kind])
    pair = Pair(Adapter(base), Adapter(tuned))
    examples = [e for e in random_examples(5) if max(e.tokens) < 317]  # the last few stand for images
    windows = windows_of_widths(pair.n_layers, [1, 2])
    expected = plain_losses(base, tuned, examples, windows, PREDICTING[kind].block_path)
    apart = np.abs(expected[:, None] - expected[None]).max(-1)
    assert apart[~np.eye(len(windows), dtype=bool)].min() > 100 * TOLERANCE, "or agreement would prove nothing"
    for budget in (16, 4096):
        found = sweep_losses(pair, examples, windows, batch_tokens=budget)
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_a_sweep_of_encoders_is_refused(random_examples: Callable[..., list[Example]]) -> None:
    base, tuned = build_pair(ENCODERS["bert"])
    with pytest.raises(
        InputError, match=r"^BertModel does not predict the next token \(it is an encoder, or lacks its"
    ):
        sweep_windows(base, tuned, random_examples(1), [(0, 1)])


def test_a_headless_decoder_cannot_be_swept(random_examples: Callable[..., list[Example]]) -> None:
    model = build(ENCODERS["headless_llama"])
    with pytest.raises(InputError, match=r"^LlamaModel does not predict the next token"):
        sweep_windows(model, model, random_examples(1), [(0, 1)])
