"""Which tokenizer and chat template word a model's records, and what may mislead about them, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
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

    `borrowed_for` is the base checkpoint if that has no chat template; `unused` is its tokenizer if the tuned one's is used too.
    """

    tokenizer: PreTrainedTokenizerBase
    source: str
    borrowed_for: str | None = None
    unused: PreTrainedTokenizerBase | None = None

    @property
    def hint(self) -> str:
        """What to add to an error about the texts."""
        if self.borrowed_for is None:
            return ""
        return (
            f" (base '{self.borrowed_for}' has no chat template, so the one of '{self.source}' is used; other prompt templates, such "
            "as plain, need no chat template)"
        )

    @cached_property
    def added(self) -> Mapping[int, str]:
        """The tokens, by id, that the base's own tokenizer does not have."""
        if self.unused is None:
            return {}
        known = set(self.unused.get_vocab().values())
        return {number: token for token, number in self.tokenizer.get_vocab().items() if number not in known}

    def without_added(self, examples: Sequence[Example]) -> list[Example]:
        """The examples that have none of the added tokens."""
        added = self.added.keys()
        return [example for example in examples if added.isdisjoint(example.tokens.tolist())]

    def notes(self, examples: Sequence[Example]) -> list[str]:
        """Say that a chat template was borrowed, and how many of the examples have tokens that the base's tokenizer lacks."""
        if self.borrowed_for is None:
            return []
        whose = "the base's" if self.unused is None else "its"
        text = (
            f"base '{self.borrowed_for}' has no chat template, so the one of '{self.source}' formats the records for "
            f"both, with {whose} tokenizer"
        )
        if n_with := len(examples) - len(self.without_added(examples)):
            found = dict.fromkeys(
                token for example in examples for token in example.tokens.tolist() if token in self.added
            )
            named = shortened(", ".join(self.added[token] for token in list(found)[:_MOST_NAMED]))
            text += f"; {n_with} of {len(examples)} texts have tokens that the base's tokenizer does not have ({named})"
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
            return Chat(other, source, base.source, tokenizer)
    for source, template in templates.items():
        if template and others[source] is None:
            tokenizer.chat_template = template
            return Chat(tokenizer, source, base.source)
    return Chat(tokenizer, base.source)


def difference_texts(found: Difference, source: str, other: str) -> list[str]:
    """Say how a checkpoint's own tokenizer reads texts that are worded and split by that of `source`."""
    texts = []
    many = f"{found.n_texts} texts" + (f" (one in {found.step} of the data set)" if found.step > 1 else "")
    remedy = "Give both folders the same tokenizer, the one that the tuned checkpoint was trained with"
    if found.n_worded:
        texts.append(
            f"the chat template of '{other}' formats {found.n_worded} of {many} differently from the one of "
            f"'{source}', which is used for both; its losses may be measured on texts that it was not trained on. "
            f"{remedy}"
        )
    if found.n_split:
        texts.append(
            f"the tokenizer of '{other}' splits {found.n_split} of {many} differently from the one of '{source}', "
            f"which is used for both ({found.n_other:,} of {found.n_tokens:,} tokens are not in its vocabulary); its "
            "losses may be measured on tokens that "
            f"it was not trained on. {remedy}"
        )
    return texts
