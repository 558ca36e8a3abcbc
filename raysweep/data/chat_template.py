"""What a tokenizer's chat template makes of a conversation, with everything that it reads.

Messages go to the template whole. Of the record's other fields it gets those that it reads as variables, tools and documents
among them, as `apply_chat_template(messages, tools=…, documents=…, **variables)`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import jinja2
import jinja2.meta
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from raysweep.data.conversations import TEXT, Conversation, Message, part_text, part_type, read_json, text_of
from raysweep.data.template_date import TemplateClock, today
from raysweep.data.template_limits import LimitedEnvironment
from raysweep.errors import InputError, shortened, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KWARGS = "chat_template_kwargs"  # a field of variables, as TRL has it
_LISTS = ("tools", "documents")
_NO_LISTS = [(name, "") for name in _LISTS]  # as tables write them


class _Generation(Extension):
    """The tag with which templates mark what the assistant generates; only what is inside it counts here."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja's own extensions have it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


_SYNTAX = LimitedEnvironment(extensions=["jinja2.ext.loopcontrols", _Generation])


@dataclass(frozen=True)
class _Vocabulary:
    """Names of the variables that a chat template reads, and every text constant and attribute that it mentions."""

    variables: frozenset[str] = frozenset()
    mentioned: frozenset[str] = frozenset()


