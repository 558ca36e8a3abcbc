"""Generation: the text that a changed model produces, by really swapping modules and the model's own `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from raysweep.data.examples import Example
from raysweep.studies.interventions import Change
from raysweep.studies.substitution import Pair
from raysweep.studies.verification import changed_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def generate_text(
    pair: Pair, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], change: Change, *, new_tokens: int = 32
) -> list[str]:
    """Greedy continuation of each example's prompt by the changed model, special tokens left out.

    One example at a time, unpadded. Both models are as before when this returns.
    """
    device = pair.frame(change.in_base).device
    with changed_model(pair, change) as model:
        return [greedy_text(model, device, tokenizer, example, new_tokens) for example in examples]


def greedy_text(
    model: PreTrainedModel,
    device: torch.device,
    tokenizer: PreTrainedTokenizerBase,
    example: Example,
    new_tokens: int,
) -> str:
    """Greedy continuation of the example's prompt by the model as it is, special tokens left out."""
    prompt = torch.from_numpy(example.tokens[: example.n_prompt])[None].to(device)
    out = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
    )
    return str(tokenizer.decode(out[0, prompt.shape[1] :], skip_special_tokens=True))
