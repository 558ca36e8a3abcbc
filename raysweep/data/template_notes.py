"""What records lose on their way through a prompt template: keys that it does not read, and parts of the answer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from raysweep.data.chat_template import KWARGS, ChatTemplate, ChatTexts, squeezed
from raysweep.data.conversations import Conversation, Message, functions_called, says, texts_of
from raysweep.errors import InputError
from raysweep.limits import MESSAGE_KEYS

_MOST_NAMED = 12  # keys, in a message


@dataclass
class Notes:
    """What happens to a data set's records on their way through a prompt template. Counts are records.

    `unread` are keys on which no record's text depends, as warnings name them. `unpassed` are fields that a chat template
    would read and that the format does not give it. `joined` have messages of several parts, which a template for plain
    texts gets as one text; `quoted` have calls whose arguments are JSON text, which the template writes as a quoted string.
    `dropped` have messages of a role, apart from the assistant's and a tool's, whose text is not in the prompt.
    """

    unpassed: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    joined: int = 0
    quoted: int = 0
    _read: set[str] = field(default_factory=set)
    _doubtful: dict[str, int] = field(default_factory=dict)

    @property
    def unread(self) -> dict[str, int]:
        """Records by the key that no record's text depends on."""
        return {key: n for key, n in self._doubtful.items() if key not in self._read}

    def add(self, template: ChatTemplate, conversation: Conversation, found: ChatTexts) -> None:
        """Add a conversation and what a chat template made of it: a key is read if the text is another without it."""
        self.joined += found.joined
        self.quoted += any(_is_quoted(arguments, found.whole) for arguments in _arguments_as_text(conversation))
        _count(self.dropped, _roles_dropped(conversation, found.prompt))
        keys = keys_of(conversation)
        given = set(template.variables(key.name for key in keys.values() if key.role is None))
        # What the template is not even given need not be tried.
        doubtful = [name for name, key in keys.items() if name not in self._read and (key.role or key.name in given)]

        def matter(names: list[str]) -> bool:
            return bool(names) and _depends(template, conversation, [keys[name] for name in names], found)

        if matter(doubtful):
            each = [key for key in doubtful if matter([key])]
            self._read.update(each)
            rest = [key for key in doubtful if key not in each]
            if matter(rest):  # two say the same, such as reasoning under two names, and either is enough
                same = [key for key in rest if not matter([other for other in rest if other != key])]
                self._read.update(same or rest)
        self.add_unread(key for key in keys if key not in self._read)

    def add_unread(self, keys: Iterable[str]) -> None:
        """Add a record's keys on which its text does not depend."""
        _count(self._doubtful, keys)

    def add_unpassed(self, fields: Iterable[str]) -> None:
        """Add a record's fields that the template would read and does not get."""
        _count(self.unpassed, fields)

    def warnings(self, format: str) -> list[str]:
        """What may mislead, in words, with counts of records; `format` is that of the records."""
        said = []
        if self.unread:
            said.append(f"the prompt template does not use these, so they are ignored: {_counted(self.unread)}")
        if self.unpassed:
            said.append(
                f"the chat template uses fields that format '{format}' does not provide: {_counted(self.unpassed)}; "
                "use format "
                "messages if the prompt should have them"
            )
        if self.dropped:
            said.append(f"the chat template does not include the full text of every message: {_counted(self.dropped)}")
        if self.joined:
            said.append(
                "the prompt template takes only text, so messages with several text parts are joined by line breaks: "
                f"{_records(self.joined)}"
            )
        if self.quoted:
            said.append(
                f"the chat template writes arguments of tool calls that are JSON text as a quoted string: {_records(self.quoted)}; "
                "give objects if the model was trained on objects"
            )
        return said


def _count(counts: dict[str, int], names: Iterable[str]) -> None:
    for name in names:
        counts[name] = counts.get(name, 0) + 1


def _records(n: int) -> str:
    return f"{n} {'record' if n == 1 else 'records'}"


def _counted(counts: Mapping[str, int]) -> str:
    named = [f"{name} ({_records(n)})" for name, n in list(counts.items())[:_MOST_NAMED]]
    more = f" and {len(counts) - _MOST_NAMED} more" if len(counts) > _MOST_NAMED else ""
    return ", ".join(named) + more


@dataclass(frozen=True)
class _Key:
    """A key of a record (no role), of its `chat_template_kwargs`, or of the messages of a role."""

    name: str
    role: str | None = None
    further: bool = False

    def removed(self, conversation: Conversation) -> Conversation:
        """The conversation without it."""
        if self.role is not None:
            return replace(conversation, messages=[self._removed(message) for message in conversation.messages])
        fields = dict(conversation.fields)
        if self.further:
            fields[KWARGS] = _without(fields[KWARGS], self.name)
        return replace(conversation, fields=fields if self.further else _without(fields, self.name))

    def _removed(self, message: Message) -> Message:
        return _without(message, self.name) if message["role"] == self.role else message


def _without(values: Message, name: str) -> Message:
    return {key: value for key, value in values.items() if key != name}


def keys_of(conversation: Conversation) -> dict[str, _Key]:
    """Keys that say something and that a template may read or not, by the name that messages give them."""
    found: dict[str, _Key] = {}
    for key, value in conversation.fields.items():
        if key == KWARGS and isinstance(value, Mapping):
            further = [name for name, inner in value.items() if says(inner)]
            found |= {f"{KWARGS}.{name}": _Key(name, further=True) for name in further}
        elif says(value):
            found[key] = _Key(key)
    n_fields = len(found)
    for message in conversation.messages:
        names = [key for key, value in message.items() if key not in ("role", "content") and says(value)]
        found |= {f"{name} of {message['role']} messages": _Key(name, message["role"]) for name in names}
        MESSAGE_KEYS.check(len(found) - n_fields, "its messages")
    return found


def _depends(template: ChatTemplate, conversation: Conversation, on: Iterable[_Key], found: ChatTexts) -> bool:
    for key in on:
        conversation = key.removed(conversation)
    try:
        return template.texts(conversation) != found
    except InputError:
        return True


def _roles_dropped(conversation: Conversation, prompt: str) -> list[str]:
    """Roles of messages whose text is not in the prompt, white space apart. Templates may cut or quote other roles' texts."""
    said = squeezed(prompt)
    messages = [(m["role"], m) for m in conversation.messages[:-1] if m["role"] in ("system", "developer", "user")]
    lost = [role for role, message in messages if any(squeezed(text) not in said for text in texts_of(message))]
    return list(dict.fromkeys(lost))


def keeps_answer(conversation: Conversation, prompt: str, response: str) -> bool:
    """Whether the answer is wholly in the text: the last message's content, and the names of the functions it calls.

    White space does not count. What the prompt opens (such as `<think>`) may be the answer's beginning.
    """
    last = conversation.messages[-1]
    names = [name for call in functions_called(last) if isinstance(name := call.get("name"), str)]
    before, said = len(squeezed(prompt)), squeezed(prompt + response)
    return all(_ends_beyond(said, squeezed(text), before) for text in [*texts_of(last), *names])


def _ends_beyond(text: str, piece: str, place: int) -> bool:
    found = text.rfind(piece)
    return not piece or (found >= 0 and found + len(piece) > place)


def _arguments_as_text(conversation: Conversation) -> list[str]:
    calls = [call for message in conversation.messages for call in functions_called(message)]
    return [arguments for call in calls if isinstance(arguments := call.get("arguments"), str)]


def _is_quoted(arguments: str, whole: str) -> bool:
    return '"' in arguments and json.dumps(arguments, ensure_ascii=False) in whole
