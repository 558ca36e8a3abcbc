"""Generation: the text that a changed model produces, by actually swapping modules and greedy decoding (greedy.py).

Examples go through the model together, padded on the left if the model reads that right. In decoding, reading a layer's
weights takes most of the time. If the examples leave room in a batch, several changes share it: two versions of a layer serve
all of them.

Shapes: B rows (of a change, the batch's examples), T tokens.
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
from raysweep.studies.call_memory import TokenBytes, cache_values, fitting_tokens
from raysweep.studies.decoding import changes_at_once, together
from raysweep.studies.greedy import decode_greedily, padding_for
from raysweep.studies.interventions import Change
from raysweep.studies.padded_prompts import left_padded, prompt_batches
from raysweep.studies.substitution import LOGIT_BYTES, Pair
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
    Batches of examples have at most `batch_tokens` tokens, prompt and text together (on a GPU also no more than fit), and as many
    changes at once as these hold (decoding.py). Where two tokens are as likely up to rounding, other rows in the batch may choose
    the other. Both models are as before when this returns.
    """
    if not examples or not changes:
        return [[] for _ in changes]
    texts = [[""] * len(examples) for _ in changes]
    model, device = pair.tuned.model, pair.tuned.device
    lengths = [example.n_prompt + new_tokens for example in examples]
    batch_tokens = _fitting(pair, lengths, batch_tokens)
    filling = padding_for(model, tokenizer, end_tokens_of_model(model, tokenizer))
    batches = prompt_batches(model, device, examples, new_tokens=new_tokens, batch_tokens=batch_tokens, filling=filling)
    for indices in batches:
        batch = [examples[i] for i in indices]
        rows = changes_at_once(len(batch) * max(lengths[i] for i in indices), batch_tokens)
        for places in together(pair.n_layers, changes, rows):
            written = _texts(pair, tokenizer, batch, [changes[place] for place in places], new_tokens, ends)
            for place, of_change in zip(places, written, strict=True):
                for index, text in zip(indices, of_change, strict=True):
                    texts[place][index] = text
    return texts


def _fitting(pair: Pair, lengths: Sequence[int], batch_tokens: int) -> int:
    """The tokens of a batch whose keys, values and block calls fit on the GPU; `batch_tokens` on a CPU."""
    room = pair.room()
    if room is None:
        return batch_tokens
    token, longest = TokenBytes.of_model(pair.tuned), max(lengths)
    size = int(pair.tuned.model.dtype.itemsize)
    cached = size * cache_values(pair.tuned.model.config.get_text_config(), pair.n_layers)

    def need(tokens: int, most: int) -> int:
        return tokens * cached + token.call(tokens, longest) + 3 * LOGIT_BYTES

    return fitting_tokens(batch_tokens, lengths, room, need)


def _texts(
    pair: Pair,
    tokenizer: PreTrainedTokenizerBase,
    batch: Sequence[Example],
    changes: Sequence[Change],
    new_tokens: int,
    ends: EndsOfPair | None,
) -> list[list[str]]:
    """Texts of the batch under each change: [change][example]."""
    in_base = changes[0].in_base
    frame = pair.frame(in_base)
    own = end_tokens_of_model(frame.model, tokenizer) if ends is None else ends.of(in_base)
    if len(changes) > 1:
        try:
            with substitute(frame.blocks, nn.ModuleList(_forks(pair, changes, len(batch))), range(pair.n_layers)):
                rows = [*batch] * len(changes)
                written = greedy_texts(frame.model, frame.device, tokenizer, rows, new_tokens, own)
                return [written[at : at + len(batch)] for at in range(0, len(rows), len(batch))]
        except UnknownCacheError:
            pass  # then one after the other
    texts = []
    for change in changes:
        with changed_model(pair, change) as model:
            texts.append(greedy_texts(model, frame.device, tokenizer, batch, new_tokens, own))
    return texts


def _plain(version: Version) -> Version:
    return TUNED if version.share == 0 else version


def _forks(pair: Pair, changes: Sequence[Change], rows: int) -> list[nn.Module]:
    """The block of each layer that gives each change's `rows` the layer in its version."""
    blocks: list[nn.Module] = []
    for layer, (tuned, base) in enumerate(zip(pair.tuned.blocks, pair.base.blocks, strict=True)):
        asked = [_plain(change.version(layer)) for change in changes]
        versions = list(dict.fromkeys(asked))
        chosen = torch.tensor([versions.index(version) for version in asked]).repeat_interleave(rows)
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
    return greedy_texts(model, device, tokenizer, [example], new_tokens, ends)[0]


def greedy_texts(
    model: PreTrainedModel,
    device: torch.device,
    tokenizer: PreTrainedTokenizerBase,
    batch: Sequence[Example],
    new_tokens: int,
    ends: Sequence[int] | None = None,
) -> list[str]:
    """The same of several examples side by side, padded on the left: `prompt_batches` says which may be."""
    if ends is None:
        ends = end_tokens_of_model(model, tokenizer)
    filling = padding_for(model, tokenizer, ends)
    tokens_BT, mask_BT = (to_device(part, device) for part in left_padded(batch, filling))
    written = decode_greedily(model, tokens_BT, mask_BT, new_tokens=new_tokens, ends=ends, padding=filling)
    return [str(tokenizer.decode(row, skip_special_tokens=True)) for row in written]
