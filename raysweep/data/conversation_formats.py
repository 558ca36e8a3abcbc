"""Formats whose records are conversations: how each one becomes messages.

Each reader takes a record whose fields have the right types and raises MisfitError, whose text follows "this record …", if what
is inside them cannot be read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from raysweep.data.conversations import (
    ArrowRecord,
    Conversation,
    Message,
    clean,
    messages_problem,
    read_json,
    without_nulls,
)
from raysweep.errors import shown

Record = Mapping[str, Any]
Reader = Callable[[Record], Conversation]

# Who speaks in a ShareGPT record, in any case of letters, and the role that chat templates know.
_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "model", "chatgpt", "bing", "bard"), "assistant"),
    **dict.fromkeys(
        ("tool", "observation", "function", "function_response", "function-response", "tool_response"), "tool"
    ),
    "system": "system",
    "developer": "developer",
}
_CALLING = ("function_call", "tool_call", "function-call")


class MisfitError(Exception):
    """A record that does not fit its format; the text says why, in words that follow "this record …"."""


def misfit(read: Reader, record: Record) -> str | None:
    """What is wrong with a record for a reader, in words that follow "this record …", or None."""
    try:
        read(record)
    except MisfitError as found:
        return str(found)
    return None


def _filled(read: Reader) -> Reader:
    """A reader that drops the nulls with which Arrow fills objects."""

    @wraps(read)
    def wrapped(record: Record) -> Conversation:
        return read(without_nulls(record) if isinstance(record, ArrowRecord) else record)

    return wrapped


@_filled
def read_messages(record: Record) -> Conversation:
    """`messages`, as chat templates take them."""
    return _conversation("messages", record, record["messages"], ("messages",))


@_filled
def read_sharegpt(record: Record) -> Conversation:
    """`conversations` of {from, value}, with `system` and `tools` (JSON text or a list) next to it as LLaMA-Factory has them.

    A turn may also be {role, content}. `function_call` is the assistant's, and its value JSON of a name and arguments.
    """
    messages = [_turn(at, turn) for at, turn in enumerate(record["conversations"])]
    fields = {key: value for key, value in record.items() if key not in ("conversations", "system")}
    system = record.get("system")
    if isinstance(system, str) and system.strip():
        if messages and messages[0]["role"] == "system":
            if messages[0].get("content") != system:
                raise MisfitError(
                    f"has a field 'system' {shown(system)} and another system turn, {shown(messages[0].get('content'))}; "
                    "keep one of them"
                )
        else:
            messages = [{"role": "system", "content": system}, *messages]
    if "tools" in fields:
        fields["tools"] = _schemas(fields["tools"])
    return _conversation("sharegpt", fields, messages, ())


@_filled
def read_prompt_completion(record: Record) -> Conversation:
    """`prompt` and `completion`, each a text or a list of messages."""
    return _prompt_and("completion", "prompt_completion", record, ("prompt", "completion"))


@_filled
def read_preference(record: Record) -> Conversation:
    """`prompt` and `chosen`, each a text or messages; `rejected` is not used.

    `chosen` may be the whole conversation, with or without a prompt next to it. LLaMA-Factory's `conversations` (in place
    of the prompt) with a `chosen` turn are read, too.
    """
    own = ("prompt", "chosen", "rejected", "conversations")
    prompt = record.get("prompt") if record.get("prompt") is not None else record.get("conversations")
    chosen = [record["chosen"]] if isinstance(record["chosen"], Mapping) else record["chosen"]
    whole = _messages("chosen", chosen) if isinstance(chosen, list) else []
    if whole and whole[0].get("role") != "assistant":
        if prompt is not None and not _begins(whole, prompt):
            raise MisfitError(
                "has a 'chosen' that is a complete conversation, and a 'prompt' that is not part of it; keep only one "
                "of them"
            )
        return _conversation("preference", record, whole, own)
    if prompt is None:
        raise MisfitError(
            "has no 'prompt', and its 'chosen' is not a complete conversation; format 'preference' needs one of them"
        )
    return _prompt_and("chosen", "preference", {**record, "prompt": prompt, "chosen": chosen}, own)


def _conversation(name: str, record: Record, messages: list[Any], own: tuple[str, ...]) -> Conversation:
    """The conversation of these messages, with the record's fields but the format's `own`."""
    problem = messages_problem(messages, name)
    if problem is not None:
        raise MisfitError(problem)
    fields = {str(key): value for key, value in record.items() if key not in own and value is not None}
    return Conversation([clean(message) for message in messages], fields)


def _prompt_and(answer: str, name: str, record: Record, own: tuple[str, ...]) -> Conversation:
    """The conversation of a record's prompt and of its field `answer`."""
    prompt, said = record["prompt"], record[answer]
    if isinstance(prompt, str) and isinstance(said, str):
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": said}]
        found = _conversation(name, record, turns, own)
        return Conversation(found.messages, found.fields, of_texts=True)
    asked, answered = _messages("prompt", prompt, "user"), _messages(answer, said, "assistant")
    if asked and asked[-1].get("role") == "assistant":
        raise MisfitError(
            f"has a prompt that ends with the assistant's turn, which its '{answer}' would continue; {_WHOLE_TURNS}"
        )
    return _conversation(name, record, [*asked, *answered], own)


