"""Conversations: messages whose last one is the assistant's, and what else a record says that a chat template may read.

Messages keep every key that they have, apart from null ones. How the records of each format become a conversation is
conversation_formats.py's, and what a chat template makes of one is chat_template.py's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from raysweep.data.record_sizes import check_depth
from raysweep.errors import InputError, shown
from raysweep.limits import MESSAGES, RECORD_DEPTH

Message = dict[str, Any]

TEXT = "text"
_MEDIA = ("image", "image_url", "input_image", "audio", "input_audio", "audio_url", "video", "video_url", "input_video")
# What an assistant says in place of text, or next to it.
CALLS = ("tool_calls", "function_call")
REASONING = ("reasoning_content", "thinking", "reasoning")
_OF_CALLS = (*CALLS, *REASONING, "tool_call_id")
_OF_RECORDS = ("tools", "functions", "documents", "chat_template_kwargs")
_WITH_DATA = ("tool", "function", "ipython")  # roles whose content may be an object


class ArrowRecord(dict[str, Any]):
    """A record read from Arrow or Parquet, which fill each object with null for the keys that only other objects have."""


@dataclass(frozen=True)
class Conversation:
    """Messages, the last of them the assistant's, and the record's other `fields`, by name.

    `of_texts` is true if the record has a prompt and a response as texts, and no messages.
    """

    messages: Sequence[Message]
    fields: Mapping[str, Any] = field(default_factory=dict)
    of_texts: bool = False

    @property
    def question(self) -> str:
        """The text of the last user's message."""
        return next(text_of(m.get("content")) for m in reversed(self.messages) if m["role"] == "user")

    @property
    def response(self) -> str:
        """The text of the last message; if it has none, its calls as JSON, or its reasoning."""
        last = self.messages[-1]
        if (text := text_of(last.get("content"))).strip():
            return text
        said = next((last[key] for key in (*CALLS, *REASONING) if last.get(key)), text)
        return said if isinstance(said, str) else json.dumps(said, ensure_ascii=False, default=str)

    @property
    def in_several_parts(self) -> bool:
        """Whether a message's content is a list of more than one part."""
        contents = (message.get("content") for message in self.messages)
        return any(isinstance(content, list) and len(content) > 1 for content in contents)

    def answered(self, text: str) -> Conversation:
        """The conversation with `text` alone for its last message."""
        return replace(self, messages=[*self.messages[:-1], {"role": self.messages[-1]["role"], "content": text}])

    def prompt_texts(self) -> Iterator[str]:
        """Every text that may reach the prompt: of all messages but the last, and of tools and documents."""
        for message in self.messages[:-1]:
            yield from texts_in({key: value for key, value in message.items() if key != "role"})
        yield from texts_in({key: self.fields[key] for key in _OF_RECORDS if key in self.fields})

    def beyond_text(self) -> list[str]:
        """Names of what it says other than in text: tools, calls, reasoning, documents."""
        named = [key for message in self.messages for key in _OF_CALLS if says(message.get(key))]
        return list(dict.fromkeys([*named, *(key for key in _OF_RECORDS if says(self.fields.get(key)))]))


def says(value: Any) -> bool:
    """Whether a value says anything: it is neither null nor empty."""
    return value is not None and not (isinstance(value, (str, list, dict)) and not value)


def texts_in(value: Any) -> Iterator[str]:
    """Every text inside a value of JSON's types, without the keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (Mapping, list)):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from texts_in(inner)


def text_of(content: Any) -> str:
    """The text of a message's content: parts are joined by line breaks."""
    if isinstance(content, list):
        return "\n".join(text for part in content if (text := part_text(part)) is not None)
    if content is None or isinstance(content, str):
        return content or ""
    return json.dumps(content, ensure_ascii=False, default=str)


def texts_of(message: Message) -> list[str]:
    """The texts of a message's content: of each part, or the whole."""
    content = message.get("content")
    texts = list(map(part_text, content)) if isinstance(content, list) else [text_of(content)]
    return [text for text in texts if text]


