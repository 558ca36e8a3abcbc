"""Every tested architecture measured: swept, captured, and made to speak under a window, each against the plain way.

The plain way (tests/architectures.py, and hooks on the blocks) runs the model's own forward on one unpadded example.
Windows of one layer and of two cover every kind of layer an architecture has and every change between kinds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from architectures import DECODERS, ENCODERS, WRAPPERS, build, build_pair, plain_losses, put_back
from transformers import PreTrainedTokenizerBase

from raysweep.data.examples import Example
from raysweep.errors import InputError
from raysweep.models.adapter import Adapter
from raysweep.models.blocks import find_blocks
from raysweep.notebook import capture, sweep_windows
from raysweep.studies.generation import generate_text
from raysweep.studies.substitution import Pair, sweep_losses
from raysweep.studies.windows import Window, windows_of_widths

TOLERANCE = 1e-5
PREDICTING = DECODERS | WRAPPERS


def in_words(examples: list[Example]) -> list[Example]:
    """Those without the last few tokens, which stand for images in some models."""
    return [e for e in examples if max(e.tokens) < 317]


@pytest.mark.parametrize("kind", PREDICTING)
def test_one_pass_gives_the_plain_losses(kind: str, random_examples: Callable[..., list[Example]]) -> None:
    base, tuned = build_pair(PREDICTING[kind])
    pair = Pair(Adapter(base), Adapter(tuned))
    examples = in_words(random_examples(5))
    windows = windows_of_widths(pair.n_layers, [1, 2])
    expected = plain_losses(base, tuned, examples, windows, PREDICTING[kind].block_path)
    apart = np.abs(expected[:, None] - expected[None]).max(-1)
    assert apart[~np.eye(len(windows), dtype=bool)].min() > 100 * TOLERANCE, "or agreement would prove nothing"
    for budget in (16, 4096):
        found = sweep_losses(pair, examples, windows, batch_tokens=budget)
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", PREDICTING)
def test_captured_states_are_what_the_blocks_put_out(kind: str, random_examples: Callable[..., list[Example]]) -> None:
    model = build(PREDICTING[kind])
    examples = in_words(random_examples(5))
    seen: list[torch.Tensor] = []
    hooks = [
        block.register_forward_hook(lambda m, a, out: seen.append(out if isinstance(out, torch.Tensor) else out[0]))
        for block in find_blocks(model)
    ]
    rows = []
    for example in examples:
        seen.clear()
        with torch.no_grad():
            model(input_ids=torch.from_numpy(example.tokens[: example.n_prompt])[None], use_cache=False)
        rows.append(torch.stack([states[..., 0, -1, :].flatten() for states in seen]))  # streams one behind the other
    for hook in hooks:
        hook.remove()
    expected = torch.stack(rows, dim=1)
    for budget in (1, 4096):
        found = capture(model, examples, batch_tokens=budget)
        scale = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("kind", PREDICTING)
def test_text_under_windows_is_what_the_substituted_models_write(
    kind: str, random_examples: Callable[..., list[Example]], tokenizer: PreTrainedTokenizerBase
) -> None:
    base, tuned = build_pair(PREDICTING[kind])
    example = in_words(random_examples(3, longest=12))[0]
    windows, expected = [Window(0, 0), Window(0, 2), Window(1, 3), Window(0, 4)], []
    for window in windows:
        model = put_back(base, tuned, window, PREDICTING[kind].block_path)
        ids = example.tokens[: example.n_prompt].tolist()
        for _ in range(5):  # greedy decoding by itself, without a cache
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
            if ids[-1] == model.generation_config.eos_token_id:
                break
        expected.append([tokenizer.decode(ids[example.n_prompt :], skip_special_tokens=True)])
    assert len({text for (text,) in expected}) > 1, "or agreement would prove nothing"
    pair = Pair(Adapter(base), Adapter(tuned))
    assert generate_text(pair, tokenizer, [example], [Window(1, 3)], new_tokens=5) == [expected[2]]
    assert generate_text(pair, tokenizer, [example], windows, new_tokens=5) == expected


def test_a_sweep_of_encoders_is_refused(random_examples: Callable[..., list[Example]]) -> None:
    base, tuned = build_pair(ENCODERS["bert"])
    with pytest.raises(
        InputError, match=r"^BertModel does not predict the next token \(it is an encoder, or lacks its"
    ):
        sweep_windows(base, tuned, random_examples(1), [(0, 1)])


def test_a_headless_decoder_cannot_be_swept(random_examples: Callable[..., list[Example]]) -> None:
    base, tuned = (build(ENCODERS["headless_llama"], seed) for seed in (0, 1))
    with pytest.raises(InputError, match=r"^LlamaModel does not predict the next token"):
        sweep_windows(base, tuned, random_examples(1), [(0, 1)])
