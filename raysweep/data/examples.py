"""Examples: a source's records as tokens with a label border, the form in which studies take data.

Reading is records.py's, texts are formats.py's and wording.py's; this module joins them and counts what it left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from raysweep.data.exclusion import Exclude
from raysweep.data.formats import Format, Record, find_format
from raysweep.data.long_texts import encode_enough
from raysweep.data.records import Records
from raysweep.data.sources import Source, read_source
from raysweep.data.template_date import TemplateClock, today
from raysweep.data.template_limits import Allowance
from raysweep.data.template_notes import Notes
from raysweep.data.wording import Wording, find_wording
from raysweep.errors import InputError, shortened

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# From a record's place in its source, the record and its format: what is worded in their stead.
Rewrite = Callable[[int, Record, Format], tuple[Record, Format]]


@dataclass(frozen=True, eq=False, repr=False)
class Example:
    """One record as tokens.

    Attributes:
        id: The record's position in its source, from 0.
        tokens: The tokens, int64 [T]: the prompt's, then the response's, on which the loss is measured. Without response tokens if
            only prompts were read.
        n_prompt: How many of them are the prompt's.
        prompt: The prompt's text with the prompt template around it, uncut.
        response: The response's text, uncut.
    """

    id: int
    tokens: NDArray[np.int64]
    n_prompt: int
    prompt: str
    response: str

    def __repr__(self) -> str:
        texts = f"{shortened(repr(self.prompt), 40)}, {shortened(repr(self.response), 40)}"
        return f"Example(id={self.id}, {self.n_prompt} prompt and {self.n_tokens} response tokens: {texts})"

    @property
    def length(self) -> int:
        """T: the number of tokens of prompt and response."""
        return len(self.tokens)

    @property
    def n_tokens(self) -> int:
        """The number of response tokens."""
        return self.length - self.n_prompt

    @property
    def targets(self) -> NDArray[np.int64]:
        """The response's tokens, int64 [n_tokens]."""
        return self.tokens[self.n_prompt :]


@dataclass(frozen=True)
class Room:
    """What a model has room for: `context` tokens in a text, ids below `vocabulary`; None where it sets no limit.

    `model` names it in messages.
    """

    model: str
    context: int | None = None
    vocabulary: int | None = None


@dataclass(frozen=True, repr=False)
class Loaded:
    """Examples in their source's order, and counts of records that were cut or skipped.

    Attributes:
        examples: The usable examples.
        n_cut: How many of them lost tokens to `max_tokens` or the model's context.
        n_unusable: Records skipped because no response token (where one is needed) or no prompt token was left.
        n_excluded: Records skipped by `exclude`.
        n_blank: Examples with a blank response, in which only the prompt template's own tokens carry loss.
        n_answer_cut: Examples in which the prompt template drops or rewrites a part of the answer.
        notes: What else of the records the prompt template does not read.
        template_date: The date passed to a chat template that reads the clock; None if it does not.
        source_warnings: What of the source was not read.
    """

    examples: list[Example]
    n_cut: int
    n_unusable: int
    n_excluded: int = 0
    n_blank: int = 0
    n_answer_cut: int = 0
    notes: Notes = field(default_factory=Notes)
    template_date: str | None = None
    source_warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        counts = {
            "cut": self.n_cut,
            "unusable": self.n_unusable,
            "excluded": self.n_excluded,
            "blank": self.n_blank,
            "with an answer cut by the template": self.n_answer_cut,
        }
        others = "".join(f", {n} {what}" for what, n in counts.items() if n)
        return f"Loaded({len(self.examples)} examples{others})"


