"""Wordings: the text around a record's question and response, its tokens, and which of them carry loss.

The wordings are one table. `chat` is the tokenizer's own chat template; `plain` adds no words, for encoders and for models
that were tuned on none; the others are the texts that published checkpoints were tuned with, format by format
(wording_texts.py). What a format's question and response are is formats.py's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from raysweep.data.chat_template import ChatTemplate, roles
from raysweep.data.conversations import says
from raysweep.data.formats import Format, Record, render
from raysweep.data.template_date import TemplateClock
from raysweep.data.template_notes import Notes, keeps_answer, keys_of
from raysweep.data.wording_texts import LLAMA2, LLAMA3, LLAMA3_TOKENS, PHI3, PHI3_TOKENS
from raysweep.errors import InputError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Texts = tuple[str, str]  # the prompt, which carries no loss, and the response, which does
Encoded = tuple[NDArray[np.int64], int]  # tokens [T] of both, and how many leading ones carry no loss

_PRINTED = re.compile(r"\{\{.*?\}\}")
_LONGEST_START = 30  # of a text, in a message
_SWITCHES = ("enable_thinking", "thinking")  # variables with which templates choose how they open an answer


@dataclass(frozen=True)
class ChatWording:
    """The tokenizer's own chat template: everything before the last assistant's tokens carries no loss.

    A template that reads the clock is given `clock`, by default today's date.
    """

    name: str
    clock: TemplateClock | None = field(default=None, compare=False)

    def check(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """InputError where the tokenizer has no chat template."""
        if not tokenizer.chat_template:
            others = [name for name in WORDINGS if name != self.name]
            raise InputError(
                f"tokenizer '{tokenizer.name_or_path}' has no chat template, which template '{self.name}' uses; "
                f"give the tokenizer one, or set template to {', '.join(others[:-1])} or {others[-1]}"
            )

    def texts(
        self,
        record_format: Format,
        record: Record,
        tokenizer: PreTrainedTokenizerBase,
        *,
        notes: Notes | None = None,
    ) -> Texts:
        """Prompt (with the template's opening of the assistant's turn) and response (with its close).

        White space that the template puts after the close is left out: nothing is generated there. `notes` take down what the
        template does not read. Raises InputError where the template refuses the turns, or a whole conversation does not begin
        with its own prompt.
        """
        conversation, template = record_format.conversation(record), ChatTemplate(tokenizer, self.clock)
        found = template.texts(conversation)
        if not found.whole.startswith(found.prompt):
            raise InputError(_not_continued(found.prompt, found.whole, template))
        if notes is not None:
            notes.add(template, conversation, found)
            if record_format.converse is None:
                read = template.variables(str(key) for key, value in record.items() if says(value))
                notes.add_unpassed(sorted(set(read) - record_format.used) if read else ())
        rest, answer = found.whole[len(found.prompt) :], conversation.messages[-1].get("content")
        n_said = len(answer) if isinstance(answer, str) and rest.startswith(answer) else 0
        return found.prompt, rest[:n_said] + rest[n_said:].rstrip()  # white space of the response itself stays

    def keeps_answer(self, record_format: Format, record: Record, texts: Texts) -> bool:
        """Whether the record's answer is wholly in its texts, apart from white space."""
        return keeps_answer(record_format.conversation(record), *texts)

    def encode(self, texts: Texts, tokenizer: PreTrainedTokenizerBase) -> Encoded:
        """Tokens of the whole; where a merge crosses the border, labels start at the first token that differs."""
        prompt, whole = _ids(texts[0], tokenizer), _ids("".join(texts), tokenizer)
        return np.array(whole, dtype=np.int64), _n_common(prompt, whole)