def part_type(part: Any) -> str:
    """The type of a part of a content; text if it names none."""
    return TEXT if isinstance(part, str) else str(part.get("type") or TEXT)


def part_text(part: Any) -> str | None:
    """The text of a part of a content, None if it is of another type."""
    if part_type(part) != TEXT:
        return None
    return part if isinstance(part, str) else str(part[TEXT])


def functions_called(message: Message) -> list[Mapping[str, Any]]:
    """The functions that a message calls, each with its name and arguments."""
    listed = message.get("tool_calls")
    calls = [call for call in listed if isinstance(call, Mapping)] if isinstance(listed, list) else []
    functions = [call.get("function", call) for call in calls] + [message.get("function_call")]
    return [function for function in functions if isinstance(function, Mapping)]


def clean(message: Mapping[str, Any]) -> Message:
    """The message without null keys, which say nothing; those of its parts, too."""
    kept = {key: value for key, value in message.items() if value is not None}
    if isinstance(content := kept.get("content"), list):
        kept["content"] = [_without_null_keys(part) if isinstance(part, Mapping) else part for part in content]
    return kept


def _without_null_keys(part: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if value is not None}


def without_nulls(value: Any) -> Any:
    """A value of JSON's types without the null keys of objects, at any depth. Nulls in lists stay."""
    if isinstance(value, Mapping):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def read_json(text: str) -> Any:
    """The value that a field of a record holds as JSON text. Raises ValueError for what is none, or nested too deeply."""
    try:
        value = json.loads(text)
        check_depth(value, "a field of JSON text")
    except (RecursionError, InputError):
        raise ValueError(f"it is nested more than {RECORD_DEPTH.value():.15g} levels deep") from None
    return value


def messages_problem(messages: Sequence[Any], name: str) -> str | None:
    """What is wrong with the messages of a record in the format `name`, in words that follow "this record …", or None."""
    contents = (message.get("content") for message in messages if isinstance(message, Mapping))
    MESSAGES.check(len(messages) + sum(len(each) for each in contents if isinstance(each, list)), f"format '{name}'")
    for at, message in enumerate(messages):
        problem = _message_problem(message)
        if problem is not None:
            return f"has a message {at} (counted from 0) {problem}"
    roles = [message["role"] for message in messages]
    if not roles or roles[-1] != "assistant":
        found = f"ends with a message from the {roles[-1]}" if roles else "has no messages"
        return f"{found}; format '{name}' needs an assistant message at the end"
    if "user" not in roles:
        return f"has no user message before the last assistant message; format '{name}' needs one"
    return None


def _message_problem(message: Any) -> str | None:
    if not isinstance(message, Mapping):
        return f"that is {shown(message)}, but an object with a role and a content is needed"
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str):
        return f"whose role is {shown(role)}, but a text is needed"
    if content is None:
        if role != "user" and any(_stands_for_content(key, value) for key, value in message.items()):
            return None
        return f"from the {role} with neither content nor tool calls"
    if isinstance(content, list):
        return next(filter(None, map(_part_problem, content)), None)
    if isinstance(content, str) or (isinstance(content, Mapping) and role in _WITH_DATA):
        return None
    return f"whose content is {shown(content)}, but a text or a list of parts is needed"


def _stands_for_content(key: str, value: Any) -> bool:
    return says(value) and (key in (*CALLS, *REASONING) or isinstance(value, (list, Mapping)))


def _part_problem(part: Any) -> str | None:
    if isinstance(part, str):
        return None
    if not isinstance(part, Mapping):
        return f"whose content has a part {shown(part)}, but an object with a type is needed"
    kind = part.get("type") or TEXT
    if kind in _MEDIA:
        return f"whose content has a part of type '{kind}'; only text is measured, so exclude such records"
    if kind == TEXT and not isinstance(part.get(TEXT), str):
        return f"whose content has a part of type 'text' without a text: {shown(dict(part))}"
    return None