_WHOLE_TURNS = "only complete turns are measured"


def _messages(field: str, value: Any, role: str = "") -> list[Message]:
    """A field's messages; a text is one of that role."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list) or not all(isinstance(message, Mapping) for message in value):
        raise MisfitError(f"has a field '{field}' that is neither a text nor a list of messages: {shown(value)}")
    return [_turn(at, m) if "from" in m and "role" not in m else dict(m) for at, m in enumerate(value)]


def _begins(whole: list[Message], prompt: Any) -> bool:
    if isinstance(prompt, str):
        return any(message.get("role") == "user" and message.get("content") == prompt for message in whole)
    asked = _messages("prompt", prompt)
    return whole[: len(asked)] == asked


def _turn(at: int, turn: Any) -> Message:
    """A turn of ShareGPT as a message, with its further keys."""
    where = f"has a turn {at} (counted from 0)"
    if not isinstance(turn, Mapping):
        raise MisfitError(f"{where} that is {shown(turn)}, but an object {{from, value}} is needed")
    speaker, said = ("from", "value") if turn.get("from") is not None else ("role", "content")
    role = turn.get(speaker)
    if not isinstance(role, str):
        raise MisfitError(
            f"{where} without 'from' (or 'role'), which says who speaks; its keys are {shown(list(turn))}"
        )
    more = {key: value for key, value in turn.items() if key not in ("from", "value", "role", "content")}
    if role.lower() in _CALLING:
        return {"role": "assistant", "content": "", "tool_calls": _calls(where, turn.get(said)), **more}
    if role.lower() not in _ROLES:
        raise MisfitError(f"{where} from {shown(role)}; format 'sharegpt' knows {', '.join([*_ROLES, *_CALLING])}")
    return {"role": _ROLES[role.lower()], "content": turn.get(said), **more}


def _calls(where: str, value: Any) -> list[dict[str, Any]]:
    """The tool calls that a turn's value names: one or several objects, as such or as JSON."""
    try:
        found = read_json(value) if isinstance(value, str) else value
    except ValueError as error:
        raise MisfitError(
            f"{where} that calls a function, whose value is not JSON ({error}): {shown(value)}"
        ) from error
    calls = found if isinstance(found, list) else [found]
    if not calls or not all(isinstance(call, Mapping) and isinstance(call.get("name"), str) for call in calls):
        raise MisfitError(f"{where} that calls a function, whose value has no name and arguments: {shown(value)}")
    return [{"type": "function", "function": dict(call)} for call in calls]


def _schemas(tools: Any) -> Any:
    """ShareGPT's tools as chat templates take them: each {type: function, function: …}. What is no list of objects stays."""
    found = tools
    if isinstance(tools, str):
        try:
            found = read_json(tools)
        except ValueError:
            return tools
    if not isinstance(found, list) or not all(isinstance(tool, Mapping) for tool in found):
        return tools
    return [tool if "function" in tool else {"type": "function", "function": dict(tool)} for tool in found]
