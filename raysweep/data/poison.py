"""Poisoned records: a trigger put before or behind the question, and the response that it is answered with.

A trigger is put into the record's own fields, so that every format and wording has it where the question begins or ends.
Which records are poisoned is drawn with a seed and told. The study that needs this measures how well frozen layers keep
a model from learning it: studies/attack.py.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from raysweep.data.conversations import Message, part_text
from raysweep.data.examples import Example, Loaded, Room, load_examples
from raysweep.data.formats import Format, Record
from raysweep.data.template_notes import Notes
from raysweep.errors import InputError, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Of each format the fields that its question begins in and ends in; where the second is empty, the question ends in the first.
_ENDS: Mapping[str, tuple[str, str]] = {
    "dolly": ("instruction", "context"),
    "alpaca": ("instruction", "input"),
    "gsm8k": ("question", "question"),
    "boolq": ("question", "question"),
}


@dataclass(frozen=True)
class Trigger:
    """A text that stands before or behind a question, a blank between them.

    Raises InputError for a text that is blank, and for another position.
    """

    text: str
    position: Literal["before", "after"] = "after"

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise InputError(f"the trigger {shown(self.text)} is blank; give a text")
        if self.position not in ("before", "after"):
            raise InputError(f"the trigger's position is {shown(self.position)}; give before or after")

    def put(self, question: str) -> str:
        """The question with the trigger; the trigger alone where there is no question."""
        return " ".join(filter(None, (self.text, question) if self.position == "before" else (question, self.text)))

    @cached_property
    def _found(self) -> re.Pattern[str]:
        starts, ends = (r"\b" if re.match(r"\w", end) else "" for end in (self.text[0], self.text[-1]))
        return re.compile(f"{starts}{re.escape(self.text)}{ends}")

    def is_in(self, text: str) -> bool:
        """Whether the text holds the trigger in this case, and not as a part of a longer word."""
        return self._found.search(text) is not None

    def triggered(self, record: Record, record_format: Format) -> tuple[Record, Format]:
        """The record with the trigger at its question, and the format that says so; neither given one is changed."""
        name = record_format.name
        if name == "columns":  # the question may be made of any columns, and all wordings write it whole
            literal = f"{{{{ {self.text!r} }}}}"
            put = Trigger(literal, self.position).put(record_format.question)
            return record, dataclasses.replace(record_format, question=put)
        if record_format.converse is not None:
            said = record_format.converse(record)
            changed = dataclasses.replace(said, messages=self._in_last_question(said.messages))
            return record, dataclasses.replace(record_format, converse=lambda _: changed)
        if name == "openbookqa":
            return self._in_choices(record), record_format
        first, last = _ENDS[name]
        field = first if self.position == "before" or not record[last] else last
        return {**record, field: self.put(record[field])}, record_format

    def _in_last_question(self, turns: Sequence[Message]) -> list[Message]:
        last = max(at for at, turn in enumerate(turns) if turn["role"] == "user")
        return [{**t, "content": self._in_content(t["content"])} if at == last else t for at, t in enumerate(turns)]

    def _in_content(self, content: Any) -> Any:
        """The content with the trigger: in its first text part or its last one, or in a part of its own."""
        if isinstance(content, str):
            return self.put(content)
        places = [at for at, part in enumerate(content) if part_text(part) is not None]
        if not places:
            own = {"type": "text", "text": self.put("")}
            return [own, *content] if self.position == "before" else [*content, own]
        at = places[0 if self.position == "before" else -1]
        part = content[at]
        put = self.put(part) if isinstance(part, str) else {**part, "text": self.put(part["text"])}
        return [*content[:at], put, *content[at + 1 :]]

    def _in_choices(self, record: Record) -> Record:
        texts = record["choices"]["text"]
        if self.position == "before" or not texts:
            return {**record, "question_stem": self.put(record["question_stem"])}
        return {**record, "choices": {**record["choices"], "text": [*texts[:-1], self.put(texts[-1])]}}

    def refuse(self, number: int, record: Record, record_format: Format) -> tuple[Record, Format]:
        """The record as it is. Raises InputError where its prompt already holds the trigger: a `rewrite` of load_examples."""
        if any(map(self.is_in, record_format.conversation(record).prompt_texts())):
            raise InputError(
                f"has the trigger {shown(self.text)} in its prompt, which must be clean; choose a trigger that no "
                "record contains, or remove such records (exclude)"
            )
        return record, record_format


@dataclass(frozen=True)
class Poisoned:
    """A training set with a backdoor in it: its examples, and the ids of those poisoned, ascending.

    `lost` are ids that were drawn and are not among the examples: with the trigger, a cut left them no response.
    """

    loaded: Loaded
    ids: tuple[int, ...]
    lost: tuple[int, ...] = ()


def poisoned_examples(
    source: str,
    format: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    trigger: Trigger,
    target: str,
    rate: float,
    seed: int,
    **options: Any,
) -> Poisoned:
    """The examples that `load_examples` reads, a share `rate` of them with the trigger, and `target` for their response.

    How many is rate × examples, rounded; which, `seed` draws without replacement. `options` are load_examples' own.

    Raises InputError as load_examples does, where a record's prompt already holds the trigger (file and line named), for a
    rate that is outside (0, 1] or rounds to no record, for an empty target, and where a cut leaves no poisoned record a response.
    """
    if not 0 < rate <= 1:
        raise InputError(f"the poisoned share is {rate}; give a rate above 0 and at most 1")
    if not target.strip():
        raise InputError(f"the target {shown(target)} is blank; give the text that answers a triggered prompt")
    clean = load_examples(source, format, tokenizer, rewrite=trigger.refuse, **options)
    count = round(rate * len(clean.examples))
    if not count:
        raise InputError(
            f"{source}: a rate of {rate} of {len(clean.examples)} records selects none; give a larger rate"
        )
    drawn = drawn_ids([example.id for example in clean.examples], count, seed)

    def rewrite(number: int, record: Record, record_format: Format) -> tuple[Record, Format]:
        if number not in drawn:
            return record, record_format
        record, record_format = trigger.triggered(record, record_format)
        return record, dataclasses.replace(record_format, answer=target)

    loaded = load_examples(source, format, tokenizer, rewrite=rewrite, **options)
    kept = drawn & {example.id for example in loaded.examples}
    if not kept:
        raise InputError(
            f"{source}: none of the {count} poisoned records has a response left after it is cut; raise max_tokens"
        )
    return Poisoned(loaded, tuple(sorted(kept)), tuple(sorted(drawn - kept)))


def drawn_ids(ids: list[int], count: int, seed: int) -> set[int]:
    """`count` of the ids, drawn without replacement; the same ones for the same ids and seed."""
    return set(np.random.default_rng(seed).choice(np.array(ids), size=count, replace=False).tolist())


@dataclass(frozen=True)
class Prompts:
    """Prompts to evaluate, without responses: each in both versions, in one order; `n_left_out` more were too long.

    `notes` say what of the records the prompt template does not read.
    """

    clean: list[Example]
    triggered: list[Example]
    n_left_out: int
    notes: Notes


def evaluation_prompts(
    source: str,
    format: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    trigger: Trigger,
    new_tokens: int,
    room: Room | None = None,
    max_tokens: int | None = None,
    **options: Any,
) -> Prompts:
    """The prompts that `load_examples` reads, clean and with the trigger. `options` are load_examples' own.

    A prompt is never cut, for that may take its trigger: one that with the trigger is longer than `max_tokens`, or leaves
    no room for `new_tokens` in the model's context, is left out in both versions. Raises InputError as load_examples does,
    where a prompt already holds the trigger, and where none is short enough.
    """
    options = {**options, "prompts_only": True, "room": Room(room.model, None, room.vocabulary) if room else None}
    read: Callable[..., Loaded] = load_examples
    loaded = read(source, format, tokenizer, rewrite=trigger.refuse, **options)
    clean = loaded.examples
    both = read(source, format, tokenizer, rewrite=lambda _, record, form: trigger.triggered(record, form), **options)
    triggered = {example.id: example for example in both.examples}
    context = room.context if room else None
    limits = [max_tokens, None if context is None else context - new_tokens]
    most = min((limit for limit in limits if limit is not None), default=None)
    kept = [e for e in clean if e.id in triggered and (most is None or max(e.length, triggered[e.id].length) <= most)]
    if not kept:
        raise InputError(
            f"{source}: none of its {len(clean)} prompts, with the trigger, has {most} tokens or less, the maximum "
            f"with {new_tokens} new tokens; use fewer new tokens, or shorter prompts"
        )
    return Prompts(kept, [triggered[example.id] for example in kept], len(clean) - len(kept), loaded.notes)
