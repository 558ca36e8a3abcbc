"""Record formats: which fields a record must have, and the question and the response they make.

The table is the whole knowledge; `columns` is the user's own format. Texts are Jinja over the record's fields, or, for formats
whose records are conversations, those of its last messages (conversation_formats.py). What stands around the question (chat
turns, instruction headers) is wording.py's, where records come from records.py's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import UnionType
from typing import Any

import jinja2
import jinja2.meta

from raysweep.data import conversation_formats as conversing
from raysweep.data.conversations import Conversation
from raysweep.data.template_limits import Allowance, LimitedEnvironment
from raysweep.errors import InputError, nearest, shortened, shown

Record = Mapping[str, Any]

_MOST_NAMES, _LONGEST_NAME = 20, 60  # of fields, in a message


@jinja2.pass_context
def _field(context: jinja2.runtime.Context, name: str) -> Any:
    """Filter `'a name' | field`: the only way to a field whose name is no Jinja identifier."""
    return context.resolve(name)


def _printed(value: Any) -> Any:
    if value is None:
        raise jinja2.UndefinedError("a value it prints is null")
    return value


_JINJA = LimitedEnvironment(
    keep_trailing_newline=True, undefined=jinja2.StrictUndefined, autoescape=False, finalize=_printed
)
_JINJA.filters["field"] = _field
_JINJA.limit_filters()


@lru_cache(maxsize=256)
def template(text: str) -> jinja2.Template:
    """A compiled, sandboxed Jinja template; printing an unknown or null field is an error, not an empty string.

    Raises InputError where the template does not parse.
    """
    try:
        return _JINJA.from_string(text)
    except (jinja2.TemplateSyntaxError, RecursionError, MemoryError, SyntaxError) as error:
        raise InputError(
            f"template {shown(text)} does not parse: {getattr(error, 'message', error)}; correct its Jinja"
        ) from error


def render(text: str, values: Record) -> str:
    """The Jinja template `text` filled in; InputError where it uses what `values` lacks, or fails on them."""
    try:
        with Allowance().one_record():
            return template(text).render(values)
    except InputError:
        raise
    except Exception as error:  # a template can raise whatever its expressions can
        raise InputError(
            f"template {shortened(repr(text), 1000)} fails: {shortened(str(error), 1000)}; the record's fields are {_names(values)}"
        ) from error


def _names(record: Record) -> str:
    names = [name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…" for name in map(str, record)]
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more or "none"


def _type_name(kind: type | UnionType) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)


def _fits(_: Record) -> None:
    """The check of a format whose fields do not depend on each other."""


@dataclass(frozen=True)
class Format:
    """One record format.

    `fields` are those every record must have (name → type), `question` and `response` are Jinja, and `check` says in
    words what is wrong between or inside fields of the right types, or None. `answer`, plain text, stands in place of every
    record's response where it is given. `converse` reads a record that is a conversation, which makes its own texts.
    """

    name: str
    fields: Mapping[str, type | UnionType]
    question: str
    response: str
    check: Callable[[Record], str | None] = field(default=_fits, repr=False)
    answer: str | None = None
    converse: conversing.Reader | None = field(default=None, repr=False)

    @property
    def used(self) -> frozenset[str]:
        """Names of the fields that the question and the response are made of."""
        texts = (_JINJA.parse(text) for text in (self.question, self.response))
        return frozenset(self.fields).union(*map(jinja2.meta.find_undeclared_variables, texts))

    def problem(self, record: Record) -> str | None:
        """What is wrong with the record, in words that follow "this record …", or None."""
        for name, kind in self.fields.items():
            if name not in record:
                return f"has no field '{name}', which format '{self.name}' needs; its fields are {_names(record)}"
            value = record[name]
            if value is None:
                return f"has a null field '{name}', which format '{self.name}' needs"
            if not isinstance(value, kind):
                found, needed = type(value).__name__, _type_name(kind)
                return f"has a field '{name}' of type {found}, but format '{self.name}' needs {needed}"
            if isinstance(value, float) and not math.isfinite(value):
                return f"has a field '{name}' that is {value}, but format '{self.name}' needs a finite number or text"
        if self.converse is not None:
            return conversing.misfit(self.converse, record)
        return self.check(record)

    def texts(self, record: Record) -> tuple[str, str]:
        """Question and response of a record without a problem; InputError where a template of the user's fails."""
        if self.converse is not None:
            said = self.converse(record)
            return said.question, said.response if self.answer is None else self.answer
        return render(self.question, record), render(self.response, record) if self.answer is None else self.answer

    def conversation(self, record: Record) -> Conversation:
        """The record as a conversation: its own, or the question and the response as two messages."""
        if self.converse is not None:
            said = self.converse(record)
            return said if self.answer is None else said.answered(self.answer)
        question, response = self.texts(record)
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": response}]
        return Conversation(turns, of_texts=True)


def _check_answer(record: Record) -> str | None:
    answer = record["answer"]
    if isinstance(answer, str) and answer.lower() not in ("true", "false"):
        return f"has an answer {shown(answer)}, but format 'boolq' needs true or false"
    return None