def load_examples(
    source: Source,
    format: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: str = "chat",
    split: str | None = None,
    limit: int | None = None,
    max_tokens: int | None = None,
    room: Room | None = None,
    too_long: Literal["refuse", "cut"] = "refuse",
    prompt: str | None = None,
    response: str | None = None,
    prompts_only: bool = False,
    exclude: Exclude | None = None,
    last: int | None = None,
    all_but_last: int | None = None,
    rewrite: Rewrite | None = None,
    template_date: str | date | None = None,
) -> Loaded:
    """The first `limit` records of `source`, worded, tokenised and cut to their first `max_tokens` tokens.

    `source` and `split` are those of `read_source` (a file, a folder, a name, or records in memory), `format` and (for `columns`)
    `prompt` and `response` those of `find_format`. With `prompts_only`, where no loss is measured, an example is its prompt's tokens: no response is
    tokenised or needed (for `columns` none need be given), and a cut spares the special tokens that close the prompt.
    Examples that are still longer than the context of `room` are cut to it, or refused, as `too_long` says.
    Records that `exclude` names are left out first, then of the rest all but the `last` so many, or those that
    `all_but_last` holds back; `limit` counts what remains.
    `rewrite` is given every record that is used, once it is found to fit its format, and what it returns is worded instead;
    what it raises is told with the record's place.
    `template_date` (YYYY-MM-DD, today by default) is the date that a chat template is given which reads the clock.
    Only ids that occur need an embedding: many tokenizers have a few more tokens than their model.

    Raises InputError for an unknown format or wording, a tokenizer that the wording cannot use, a source that cannot be
    read, a record that does not fit its format (file and line named), examples that `room` has none for, and where no
    example is usable.
    """
    clock = TemplateClock(today() if template_date is None else str(template_date))
    record_format = find_format(format, prompt, response, prompts_only=prompts_only)
    chosen = find_wording(template, clock)
    chosen.check(tokenizer)
    leaves_out = None if exclude is None else partial(exclude.leaves_out, record_format=record_format)
    records = read_source(source, split=split, limit=limit, leaves_out=leaves_out, last=last, all_but_last=all_but_last)
    context = room.context if room and too_long == "cut" else None
    most = min((n for n in (max_tokens, context) if n is not None), default=None)
    needed_tokens = room.context if most is None and room else most
    examples: list[Example] = []
    n_cut = n_blank = n_answer_cut = 0
    notes, allowance, longer = Notes(), Allowance(), set[int]()
    for index, record in zip(records.numbers, records.records, strict=True):
        try:
            worded, its_format = _rewritten(index, record, record_format, rewrite)
            with allowance.one_record():
                example, partly = _example(
                    index, worded, its_format, chosen, tokenizer, prompts_only, notes, needed_tokens
                )
            if partly:
                longer.add(index)
        except InputError as error:
            raise InputError(f"{records.place(index)}: {error}") from error
        kept = _cut_prompt(example.tokens, most, tokenizer) if prompts_only else example.tokens[:most]
        n_prompt = len(kept) if prompts_only else example.n_prompt
        if partly and most is None and not prompts_only and example.response:
            n_prompt = min(
                n_prompt, len(kept) - 1
            )  # the border is behind what was tokenized; refused below as too long
        if 0 < n_prompt < len(kept) + prompts_only:
            n_cut += len(kept) < example.length
            n_blank += not prompts_only and not record_format.texts(record)[1].strip()
            answered = prompts_only or chosen.keeps_answer(its_format, worded, (example.prompt, example.response))
            n_answer_cut += not answered
            examples.append(Example(index, kept, n_prompt, example.prompt, example.response))
    n_unusable = len(records.records) - len(examples)
    if not examples:
        what = "the context" if most != max_tokens and room else "max_tokens"
        cut = "" if most is None else f" after cutting to {what} {most}"
        needed, lacking = "response tokens", "a prompt token and a response token"
        if prompts_only:
            needed, lacking = "prompts", "a prompt token"
        raise InputError(
            f"{records.source} has no usable {needed}: none of its {n_unusable} records has {lacking}{cut}; "
            + "; ".join(["check the format, the texts and max_tokens", *notes.warnings(format)])
        )
    if room:
        _check_room(room, examples, records, tokenizer, longer)
    return Loaded(
        examples,
        n_cut,
        n_unusable,
        records.n_excluded,
        n_blank,
        n_answer_cut,
        notes,
        clock.date if clock.was_read else None,
        records.warnings,
    )


def _check_room(
    room: Room, examples: list[Example], records: Records, tokenizer: PreTrainedTokenizerBase, partly: set[int]
) -> None:
    """Refuse examples that the model has no room for; of those that are `partly` tokenized, not all tokens are known."""
    n, source = len(examples), records.source
    longer = [e for e in examples if room.context is not None and e.length > room.context]
    if longer and room.context is not None:
        longest = max(longer, key=lambda e: (e.id in partly, e.length))
        more = "more than " if longest.id in partly else ""
        raise InputError(
            f"{len(longer)} of {n} examples of {source} are longer than the context of '{room.model}', {room.context} tokens; "
            f"the longest ({records.place(longest.id)}) has {more}{longest.length}. Set too_long: cut for this data set, which cuts "
            f"and counts them, or max_tokens to {room.context} or less"
        )
    foreign = [e for e in examples if room.vocabulary is not None and int(e.tokens.max()) >= room.vocabulary]
    if foreign and room.vocabulary is not None:
        largest = max(foreign, key=lambda e: int(e.tokens.max()))
        token = int(largest.tokens.max())
        raise InputError(
            f"{len(foreign)} of {n} examples of {source} have tokens that '{room.model}' has no embedding for: its vocabulary "
            f"has {room.vocabulary} (ids 0 to {room.vocabulary - 1}), its tokenizer {len(tokenizer)}, and the largest id is "
            f"{token}, {tokenizer.convert_ids_to_tokens(token)!r} ({records.place(largest.id)}); use the tokenizer "
            "that the checkpoint was trained with, or remove those records"
        )


def _rewritten(index: int, record: Record, record_format: Format, rewrite: Rewrite | None) -> tuple[Record, Format]:
    problem = record_format.problem(record)
    if problem is not None:
        raise InputError(problem)
    return (record, record_format) if rewrite is None else rewrite(index, record, record_format)


def _example(
    index: int,
    record: Record,
    record_format: Format,
    wording: Wording,
    tokenizer: PreTrainedTokenizerBase,
    prompts_only: bool,
    notes: Notes,
    most: int | None,
) -> tuple[Example, bool]:
    """The record as an example, and whether it goes on behind its tokens, of which there are more than `most`."""
    texts = wording.texts(record_format, record, tokenizer, notes=notes)
    for what, text in zip(("prompt", "response"), texts, strict=True):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"has half of a surrogate pair (\\u{ord(text[error.start]):04x}) in its {what}, which is not a valid "
                "character; correct the text"
            ) from error
    wanted = (texts[0], "") if prompts_only else texts
    (tokens, n_prompt), partly = encode_enough(wanted, partial(wording.encode, tokenizer=tokenizer), most)
    return Example(index, tokens, n_prompt, *texts), partly


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