@lru_cache(maxsize=16)
def _vocabulary(template: str) -> _Vocabulary:
    """Nothing of a template that does not parse, which fails once it is applied."""
    try:
        tree = _SYNTAX.parse(template)
        variables = frozenset(jinja2.meta.find_undeclared_variables(tree))
    except (jinja2.TemplateSyntaxError, RecursionError):
        return _Vocabulary()
    mentioned = {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    mentioned |= {node.attr for node in tree.find_all(nodes.Getattr)}
    return _Vocabulary(variables, frozenset(mentioned))


@lru_cache(maxsize=1)
def _reserved() -> frozenset[str]:
    """Names that no record can give: those of transformers' own arguments, and of what a template can call."""
    from transformers import PreTrainedTokenizerBase
    from transformers.utils.chat_template_utils import render_jinja_template

    arguments = [
        inspect.signature(call) for call in (PreTrainedTokenizerBase.apply_chat_template, render_jinja_template)
    ]
    named = {name for signature in arguments for name in signature.parameters} - {*_LISTS}
    return frozenset({*named, "messages", "raise_exception", "strftime_now", "namespace", "dict", "range"})


@dataclass(frozen=True)
class ChatTexts:
    """What the template makes of all messages but the last, with its opening of the answer, and of all of them."""

    prompt: str
    whole: str
    joined: bool = False


class ChatTemplate:
    """A tokenizer's chat template, applied to conversations; one that reads the clock is given `clock`, or else today's date."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, clock: TemplateClock | None = None) -> None:
        self._tokenizer = tokenizer
        self._clock = clock or TemplateClock(today())
        self._reserved = _reserved() | set(tokenizer.special_tokens_map)

    def texts(self, conversation: Conversation) -> ChatTexts:
        """Prompt and whole text. Raises InputError if the template refuses the messages, or cannot take their parts.

        Parts of a content go to the template as they are. If it takes texts only, it gets the text of each part, joined by
        line breaks.
        """
        arguments = self._arguments(conversation)
        if not _parts(conversation):
            return _unprinted(conversation, self._applied(conversation, arguments))
        self._check_parts(conversation)
        given: ChatTexts | None
        try:
            given = _unprinted(conversation, self._applied(conversation, arguments))
        except InputError:
            given = None
        if given and not (lost := _lacking(conversation, given.whole)):
            return given
        try:
            flat = _joined(conversation)
            joined = _unprinted(flat, self._applied(flat, arguments))
        except InputError:
            if given:
                return given
            raise
        if given and len(_lacking(conversation, joined.whole)) >= len(lost):
            return given
        return replace(joined, joined=conversation.in_several_parts)

    def variables(self, names: Iterable[str]) -> list[str]:
        """Those of these names that the template reads as variables and a record may give.

        Where tools choose the template, among several, they are such a name.
        """
        known = self._vocabulary({}).variables | self._vocabulary({"tools": []}).variables
        named = self._tokenizer.chat_template
        if isinstance(named, dict) and "tool_use" in named:
            known |= {"tools"}
        return [name for name in names if name in known and name not in self._reserved]

    def _vocabulary(self, arguments: Mapping[str, Any]) -> _Vocabulary:
        try:
            return _vocabulary(self._tokenizer.get_chat_template(tools=arguments.get("tools")))
        except ValueError:  # several templates and no default: applying one says so
            return _Vocabulary()

    def _arguments(self, conversation: Conversation) -> dict[str, Any]:
        """What the template gets besides messages: of the record's fields those that it reads."""
        fields = {key: value for key, value in conversation.fields.items() if key != KWARGS}
        further = conversation.fields.get(KWARGS)
        if isinstance(further, Mapping):
            fields |= {str(key): value for key, value in further.items() if value is not None}
        read = self.variables(fields)
        return {name: _listed(name, fields[name]) for name in read if (name, fields[name]) not in _NO_LISTS}

    def _check_parts(self, conversation: Conversation) -> None:
        """InputError for a part of a type that the template does not mention."""
        known = self._vocabulary(conversation.fields).mentioned | {TEXT}
        for at, part in _parts(conversation):
            if part_type(part) not in known:
                raise InputError(
                    f"message {at} (counted from 0) has a part of type '{part_type(part)}', which the tokenizer's chat template "
                    "does not know; remove it, or give its text as a part of type 'text'"
                )

    def _applied(self, conversation: Conversation, arguments: Mapping[str, Any]) -> ChatTexts:
        turns = list(conversation.messages)
        named = self._tokenizer.chat_template
        if isinstance(named, dict) and "default" not in named and not ("tool_use" in named and "tools" in arguments):
            raise InputError(
                f"the tokenizer has several chat templates, {', '.join(sorted(named))}, and none of them is named default; "
                "name one default, or use another prompt template"
            )
        try:
            prompt = self._clock.render(self._tokenizer, turns[:-1], add_generation_prompt=True, **arguments)
            whole = self._clock.render(self._tokenizer, turns, **arguments)
        except InputError:
            raise
        except Exception as error:  # a template raises whatever its expressions can
            kind = "" if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: "
            raise InputError(
                f"the tokenizer's chat template refuses the turns {roles(turns)} ({kind}{shortened(str(error), 1000)}); correct them, or "
                "use another prompt template"
            ) from error
        for text, said in ((prompt, turns[:-1]), (whole, turns)):
            if not text and any(turn.get("content") for turn in said):
                raise InputError(
                    f"the tokenizer's chat template renders the turns {roles(said)} as empty text; give the tokenizer a template that "
                    "renders them, or use another prompt template"
                )
        return ChatTexts(prompt, whole)


def squeezed(text: str) -> str:
    """The text without white space."""
    return "".join(text.split())


def roles(messages: Iterable[Message]) -> str:
    """Who speaks, in order, for messages."""
    return shortened(", ".join(message["role"] for message in messages), 400)


def _listed(name: str, value: Any) -> Any:
    """Tools and documents as a list of objects, which records also have as JSON text. Other values are as they are."""
    if name not in _LISTS:
        return value
    found = value
    if isinstance(value, str):
        try:
            found = read_json(value)
        except ValueError:
            found = None
    if not isinstance(found, list) or not all(isinstance(item, Mapping) for item in found):
        raise InputError(f"has {name} {shown(value)}, but a chat template needs a list of objects, or its JSON")
    return found


def _parts(conversation: Conversation) -> list[tuple[int, Any]]:
    """The parts of the messages' contents, each with its message's place."""
    contents = [(at, message.get("content")) for at, message in enumerate(conversation.messages)]
    return [(at, part) for at, content in contents if isinstance(content, list) for part in content]


def _joined(conversation: Conversation) -> Conversation:
    """The conversation with each content's parts as one text. Raises InputError for a part of another type."""
    for at, part in _parts(conversation):
        if part_text(part) is None:
            raise InputError(
                f"message {at} (counted from 0) has a part of type '{part_type(part)}', and the tokenizer's chat "
                "template takes only text; remove it, or give its text as a part of type 'text'"
            )
    listed = [isinstance(message.get("content"), list) for message in conversation.messages]
    texts = zip(conversation.messages, listed, strict=True)
    return replace(
        conversation, messages=[{**m, "content": text_of(m["content"])} if is_list else m for m, is_list in texts]
    )


def _unprinted(conversation: Conversation, found: ChatTexts) -> ChatTexts:
    """What was found. Raises InputError if the template printed a list or an object as Python does, in place of its text."""
    for at, message in enumerate(conversation.messages):
        content = message.get("content")
        if isinstance(content, (list, dict)) and content and str(content) in found.whole:
            raise InputError(
                f"message {at} (counted from 0) has a content that is not text, {shown(content)}, and the tokenizer's "
                "chat template takes only text; give its text"
            )
    return found


def _lacking(conversation: Conversation, whole: str) -> list[str]:
    """Texts of parts that are not in the whole text."""
    said = squeezed(whole)
    texts = (part_text(part) for _, part in _parts(conversation))
    return [text for text in texts if text and squeezed(text) not in said]
