"""Examples: a source's records as tokens with a label border, the form in which studies take data.

Reading is records.py's, texts are formats.py's and wording.py's; this module joins them and counts what it left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from raysweep.data.formats import Format, Record, find_format
from raysweep.data.records import read_records
from raysweep.data.wording import Wording, find_wording
from raysweep.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Example:
    """One record, tokenised: `tokens` int64 [T] are the prompt's `n_prompt`, then the response's, which carry loss.

    Read for its prompt alone it has no response tokens. `id` is the record's place in its source, from 0. `prompt` and `response` are the worded texts, uncut.
    """

    id: int
    tokens: NDArray[np.int64]
    n_prompt: int
    prompt: str
    response: str

    @property
    def length(self) -> int:
        """T: tokens of prompt and response."""
        return len(self.tokens)

    @property
    def n_tokens(self) -> int:
        """Response tokens: those that carry loss."""
        return self.length - self.n_prompt

    @property
    def targets(self) -> NDArray[np.int64]:
        """The response's tokens, int64 [n_tokens]."""
        return self.tokens[self.n_prompt :]


@dataclass(frozen=True)
class Loaded:
    """Usable examples in their source's order.

    `n_cut` of them lost tokens to `max_tokens`; `n_unusable` more were left out, for a cut left no response token (where
    one is needed) or there is no prompt token.
    """

    examples: list[Example]
    n_cut: int
    n_unusable: int


def load_examples(
    source: str,
    format: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    wording: str = "chat",
    split: str | None = None,
    limit: int | None = None,
    max_tokens: int | None = None,
    prompt: str | None = None,
    response: str | None = None,
    prompts_only: bool = False,
) -> Loaded:
    """The first `limit` records of `source`, worded, tokenised and cut to their first `max_tokens` tokens.

    `source` and `split` are those of `read_records`, `format` and (for `columns`) `prompt` and `response` those of
    `find_format`. With `prompts_only`, for models that predict nothing, an example is its prompt's tokens: no response is
    tokenised or needed (for `columns` none need be given), and a cut spares the special tokens that close the prompt.
    Raises InputError for an unknown format or wording, a tokenizer that the wording cannot use, a source
    that cannot be read, a record that does not fit its format (file and line named), and where no example is usable.
    """
    if prompts_only and format == "columns" and prompt is not None and response is None:
        response = "{{ '' }}"
    record_format, chosen = find_format(format, prompt, response), find_wording(wording)
    chosen.check(tokenizer)
    records = read_records(source, split=split, limit=limit)
    examples: list[Example] = []
    n_cut = 0
    for index, record in enumerate(records.records):
        try:
            example = _example(index, record, record_format, chosen, tokenizer, prompts_only)
        except InputError as error:
            raise InputError(f"{records.place(index)}: {error}") from error
        kept = _cut_prompt(example.tokens, max_tokens, tokenizer) if prompts_only else example.tokens[:max_tokens]
        n_prompt = len(kept) if prompts_only else example.n_prompt
        if 0 < n_prompt < len(kept) + prompts_only:
            n_cut += len(kept) < example.length
            examples.append(Example(index, kept, n_prompt, example.prompt, example.response))
    n_unusable = len(records.records) - len(examples)
    if not examples:
        cut = "" if max_tokens is None else f" after cutting to max_tokens {max_tokens}"
        needed, lacking = "response tokens", "a prompt token and a response token"
        if prompts_only:
            needed, lacking = "prompts", "a prompt token"
        raise InputError(
            f"{records.source} has no usable {needed}: none of its {n_unusable} records has {lacking}{cut}; "
            "check the format, the texts and max_tokens"
        )
    return Loaded(examples, n_cut, n_unusable)


def _example(
    index: int,
    record: Record,
    record_format: Format,
    wording: Wording,
    tokenizer: PreTrainedTokenizerBase,
    prompts_only: bool,
) -> Example:
    problem = record_format.problem(record)
    if problem is not None:
        raise InputError(problem)
    texts = wording.texts(record_format, record, tokenizer)
    tokens, n_prompt = wording.encode((texts[0], "") if prompts_only else texts, tokenizer)
    return Example(index, tokens, n_prompt, *texts)


def _cut_prompt(
    tokens: NDArray[np.int64], max_tokens: int | None, tokenizer: PreTrainedTokenizerBase
) -> NDArray[np.int64]:
    """At most `max_tokens` of a prompt's tokens: its first ones, and the special ones at its end, as in [CLS] … [SEP].

    None where the special ones alone fill it.
    """
    if max_tokens is None or len(tokens) <= max_tokens:
        return tokens
    special = set(tokenizer.all_special_ids)
    n_closing = sum(1 for _ in takewhile(lambda token: int(token) in special, tokens[::-1]))
    n_first = max_tokens - n_closing
    return np.concatenate([tokens[:n_first], tokens[len(tokens) - n_closing :]]) if n_first > 0 else tokens[:0]
