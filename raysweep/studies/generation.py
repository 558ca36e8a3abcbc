"""Generation: the text that a changed model produces, by actually swapping modules and greedy decoding (greedy.py).

Changes go through the model together, a row each: in decoding, reading a layer's weights is what takes the time, and two
versions of it serve all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from raysweep.data.examples import Example
from raysweep.models.forked import ForkedBlock, Opened, UnknownCacheError
from raysweep.models.surgery import substitute
from raysweep.models.text_settings import EndsOfPair, end_tokens_of_model
from raysweep.models.transfers import to_device
from raysweep.studies.decoding import rows_at_once, together
from raysweep.studies.greedy import decode_greedily, padding_for
from raysweep.studies.interventions import Change
from raysweep.studies.substitution import Pair
from raysweep.studies.verification import changed_model
from raysweep.studies.versions import version_of
from raysweep.studies.windows import TUNED, Version

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def generate_text(
    pair: Pair,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    changes: Sequence[Change],
    *,
    new_tokens: int = 32,
    batch_tokens: int = 8192,
    ends: EndsOfPair | None = None,
) -> list[list[str]]:
    """Greedy continuation of each example's prompt under each change, special tokens left out: [change][example].

    A text ends with the first of the tokens `ends` of the model whose embedding and head are used, by default that model's own.
    One example at a time, unpadded, by as many changed models at once as keep at most `batch_tokens` tokens (decoding.py). Where
    two tokens are as likely up to rounding, other changes beside may choose the other. Both models are as before when this returns.
    """
    texts: list[list[str]] = [[] for _ in changes]
    rows = rows_at_once(examples, new_tokens, batch_tokens)
    for places in together(pair.n_layers, changes, rows):
        chosen = [changes[place] for place in places]
        for example in examples:
            for place, text in zip(places, _texts(pair, tokenizer, example, chosen, new_tokens, ends), strict=True):
                texts[place].append(text)
    return texts


def _texts(
    pair: Pair,
    tokenizer: PreTrainedTokenizerBase,
    example: Example,
    changes: Sequence[Change],
    new_tokens: int,
    ends: EndsOfPair | None,
) -> list[str]:
    in_base = changes[0].in_base
    frame = pair.frame(in_base)
    own = end_tokens_of_model(frame.model, tokenizer) if ends is None else ends.of(in_base)
    if len(changes) > 1:
        try:
            with substitute(frame.blocks, nn.ModuleList(_forks(pair, changes)), range(pair.n_layers)):
                return _greedy_texts(frame.model, frame.device, tokenizer, example, new_tokens, len(changes), own)
        except UnknownCacheError:
            pass  # then one after the other
    texts = []
    for change in changes:
        with changed_model(pair, change) as model:
            texts.append(greedy_text(model, frame.device, tokenizer, example, new_tokens, own))
    return texts


def _plain(version: Version) -> Version:
    return TUNED if version.share == 0 else version


def _forks(pair: Pair, changes: Sequence[Change]) -> list[nn.Module]:
    """The block of each layer that gives each change's row the layer in its version."""
    blocks: list[nn.Module] = []
    for layer, (tuned, base) in enumerate(zip(pair.tuned.blocks, pair.base.blocks, strict=True)):
        asked = [_plain(change.version(layer)) for change in changes]
        versions = list(dict.fromkeys(asked))
        chosen = torch.tensor([versions.index(version) for version in asked])
        frame = pair.frame(changes[0].in_base).blocks[layer]
        opened: list[Opened] = [partial(version_of, tuned, base, version) for version in versions]
        blocks.append(ForkedBlock(frame, layer, opened, chosen))
    return blocks


def greedy_text(
    model: PreTrainedModel,
    device: torch.device,
    tokenizer: PreTrainedTokenizerBase,
    example: Example,
    new_tokens: int,
    ends: Sequence[int] | None = None,
) -> str:
    """Greedy continuation of the example's prompt by the model as it is, special tokens left out.

    It ends with the first of the tokens `ends`, by default the model's own.
    """
    chosen = end_tokens_of_model(model, tokenizer) if ends is None else ends
    return _greedy_texts(model, device, tokenizer, example, new_tokens, 1, chosen)[0]


def _greedy_texts(
    model: PreTrainedModel,
    device: torch.device,
    tokenizer: PreTrainedTokenizerBase,
    example: Example,
    new_tokens: int,
    rows: int,
    ends: Sequence[int],
) -> list[str]:
    """The same, `rows` times side by side: of a model that does something else with each row."""
    prompt = to_device(torch.from_numpy(example.tokens[: example.n_prompt])[None], device).expand(rows, -1)
    written = decode_greedily(
        model,
        prompt,
        torch.ones_like(prompt),
        new_tokens=new_tokens,
        ends=ends,
        padding=padding_for(model, tokenizer, ends),
    )
    return [str(tokenizer.decode(row, skip_special_tokens=True)) for row in written]
