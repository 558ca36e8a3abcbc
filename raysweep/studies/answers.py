"""Answers: what a model writes behind prompts, greedily or sampled, many prompts at a time.

Sampling draws for every example from a stream of its own, so that what is written does not depend on which others share its batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from raysweep.data.batches import make_batches
from raysweep.data.examples import Example
from raysweep.models.text_settings import end_tokens_of_model
from raysweep.models.transfers import to_device
from raysweep.studies.greedy import decode_greedily, padding_for
from raysweep.studies.padded_prompts import left_padded

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class _Sampled:
    """A logits processor: Gumbel noise is added, so that the largest is a sample of their softmax. Each row has its own stream."""

    def __init__(self, streams: Sequence[np.random.Generator], temperature: float, top_p: float) -> None:
        self._streams, self._temperature, self._top_p = streams, temperature, top_p

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scaled = scores.double() / self._temperature
        if self._top_p < 1:
            scaled = scaled.masked_fill(~_likeliest(scaled, self._top_p), -torch.inf)
        noise = np.stack([stream.gumbel(size=scores.shape[1]) for stream in self._streams])
        return scaled + to_device(torch.from_numpy(noise), scaled.device)


def _likeliest(scores: torch.Tensor, top_p: float) -> torch.Tensor:
    """Which tokens [B, V] are the fewest of the likeliest that together have at least the probability `top_p`."""
    ordered, places = scores.softmax(dim=-1).sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, places, before < top_p)


@torch.no_grad()
def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_tokens: int = 8192,
    ends: Sequence[int] | None = None,
) -> list[str]:
    """At most `new_tokens` tokens of text behind each example's prompt, special tokens left out, in the examples' order.

    A text ends before the first of the tokens `ends`, by default the model's own. At `temperature` 0 the likeliest token is taken; else tokens are
    sampled among the likeliest that together have the probability `top_p`, by `seed` and the example's id alone. Prompts are
    padded on the left to batches of at most `batch_tokens` tokens, prompt and text together; where two tokens are as likely
    up to rounding, another batch may choose the other. The model is to be in evaluation mode.
    """
    if ends is None:
        ends = end_tokens_of_model(model, tokenizer)
    filling = padding_for(model, tokenizer, ends)
    texts = [""] * len(examples)
    lengths = [example.n_prompt + new_tokens for example in examples]
    for indices in make_batches(
        lengths, batch_tokens, padding=math.inf
    ):  # every batch reads the weights for each token
        chosen = [examples[i] for i in indices]
        tokens, mask = left_padded(chosen, filling)
        processors: list[Any] = []
        if temperature:
            streams = [np.random.default_rng([seed, example.id]) for example in chosen]
            processors.append(_Sampled(streams, temperature, top_p))
        written = decode_greedily(
            model,
            to_device(tokens, model.device),
            to_device(mask, model.device),
            new_tokens=new_tokens,
            ends=ends,
            padding=filling,
            processors=processors,
        )
        for index, answer in zip(indices, written, strict=True):
            text = answer[:-1] if answer and answer[-1] in ends else answer
            texts[index] = str(tokenizer.decode(text, skip_special_tokens=True))
    return texts