def _check_choices(record: Record) -> str | None:
    lists = {}
    for name in ("label", "text"):
        values = record["choices"].get(name)
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            return (
                f"has choices whose '{name}' is not a list of texts; format 'openbookqa' needs choices {{label, text}}"
            )
        lists[name] = values
    labels, texts = lists["label"], lists["text"]
    if len(labels) != len(texts):
        return (
            f"has choices with {len(labels)} labels and {len(texts)} texts; format 'openbookqa' needs the same number "
            "of each"
        )
    if record["answerKey"] not in labels:
        return f"has an answerKey {shown(record['answerKey'])} that is not one of its labels {shortened(', '.join(labels)) or '(none)'}"
    return None


_CHOICES = "{% for label in choices.label %}{{ '\\n' }}{{ label }}: {{ choices.text[loop.index0] }}{% endfor %}"
_CHOSEN = "{{ choices.text[choices.label.index(answerKey)] }}"

FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format(
            "dolly",
            {"instruction": str, "context": str, "response": str},
            "{{ instruction }}{% if context %}\n\n{{ context }}{% endif %}",
            "{{ response }}",
        ),
        Format(
            "alpaca",
            {"instruction": str, "input": str, "output": str},
            "{{ instruction }}{% if input %}\n\n{{ input }}{% endif %}",
            "{{ output }}",
        ),
        Format("gsm8k", {"question": str, "answer": str}, "{{ question }}", "{{ answer }}"),
        Format(
            "boolq",
            # A CSV file has no types, so that `answer` comes from it as text.
            {"question": str, "passage": str, "answer": bool | str},
            "{{ question }}",
            "{{ 'True' if answer | lower == 'true' else 'False' }}. {{ passage }}",
            _check_answer,
        ),
        Format(
            "openbookqa",
            {"question_stem": str, "choices": dict, "answerKey": str, "fact1": str},
            "{{ question_stem }}" + _CHOICES,
            "{{ answerKey }} " + _CHOSEN + ". {{ fact1 }}",
            _check_choices,
        ),
        Format(
            "messages",
            {"messages": list},
            "{{ (messages | selectattr('role', 'equalto', 'user') | list)[-1].content }}",
            "{{ messages[-1].content }}",
            converse=conversing.read_messages,
        ),
        Format("sharegpt", {"conversations": list}, "", "", converse=conversing.read_sharegpt),
        Format(
            "prompt_completion",
            {"prompt": str | list, "completion": str | list},
            "",
            "",
            converse=conversing.read_prompt_completion,
        ),
        Format("preference", {"chosen": str | list | dict}, "", "", converse=conversing.read_preference),
    )
}
# Formats that are found only if no other fits: many records have a prompt or a choice next to their messages.
_FOUND_LAST = ("sharegpt", "prompt_completion", "preference")


def columns_format(prompt: str, response: str) -> Format:
    """A format of the user's own: each of the two is a column's name, or (where it holds `{{` or `{%`) Jinja over columns.

    A column named alone must hold text or a number. Raises InputError where a template does not parse.
    """
    fields: dict[str, type | UnionType] = {}
    texts = []
    for text in (prompt, response):
        if "{{" in text or "{%" in text:
            template(text)
            texts.append(text)
        else:
            fields[text] = str | int | float
            texts.append(f"{{{{ {text!r} | field }}}}")
    return Format("columns", fields, texts[0], texts[1])


def find_format(
    name: str, prompt: str | None = None, response: str | None = None, *, prompts_only: bool = False
) -> Format:
    """The format of that name; `prompt` and `response` belong to `columns`, which needs both, or with `prompts_only` the first.

    Raises InputError for an unknown name (with the nearest), and for texts that are missing or have no use.
    """
    if name == "columns":
        if prompts_only and prompt is not None and response is None:
            response = "{{ '' }}"
        if prompt is None or response is None:
            lacking = " and ".join(k for k, v in (("prompt", prompt), ("response", response)) if v is None)
            raise InputError(f"format 'columns' lacks {lacking}: give a column's name or a Jinja template over columns")
        return columns_format(prompt, response)
    if name not in FORMATS:
        raise InputError(f"unknown format '{name}'; {nearest(name, [*FORMATS, 'columns'])}")
    if prompt is not None or response is not None:
        raise InputError(
            f"format '{name}' sets its own prompt and response; remove these keys, or use format 'columns'"
        )
    return FORMATS[name]


def detect_format(record: Record) -> str:
    """The one known format that the record fits. Raises InputError where none or several do."""
    problems = {form.name: form.problem(record) for form in FORMATS.values()}
    fits = [name for name, problem in problems.items() if problem is None]
    fitting = [name for name in fits if name not in _FOUND_LAST] or fits
    if len(fitting) != 1:
        found = f"fits {' and '.join(fitting)}" if fitting else "fits no known format"
        near = [
            f"; as {n} it {told}" for n, told in problems.items() if told and FORMATS[n].fields.keys() <= record.keys()
        ]
        raise InputError(
            f"the first record, with the fields {_names(record)}, {found}{''.join(near)}; name the format: {', '.join(FORMATS)}, "
            "or columns with a prompt and a response (--prompt, --response)"
        )
    return fitting[0]
