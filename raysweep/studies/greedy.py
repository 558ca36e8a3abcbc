"""Greedy decoding by raysweep's own settings: the one place that calls a model's `generate`.

A checkpoint's generation config may ask for beams, penalties, bans, forced tokens, sampling and much else, and `generate` fills
whatever a caller leaves open from it. Here none of that counts.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from raysweep.models.text_settings import n_tokens, within

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.no_grad()
def decode_greedily(
    model: PreTrainedModel,
    prompts_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    *,
    new_tokens: int,
    ends: Sequence[int],
    padding: int,
    processors: Sequence[Any] = (),
) -> list[list[int]]:
    """The tokens that the model writes after each prompt, at most `new_tokens`: always the likeliest.

    Arguments are those of `greedy_tokens`. A row stops after the first of the tokens `ends`, which is its last one here.
    """
    written = greedy_tokens(
        model, prompts_BT, mask_BT, new_tokens=new_tokens, ends=ends, padding=padding, processors=processors
    )
    return [_until_end(row, set(ends)) for row in written.tolist()]


@torch.no_grad()
def greedy_tokens(
    model: PreTrainedModel,
    prompts_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    *,
    new_tokens: int,
    ends: Sequence[int],
    padding: int,
    processors: Sequence[Any] = (),
) -> torch.Tensor:
    """The likeliest tokens [B, T] after each prompt, on its device, with `padding` after a row's end.

    Prompts are padded on the left, where the mask is 0. `processors` change the logits first, as transformers' logits processors do. `padding` fills the rest of a row
    that stopped early, and must be a token that the model can read. The model's own settings are as before when this returns.
    """
    from transformers import GenerationConfig, LogitsProcessorList

    if hasattr(model, "get_base_model"):  # PEFT sets generation configs of its own on the model that it wraps
        model = model.get_base_model()
    settings = GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=sorted(ends) or None,
        pad_token_id=padding,
    )
    with _without_generation_config(model):
        out = model.generate(
            prompts_BT,
            attention_mask=mask_BT,
            generation_config=settings,
            logits_processor=LogitsProcessorList(processors),
        )
    written: torch.Tensor = out[:, prompts_BT.shape[1] :]
    return written


def padding_for(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> int:
    """A token id to pad with: the tokenizer's padding, its end or one of `ends`, else 0; one that the model can read."""
    candidates = [tokenizer.pad_token_id, tokenizer.eos_token_id, *ends]
    known = within((number for number in candidates if number is not None), n_tokens(model))
    return next((number for number in candidates if number in known), 0)


@contextmanager
def _without_generation_config(model: PreTrainedModel) -> Iterator[None]:
    """Give the model an empty generation config for a while: `generate` fills what is None in a caller's from the model's."""
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _until_end(written: list[int], ends: set[int]) -> list[int]:
    """The tokens up to the first that ends the text; what follows pads the row."""
    stop = next((place for place, token in enumerate(written, 1) if token in ends), len(written))
    return written[:stop]
