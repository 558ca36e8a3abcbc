"""Which tokenizer and chat template word a model's records, and what may mislead about them, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raysweep.data.examples import Example
from raysweep.engine.tokenizers import Difference
from raysweep.errors import shortened
from raysweep.models.checkpoint import Checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MOST_NAMED = 4  # tokens, in a message


@dataclass(frozen=True)
class Chat:
    """The tokenizer that words and splits a model's records for base and tuned, and the checkpoint that it came with.

    `borrowed_for` is the base checkpoint if that has no chat template, `added` are the tokens that it has no name for.
    """

    tokenizer: PreTrainedTokenizerBase
    source: str
    borrowed_for: str | None = None
    added: Mapping[int, str] | None = None

    @property
    def hint(self) -> str:
        """What to add to an error about the texts."""
        if self.borrowed_for is None:
            return ""
        return (
            f" (base '{self.borrowed_for}' has no chat template, so that of '{self.source}' is used; another wording, as plain, "
            "needs none)"
        )

    def notes(self, examples: Sequence[Example]) -> list[str]:
        """Say that a chat template was borrowed, and how many of the examples have tokens that the base has no name for."""
        if self.borrowed_for is None:
            return []
        added, used = self.added or {}, 0
        seen: dict[str, None] = {}
        for example in examples:
            if found := [added[token] for token in example.tokens.tolist() if token in added]:
                used += 1
                seen |= dict.fromkeys(found)
        whose = "the base's" if self.added is None else "its"
        text = (
            f"base '{self.borrowed_for}' has no chat template, so that of '{self.source}' words the records for both, with "
            f"{whose} tokenizer"
        )
        if used:
            named = shortened(", ".join(list(seen)[:_MOST_NAMED]))
            text += f"; {used} of {len(examples)} texts have tokens that the base's tokenizer does not have ({named})"
        return [text]


def borrow_chat(
    tokenizer: PreTrainedTokenizerBase,
    base: Checkpoint,
    others: Mapping[str, PreTrainedTokenizerBase | None],
    templates: Mapping[str, str | None],
) -> Chat:
    """Find the chat template of the first fine-tuned checkpoint that has one, for a base without.

    `others` are the tokenizers of the tuned checkpoints by their source, of one vocabulary with the base's; `templates` the
    files in their folders that are used with the base's tokenizer if there is no other. Whether the models have room for all
    tokens of the texts is checked when these are made.
    """
    for source, other in others.items():
        if other is not None and other.chat_template:
            known = set(tokenizer.get_vocab().values())
            added = {number: token for token, number in other.get_vocab().items() if number not in known}
            return Chat(other, source, base.source, added)
    for source, template in templates.items():
        if template and others[source] is None:
            tokenizer.chat_template = template
            return Chat(tokenizer, source, base.source)
    return Chat(tokenizer, base.source)


def difference_texts(found: Difference, source: str, tuned: str) -> list[str]:
    """Say how the tokenizer of a fine-tuned checkpoint reads texts that are worded and split by that of `source`."""
    texts = []
    many = f"{found.n_texts} texts" + (f" (one in {found.step} of the data set)" if found.step > 1 else "")
    if found.n_worded:
        texts.append(
            f"the chat template of '{tuned}' words {found.n_worded} of {many} differently from that of '{source}', "
            "which is used for both; its losses may be of texts that it was not tuned on. Put the files of the tokenizer that it "
            "was tuned with into both folders"
        )
    if found.n_split:
        texts.append(
            f"the tokenizer of '{tuned}' splits {found.n_split} of {many} differently from that of '{source}', which "
            f"is used for both ({found.n_other:,} of {found.n_tokens:,} tokens are none of its own); its losses may be of tokens "
            "that it was not tuned on. Put the files of the tokenizer that it was tuned with into both folders"
        )
    return texts
