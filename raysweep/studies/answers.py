"""Answers: what a model writes behind prompts, greedily or sampled, many prompts at a time.

Sampling draws for every example from a stream of its own, so that what is written does not depend on which others share its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from raysweep.data.batches import make_batches
from raysweep.data.examples import Example

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
        return scaled + torch.from_numpy(noise).to(scaled.device)


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
) -> list[str]:
    """At most `new_tokens` tokens of text behind each example's prompt, special tokens left out, in the examples' order.

    A text ends where the model writes its end of sequence. At `temperature` 0 the likeliest token is taken; else tokens are
    sampled among the likeliest that together have the probability `top_p`, by `seed` and the example's id alone. Prompts are
    padded on the left to batches of at most `batch_tokens` tokens, prompt and text together; where two tokens are as likely
    up to rounding, another batch may choose the other. The model is to be in evaluation mode.
    """
    from transformers import LogitsProcessorList

    ends = model_ends(model) or {t for t in [tokenizer.eos_token_id] if t is not None}
    filling = next((t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None), 0)
    texts = [""] * len(examples)
    for indices in make_batches([example.n_prompt + new_tokens for example in examples], batch_tokens):
        chosen = [examples[i] for i in indices]
        longest = max(example.n_prompt for example in chosen)
        tokens = torch.full((len(chosen), longest), filling, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, example in enumerate(chosen):
            tokens[row, longest - example.n_prompt :] = torch.from_numpy(example.tokens[: example.n_prompt])
            mask[row, longest - example.n_prompt :] = 1
        processors: Any = LogitsProcessorList()
        if temperature:
            streams = [np.random.default_rng([seed, example.id]) for example in chosen]
            processors.append(_Sampled(streams, temperature, top_p))
        out = model.generate(
            tokens.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=new_tokens,
            do_sample=False,
            num_beams=1,
            logits_processor=processors,
            eos_token_id=sorted(ends) or None,
            pad_token_id=filling,
        )
        for index, written in zip(indices, out[:, longest:].tolist(), strict=True):
            stop = next((at for at, token in enumerate(written) if token in ends), len(written))
            texts[index] = str(tokenizer.decode(written[:stop], skip_special_tokens=True))
    return texts


def model_ends(model: PreTrainedModel) -> set[int]:
    """The tokens at which the model's own `generate` ends a text."""
    told = model.generation_config.eos_token_id if model.generation_config is not None else None
    if told is None:
        return set()
    return set(told) if isinstance(told, (list, tuple)) else {int(told)}
