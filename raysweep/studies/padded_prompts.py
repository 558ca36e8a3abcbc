"""Prompts side by side: which share a batch, and padding on the left for models that read it right.

Some architectures do not: recurrent layers may take padding for text, and rotary tables may depend on the longest row. A model
is tried on the shortest and the longest prompt. If it fails, only prompts of equal length share a batch.

Shapes: B rows, T tokens, V words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from raysweep.data.batches import make_batches
from raysweep.data.examples import Example
from raysweep.errors import InputError
from raysweep.models.rotary import rotary_table
from raysweep.models.transfers import to_device
from raysweep.studies.greedy import greedy_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TRIED_TOKENS = 3
_TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def left_padded(examples: Sequence[Example], filling: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The prompts as one array [B, T], padded on the left with the token `filling`, and a mask that is 0 there; on the CPU."""
    longest = max(example.n_prompt for example in examples)
    tokens = torch.full((len(examples), longest), filling, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, example in enumerate(examples):
        tokens[row, longest - example.n_prompt :] = torch.from_numpy(example.tokens[: example.n_prompt])
        mask[row, longest - example.n_prompt :] = 1
    return tokens, mask


def prompt_batches(
    model: PreTrainedModel,
    device: torch.device,
    examples: Sequence[Example],
    *,
    new_tokens: int,
    batch_tokens: int,
    filling: int,
) -> list[list[int]]:
    """Indices of the examples by batch of at most `batch_tokens` padded tokens, prompt and text together; longest first.

    Prompts of unlike lengths share a batch only if the model reads padding on the left right.
    """
    lengths = [example.n_prompt + new_tokens for example in examples]
    padded = len(set(lengths)) < 2 or 2 * min(lengths) > batch_tokens
    padded = padded or ignores_left_padding(model, device, examples, new_tokens=new_tokens, filling=filling)
    return make_batches(lengths, batch_tokens, None if padded else lengths, math.inf)


@torch.no_grad()
def ignores_left_padding(
    model: PreTrainedModel, device: torch.device, examples: Sequence[Example], *, new_tokens: int, filling: int
) -> bool:
    """Whether the shortest prompt, padded to the longest, has the logits that it has alone, for the first tokens of a text."""
    short, long = (choose(examples, key=lambda example: example.n_prompt) for choose in (min, max))
    config = model.config.get_text_config()
    try:
        if rotary_table(config, short.n_prompt) != rotary_table(config, long.n_prompt + new_tokens):
            return False
    except InputError:  # a table that depends on what the model has read before
        return False
    alone, beside = (
        _first_logits(model, device, batch, min(new_tokens, _TRIED_TOKENS), filling)
        for batch in ([short], [long, short])
    )
    scale = alone.abs().amax()
    return bool(((alone - beside).abs() <= _TOLERANCES.get(model.dtype, 1e-4) * scale).all())


def _first_logits(
    model: PreTrainedModel, device: torch.device, batch: Sequence[Example], n: int, filling: int
) -> torch.Tensor:
    """The logits [n, V] of the last row's next tokens, each of which is taken to be the prompt's last token."""
    logits: list[torch.Tensor] = []
    last = int(batch[-1].tokens[batch[-1].n_prompt - 1])

    def force(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        logits.append(scores[-1].float())
        forced = torch.full_like(scores, -torch.inf)
        forced[:, last] = 0
        return forced

    tokens, mask = (to_device(part, device) for part in left_padded(batch, filling))
    greedy_tokens(model, tokens, mask, new_tokens=n, ends=(), padding=filling, processors=[force])
    return torch.stack(logits)
