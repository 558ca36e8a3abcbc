"""Whether base and tuned read texts alike: one vocabulary, and for chat one template."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from raysweep.errors import InputError
from raysweep.models.checkpoint import Checkpoint
from raysweep.models.loading import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_SAID = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]


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
                f"base '{base.source}' and tuned '{tuned.source}' have tokenizers that do not agree: the token {token!r} is {number} "
                f"and {others[token]}; a pair must have one vocabulary; where a tokenizer was saved there by mistake, put the other's files in its place"
            )


def same_chat(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether their chat templates make the same text of a question and an answer."""
    if one.chat_template == other.chat_template:
        return True
    try:
        said = [tokenizer.apply_chat_template(_SAID, tokenize=False) for tokenizer in (one, other)]
    except Exception:  # a template raises whatever its expressions can
        return False
    return bool(said[0] == said[1])