@dataclass(frozen=True)
class TextWording:
    """Fixed texts: for each format the Jinja of its prompt and its response.

    The Jinja sees the record's fields, `question` and `response` (the format's two texts) and `eos_token`. `special` are
    the special tokens that the texts name, which the tokenizer must have. A wording that names none stands after the
    tokenizer's own begin-of-sequence token, and ends in its end-of-sequence token.
    """

    name: str
    by_format: Mapping[str, Texts] = field(repr=False)
    special: tuple[str, ...] = ()

    def check(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """InputError where the tokenizer lacks a special token that the wording writes."""
        if self.special:
            known = tokenizer.get_added_vocab()
            lacking = [token for token in self.special if token not in known]
        else:
            lacking = [role for role in ("bos_token", "eos_token") if getattr(tokenizer, role) is None]
        if lacking:
            raise InputError(
                f"tokenizer '{tokenizer.name_or_path}' has no {' and no '.join(lacking)}, which prompt template "
                f"'{self.name}' needs; use template 'chat'"
            )

    def texts(
        self,
        record_format: Format,
        record: Record,
        tokenizer: PreTrainedTokenizerBase,
        *,
        notes: Notes | None = None,
    ) -> Texts:
        """Prompt and response, without the tokenizer's own begin-of-sequence token.

        Raises InputError for a format, or turns, that the wording has no text for.
        """
        kind = record_format.name
        if record_format.converse is not None:
            kind = "columns" if record_format.conversation(record).of_texts else "messages"
        if kind not in self.by_format:
            raise InputError(
                f"prompt template '{self.name}' does not support format '{record_format.name}', only "
                f"{', '.join(self.by_format)}; use template 'chat'"
            )
        _check_turns(self.name, record_format, record, notes)
        question, response = record_format.texts(record)
        values = {**record, "question": question, "response": response, "eos_token": tokenizer.eos_token}
        before, after = self.by_format[kind]
        if record_format.answer is not None:
            after = _around(after, "{{ response }}")
        return render(before, values), render(after, values)

    def keeps_answer(self, record_format: Format, record: Record, texts: Texts) -> bool:
        """Whether the record's answer is wholly in its texts: it always is."""
        return True

    def encode(self, texts: Texts, tokenizer: PreTrainedTokenizerBase) -> Encoded:
        """Tokens of the whole; as many leading ones as the prompt alone has carry no loss (at most all)."""
        first = [] if self.special else [tokenizer.bos_token_id]
        prompt, whole = _ids(texts[0], tokenizer), _ids("".join(texts), tokenizer)
        tokens = np.array([*first, *whole], dtype=np.int64)
        return tokens, min(len(first) + len(prompt), len(tokens))


@dataclass(frozen=True)
class PlainWording:
    """No words around the texts: the question is the prompt, with the special tokens that the tokenizer itself adds.

    The response follows on a line of its own; its line break carries loss like the rest of it. For format `columns`, whose
    texts are the user's to the last blank, nothing stands between.
    """

    name: str

    def check(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Every tokenizer will do."""

    def texts(
        self,
        record_format: Format,
        record: Record,
        tokenizer: PreTrainedTokenizerBase,
        *,
        notes: Notes | None = None,
    ) -> Texts:
        """Prompt and response, without special tokens; InputError for more than one user's turn and the assistant's."""
        _check_turns(self.name, record_format, record, notes)
        question, response = record_format.texts(record)
        as_written = record_format.name == "columns" or (
            record_format.converse is not None and record_format.conversation(record).of_texts
        )
        return question, response if as_written else f"\n{response}"

    def keeps_answer(self, record_format: Format, record: Record, texts: Texts) -> bool:
        """Whether the record's answer is wholly in its texts: it always is."""
        return True

    def encode(self, texts: Texts, tokenizer: PreTrainedTokenizerBase) -> Encoded:
        """Tokens of the whole with the tokenizer's special tokens; labels start at the first that the prompt alone has not."""
        prompt, whole = (_ids(text, tokenizer, special=True) for text in (texts[0], "".join(texts)))
        return np.array(whole, dtype=np.int64), _n_common(prompt, whole)


Wording = ChatWording | TextWording | PlainWording


def _around(text: str, answer: str) -> str:
    """The Jinja of a response with `answer` in place of all that it prints of the record, and what stands around that."""
    printed = [found for found in _PRINTED.finditer(text) if "eos_token" not in found[0]]
    return text[: printed[0].start()] + answer + text[printed[-1].end() :]


def _not_continued(prompt: str, whole: str, template: ChatTemplate) -> str:
    """What is wrong with a template whose text with the answer does not begin with its prompt for generation."""
    n = _n_common(prompt, whole)
    before = prompt[max(0, n - _LONGEST_START) : n]
    switches = ", ".join(template.variables(_SWITCHES))
    return (
        "the tokenizer's chat template does not continue its own generation prompt, so the start of the response is unknown: after "
        f"{before!r} the prompt alone has {_start(prompt[n:])}, and with the answer it has {_start(whole[n:])}; change the "
        f"chat template so that both agree{f', set {switches} in the records' if switches else ''}, or use another prompt template"
    )


def _start(text: str) -> str:
    return repr(text if len(text) <= _LONGEST_START else f"{text[:_LONGEST_START]}…")


def _check_turns(name: str, record_format: Format, record: Record, notes: Notes | None) -> None:
    """InputError for a conversation of other turns than one user's and the assistant's, or that is not in text alone."""
    if record_format.converse is None:
        return
    conversation = record_format.conversation(record)
    if [turn["role"] for turn in conversation.messages] != ["user", "assistant"]:
        raise InputError(
            f"prompt template '{name}' supports only one user turn and one assistant turn, and the record has "
            f"{roles(conversation.messages)}; use template 'chat'"
        )
    if beyond := conversation.beyond_text():
        raise InputError(
            f"prompt template '{name}' does not support the record's {', '.join(beyond)}; use template 'chat'"
        )
    if notes is not None:
        notes.add_unread(keys_of(conversation))
        notes.joined += conversation.in_several_parts


def _ids(text: str, tokenizer: PreTrainedTokenizerBase, special: bool = False) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    return ids


def _n_common(prompt: Sequence[object], whole: Sequence[object]) -> int:
    """How many leading tokens, or characters, are the same."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, whole, strict=False)))


WORDINGS: dict[str, Wording] = {
    w.name: w
    for w in (
        ChatWording("chat"),
        PlainWording("plain"),
        TextWording("llama2", LLAMA2),
        TextWording("llama3", LLAMA3, LLAMA3_TOKENS),
        TextWording("phi3", PHI3, PHI3_TOKENS),
    )
}


def find_wording(name: str, clock: TemplateClock | None = None) -> Wording:
    """The wording of that name; InputError for an unknown one, with the nearest. `clock` is for chat templates that read it."""
    if name not in WORDINGS:
        raise InputError(f"unknown prompt template '{name}'; {nearest(name, WORDINGS)}")
    found = WORDINGS[name]
    return replace(found, clock=clock) if isinstance(found, ChatWording) else found
