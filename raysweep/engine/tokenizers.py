"""Whether base and tuned read texts alike: one vocabulary, and on a data set's own texts one wording and one splitting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep.data.examples import Example
from raysweep.data.formats import Format, Record
from raysweep.data.wording import Wording
from raysweep.errors import InputError
from raysweep.models.checkpoint import Checkpoint
from raysweep.models.loading import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_COMPARED = 500  # texts of a data set; more take too long for a plan
_TEMPLATE = "chat_template.jinja"
_FILES = ("tokenizer.json", "tokenizer_config.json", _TEMPLATE)


def other_tokenizer(base: Checkpoint, tuned: Checkpoint) -> PreTrainedTokenizerBase | None:
    """The tokenizer that a fine-tuned checkpoint came with; None where that is the base's to the byte, or none that can be read."""
    if tuned.on_paper or not (tuned.folder / "tokenizer_config.json").exists():
        return None
    own, theirs = ([_content(checkpoint.folder / name) for name in _FILES] for checkpoint in (base, tuned))
    if own[0] is not None and own == theirs:
        return None
    try:
        return load_tokenizer(tuned)
    except InputError:
        return None


def template_of(checkpoint: Checkpoint) -> str | None:
    """Return the chat template in a checkpoint's folder that is a file of its own; None if there is none."""
    content = None if checkpoint.on_paper else _content(checkpoint.folder / _TEMPLATE)
    return content.decode(errors="replace") if content else None


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def check_one_vocabulary(
    base: Checkpoint, tokenizer: PreTrainedTokenizerBase, tuned: Checkpoint, other: PreTrainedTokenizerBase
) -> None:
    """Raise InputError where a token of both has two ids; tokens that one of them has alone are no harm."""
    ids, others = tokenizer.get_vocab(), other.get_vocab()
    for token, number in ids.items():
        if others.get(token, number) != number:
            raise InputError(
                f"base '{base.source}' and tuned '{tuned.source}' have tokenizers that do not agree: the token {token!r} has the ids {number} "
                f"and {others[token]}; a pair must share one vocabulary; if a tokenizer was saved there by mistake, "
                "replace it with the other's files"
            )


@dataclass(frozen=True)
class Difference:
    """How another tokenizer reads a data set's texts, of which `n_texts` were compared: every `step`-th.

    It words `n_worded` of them differently, and splits `n_split` of them, worded alike, into other tokens: of their
    `n_tokens` tokens, `n_other` are none of its own.
    """

    n_texts: int
    n_worded: int = 0
    n_split: int = 0
    n_tokens: int = 0
    n_other: int = 0
    step: int = 1


def compare(
    examples: Sequence[Example],
    records: Mapping[int, tuple[Record, Format]],
    wording: Wording,
    tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase],
    *,
    prompts_only: bool = False,
) -> Difference:
    """Read examples, made of `records` (by id) with the first tokenizer, again with the second, and count what differs.

    Of many examples MOST_COMPARED at most are read, at even distances. Examples may be cut; of both tokenizers' tokens as many
    are compared as are left of an example.
    """
    own, other = tokenizers
    step = -(-len(examples) // MOST_COMPARED)
    examples = examples[::step]
    words = _can_word(wording, other)
    n_worded = n_split = n_other = 0
    for example in examples:
        record, record_format = records[example.id]
        texts = (example.prompt, "" if prompts_only else example.response)
        n_worded += words and _worded(wording, record, record_format, other, prompts_only) != texts
        ours, theirs = (wording.encode(texts, each)[0].tolist() for each in (own, other))
        if len(ours) > example.length:
            ours, theirs = ours[: example.length], theirs[: example.length]
        if ours != theirs:
            n_split += 1
            n_other += (Counter(ours) - Counter(theirs)).total()
    return Difference(len(examples), n_worded, n_split, sum(example.length for example in examples), n_other, step)


def _can_word(wording: Wording, tokenizer: PreTrainedTokenizerBase) -> bool:
    try:
        wording.check(tokenizer)
    except InputError:
        return False
    return True


def _worded(
    wording: Wording, record: Record, record_format: Format, tokenizer: PreTrainedTokenizerBase, prompts_only: bool
) -> tuple[str, str] | None:
    try:
        prompt, response = wording.texts(record_format, record, tokenizer)
    except InputError:  # a template that refuses these turns
        return None
    return prompt, "" if prompts_only else response
