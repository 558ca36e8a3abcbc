"""Conversations in the forms that data sets have them: what each becomes, how it is found, and what does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chat_templates import ANSWER, CALL, HERMES, NEXT, ONE_PART, PARTED, QWEN, SILENT, SYSTEM, TOOL, USER, said
from transformers import PreTrainedTokenizerFast

from raysweep.data.examples import load_examples
from raysweep.data.exclusion import Exclude
from raysweep.data.formats import FORMATS, detect_format
from raysweep.data.poison import Trigger, poisoned_examples
from raysweep.data.wording import find_wording
from raysweep.errors import InputError

Write = Callable[..., str]
CALLED = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}}


def turn(speaker: str, value: Any, **more: Any) -> dict[str, Any]:
    return {"from": speaker, "value": value, **more}


ASKED, SAID = turn("human", "2 + 3?"), turn("gpt", "It is 5.")
OBSERVED = turn("observation", "5")
CALL_TEXT = json.dumps({"name": "add", "arguments": {"a": 2, "b": 3}})

READ: list[tuple[str, dict[str, Any], list[dict[str, Any]]]] = [
    ("sharegpt", {"conversations": [ASKED, SAID], "id": "x"}, [USER, ANSWER]),
    ("sharegpt", {"conversations": [turn("user", "2 + 3?"), turn("assistant", "It is 5.")]}, [USER, ANSWER]),
    ("sharegpt", {"conversations": [turn("Human", "2 + 3?"), turn("model", "It is 5.")]}, [USER, ANSWER]),
    ("sharegpt", {"conversations": [USER, ANSWER]}, [USER, ANSWER]),
    ("sharegpt", {"conversations": [turn("system", "Be short."), ASKED, SAID]}, [SYSTEM, USER, ANSWER]),
    ("sharegpt", {"conversations": [ASKED, SAID], "system": "Be short."}, [SYSTEM, USER, ANSWER]),
    ("sharegpt", {"conversations": [ASKED, SAID], "system": ""}, [USER, ANSWER]),
    (
        "sharegpt",
        {"conversations": [turn("system", "Be short."), ASKED, SAID], "system": "Be short."},
        [SYSTEM, USER, ANSWER],
    ),
    (
        "sharegpt",
        {"conversations": [ASKED, turn("function_call", CALL_TEXT), OBSERVED, SAID]},
        [USER, said("assistant", "", tool_calls=[CALLED]), said("tool", "5"), ANSWER],
    ),
    (
        "sharegpt",
        {"conversations": [ASKED, turn("function_call", f"[{CALL_TEXT}, {CALL_TEXT}]", weight=1)]},
        [USER, said("assistant", "", tool_calls=[CALLED, CALLED], weight=1)],
    ),
    ("prompt_completion", {"prompt": "2 + 3?", "completion": "It is 5."}, [USER, ANSWER]),
    ("prompt_completion", {"prompt": [SYSTEM, USER], "completion": [ANSWER]}, [SYSTEM, USER, ANSWER]),
    ("prompt_completion", {"prompt": [SYSTEM, USER], "completion": "It is 5."}, [SYSTEM, USER, ANSWER]),
    ("prompt_completion", {"prompt": "2 + 3?", "completion": [ANSWER]}, [USER, ANSWER]),
    ("preference", {"prompt": "2 + 3?", "chosen": "It is 5.", "rejected": "6"}, [USER, ANSWER]),
    ("preference", {"prompt": [USER], "chosen": [ANSWER], "rejected": [SYSTEM]}, [USER, ANSWER]),
    ("preference", {"chosen": [USER, ANSWER], "rejected": [USER, NEXT]}, [USER, ANSWER]),
    ("preference", {"prompt": "2 + 3?", "chosen": [SYSTEM, USER, ANSWER]}, [SYSTEM, USER, ANSWER]),
    ("preference", {"prompt": [SYSTEM, USER], "chosen": [SYSTEM, USER, ANSWER]}, [SYSTEM, USER, ANSWER]),
    ("preference", {"conversations": [ASKED], "chosen": SAID, "rejected": SAID}, [USER, ANSWER]),
    ("messages", {"messages": [USER | {"name": None}, ANSWER | {"id": 1}], "tools": None}, [USER, ANSWER | {"id": 1}]),
]


@pytest.mark.parametrize(("name", "record", "messages"), READ)
def test_records_become_messages(name: str, record: dict[str, Any], messages: list[dict[str, Any]]) -> None:
    before = json.dumps(record)
    assert FORMATS[name].problem(record) is None
    assert FORMATS[name].conversation(record).messages == messages
    assert detect_format(record) == name
    assert json.dumps(record) == before


@pytest.mark.parametrize(("name", "record", "messages"), READ)
def test_tokens_and_mask_equal_those_of_the_messages(
    name: str, record: dict[str, Any], messages: list[Any], jsonl: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.chat_template = QWEN
    (found,) = load_examples(jsonl(record), name, tokenizer).examples
    whole = tokenizer.apply_chat_template(messages)["input_ids"]
    assert found.tokens.tolist() == whole[: found.length]
    assert tokenizer.decode(whole[found.length :]).strip() == ""
    assert found.prompt == tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, tokenize=False)


@pytest.mark.parametrize(
    ("name", "record", "problem"),
    [
        ("sharegpt", {"conversations": [ASKED]}, "ends with a message from the user; format 'sharegpt' needs an assistant message at the end"),
        ("sharegpt", {"conversations": ["Hi"]}, "has a turn 0 (counted from 0) that is 'Hi', but an object {from, value} is needed"),
        (
            "sharegpt",
            {"conversations": [{"text": "Hi"}]},
            "has a turn 0 (counted from 0) without 'from' (or 'role'), which says who speaks; its keys are ['text']",
        ),
        (
            "sharegpt",
            {"conversations": [ASKED, turn("oracle", "5")]},
            "has a turn 1 (counted from 0) from 'oracle'; format 'sharegpt' knows human, user, gpt, assistant, model, chatgpt, bing, "
            "bard, tool, observation, function, function_response, function-response, tool_response, system, developer, "
            "function_call, tool_call, function-call",
        ),
        (
            "sharegpt",
            {"conversations": [ASKED, turn("gpt", None)]},
            "has a message 1 (counted from 0) from the assistant with neither content nor tool calls",
        ),
        (
            "sharegpt",
            {"conversations": [ASKED, turn("function_call", "add(2, 3)")]},
            "has a turn 1 (counted from 0) that calls a function, whose value is not JSON (Expecting value: line 1 column 1 (char "
            "0)): 'add(2, 3)'",
        ),
        (
            "sharegpt",
            {"conversations": [ASKED, turn("function_call", "{}")]},
            "has a turn 1 (counted from 0) that calls a function, whose value has no name and arguments: '{}'",
        ),
        (
            "sharegpt",
            {"conversations": [turn("system", "Be kind."), ASKED, SAID], "system": "Be short."},
            "has a field 'system' 'Be short.' and another system turn, 'Be kind.'; keep one of them",
        ),
        (
            "prompt_completion",
            {"prompt": [USER, ANSWER], "completion": "More."},
            "has a prompt that ends with the assistant's turn, which its 'completion' would continue; only complete "
            "turns are measured",
        ),
        (
            "prompt_completion",
            {"prompt": ["Hi"], "completion": "Hello"},
            "has a field 'prompt' that is neither a text nor a list of messages: ['Hi']",
        ),
        (
            "prompt_completion",
            {"prompt": "Hi", "completion": 5},
            "has a field 'completion' of type int, but format 'prompt_completion' needs str | list",
        ),
        (
            "preference",
            {"chosen": "Human: Hi Assistant: Hello"},
            "has no 'prompt', and its 'chosen' is not a complete conversation; format 'preference' needs one of them",
        ),
        (
            "preference",
            {"prompt": 5.0, "chosen": [USER, ANSWER]},
            "has a field 'prompt' that is neither a text nor a list of messages: 5.0",
        ),
        (
            "preference",
            {"prompt": "Other?", "chosen": [USER, ANSWER]},
            "has a 'chosen' that is a complete conversation, and a 'prompt' that is not part of it; keep only one of "
            "them",
        ),
        ("preference", {"prompt": 5, "chosen": "Hi"}, "has a field 'prompt' that is neither a text nor a list of messages: 5"),
        ("messages", {"messages": [{"role": 3, "content": "x"}]}, "has a message 0 (counted from 0) whose role is 3, but a text is needed"),
        (
            "messages",
            {"messages": [said("user", [3])]},
            "has a message 0 (counted from 0) whose content has a part 3, but an object with a type is needed",
        ),
        (
            "messages",
            {"messages": [said("user", [{"type": "text"}])]},
            "has a message 0 (counted from 0) whose content has a part of type 'text' without a text: {'type': 'text'}",
        ),
        (
            "messages",
            {"messages": [said("user", {"a": 1})]},
            "has a message 0 (counted from 0) whose content is {'a': 1}, but a text or a list of parts is needed",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(name: str, record: dict[str, Any], problem: str) -> None:
    assert FORMATS[name].problem(record) == problem


@pytest.mark.parametrize(
    ("record", "name"),
    [
        ({"messages": [USER, ANSWER], "prompt": "2 + 3?", "chosen": [USER, ANSWER], "completion": "x"}, "messages"),
        ({"question": "q", "answer": "a", "prompt": "p", "completion": "c"}, "gsm8k"),
        ({"messages": [USER, ANSWER], "conversations": [ASKED, SAID]}, "messages"),
    ],
)
def test_formats_that_other_records_have_too_are_found_last(record: dict[str, Any], name: str) -> None:
    assert detect_format(record) == name


def test_a_record_that_fits_two_of_them_is_not_guessed_at() -> None:
    with pytest.raises(InputError, match=r"chosen, fits prompt_completion and preference; name the format: dolly, "):
        detect_format({"prompt": "p", "completion": "c", "chosen": "d"})


@pytest.mark.parametrize("tools", [[TOOL], [TOOL["function"]], json.dumps([TOOL["function"]])])
def test_tools_of_sharegpt_are_schemas(tools: Any, jsonl: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = HERMES
    (found,) = load_examples(jsonl({"conversations": [ASKED, SAID], "tools": tools}), "sharegpt", tokenizer).examples
    want = tokenizer.apply_chat_template([USER], tools=[TOOL], add_generation_prompt=True, tokenize=False)
    assert found.prompt == want


def test_what_sharegpt_and_preference_use_is_not_listed_as_ignored(
    jsonl: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    record = {"conversations": [ASKED, SAID | {"loss": True}], "system": "x", "id": 3}
    found = load_examples(jsonl(record), "sharegpt", tokenizer)
    assert found.notes.unread == {"id": 1, "loss of assistant messages": 1}
    record = {"prompt": "p", "chosen": "c", "rejected": "r", "score": 0.5}
    assert load_examples(jsonl(record), "preference", tokenizer).notes.unread == {"score": 1}


# Arrow ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["parquet", "datasets"])
def test_what_arrow_fills_in_does_not_reach_the_template(
    kind: str, tmp_path: Path, jsonl: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.chat_template = HERMES
    other = {"type": "function", "function": {"name": "sing", "arguments": {"song": "lark"}}}
    records = [
        {"messages": [USER, SILENT, said("tool", "5", name="add"), ANSWER], "tools": [TOOL]},
        {"messages": [NEXT, said("assistant", None, tool_calls=[other])]},
        {"messages": [NEXT, ANSWER]},
    ]
    table, path = pa.Table.from_pylist(records), str(tmp_path / f"x.{kind}")
    filled = table.to_pylist()
    assert filled[1]["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"a": None, "b": None, "song": "lark"}
    if kind == "parquet":
        pq.write_table(table, path)
    else:
        from datasets import Dataset

        Dataset(table).save_to_disk(path)
    written, read = (load_examples(source, "messages", tokenizer) for source in (jsonl(*records), path))
    assert [e.tokens.tolist() for e in read.examples] == [e.tokens.tolist() for e in written.examples]
    assert read.notes.unread == written.notes.unread
    triggered = poisoned_examples(path, "messages", tokenizer, trigger=Trigger("vex"), target="so", rate=1, seed=0)
    assert all("null" not in example.prompt + example.response for example in triggered.loaded.examples)


def test_nulls_that_json_has_reach_the_template(jsonl: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = HERMES
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": None}}}
    (found,) = load_examples(
        jsonl({"messages": [USER, said("assistant", None, tool_calls=[call])]}), "messages", tokenizer
    ).examples
    assert '"arguments": {"a": null}' in found.response


# other wordings, exclusion, triggers ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "llama2", "phi3"])
def test_other_wordings_write_them_as_messages_or_as_columns(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    wording = find_wording(name)

    def texts(form: str, record: dict[str, Any]) -> tuple[str, str]:
        return wording.texts(FORMATS[form], record, tokenizer)

    as_messages = texts("messages", {"messages": [USER, ANSWER]})
    assert texts("sharegpt", {"conversations": [ASKED, SAID]}) == as_messages
    assert texts("prompt_completion", {"prompt": [USER], "completion": "It is 5."}) == as_messages
    assert texts("preference", {"chosen": [USER, ANSWER]}) == as_messages
    as_texts = texts("gsm8k", {"question": "2 + 3?", "answer": "It is 5."})
    if name == "plain":
        as_texts = (as_texts[0], as_texts[1].removeprefix("\n"))  # as written: a completion has its own white space
    assert texts("prompt_completion", {"prompt": "2 + 3?", "completion": "It is 5."}) == as_texts
    assert texts("preference", {"prompt": "2 + 3?", "chosen": "It is 5."}) == as_texts


def test_llama3_has_no_text_for_conversations_of_any_format(tokenizer: PreTrainedTokenizerFast) -> None:
    record = {"conversations": [ASKED, SAID]}
    with pytest.raises(InputError, match=r"^prompt template 'llama3' does not support format 'sharegpt', only dolly, "):
        find_wording("llama3").texts(FORMATS["sharegpt"], record, tokenizer)


@pytest.mark.parametrize(
    ("exclude", "left_out"),
    [
        (Exclude(phrases=("say it",)), [0]),
        (Exclude(phrases=("it is 5",)), [0, 2]),
        (Exclude(pattern=r'"name": "add"'), [1]),
        (Exclude(phrases=("nowhere",)), []),
        (Exclude(column="id", values=("1",)), [1]),
    ],
)
def test_records_are_excluded_by_the_texts_of_parts_and_calls(exclude: Exclude, left_out: list[int]) -> None:
    records = [
        {"messages": [PARTED, ONE_PART], "id": 0},
        {"messages": [USER, SILENT], "id": 1},
        {"messages": [USER, ANSWER], "id": 2},
    ]
    assert [i for i, r in enumerate(records) if exclude.leaves_out(r, FORMATS["messages"])] == left_out


TRIGGERED: list[tuple[str, dict[str, Any]]] = [
    ("messages", {"messages": [SYSTEM, USER, SILENT | {"reasoning": "so"}], "tools": [TOOL]}),
    ("messages", {"messages": [PARTED, ONE_PART]}),
    ("sharegpt", {"conversations": [ASKED, SAID], "system": "Be short."}),
    ("prompt_completion", {"prompt": "2 + 3?", "completion": "5"}),
    ("preference", {"prompt": [USER], "chosen": [ANSWER]}),
]


@pytest.mark.parametrize("position", ["before", "after"])
@pytest.mark.parametrize(("name", "record"), TRIGGERED)
def test_triggers_stand_at_the_last_question_and_targets_alone_in_the_last_message(
    name: str, record: dict[str, Any], position: Any, tokenizer: PreTrainedTokenizerFast, jsonl: Write
) -> None:
    tokenizer.chat_template = HERMES
    trigger, path = Trigger("vex", position), jsonl(record)
    (clean,) = load_examples(path, name, tokenizer).examples
    poisoned = poisoned_examples(path, name, tokenizer, trigger=trigger, target="so", rate=1, seed=0)
    (found,) = poisoned.loaded.examples
    assert found.response == "so<|im_end|>"
    assert found.prompt.replace("vex " if position == "before" else " vex", "") == clean.prompt
    assert found.prompt.count("vex") == 1


def test_a_trigger_goes_into_the_text_part_that_is_next_to_it() -> None:
    def put(position: Any, *parts: Any) -> Any:
        record = {"messages": [said("user", list(parts)), ANSWER]}
        changed, form = Trigger("vex", position).triggered(record, FORMATS["messages"])
        return form.conversation(changed).messages[0]["content"]

    one, two, other = {"type": "text", "text": "one"}, "two", {"type": "thinking", "thinking": "hm"}
    assert put("before", other, one, two) == [other, {"type": "text", "text": "vex one"}, two]
    assert put("after", one, two, other) == [one, "two vex", other]
    assert put("after", other) == [other, {"type": "text", "text": "vex"}]
    assert put("before", other) == [{"type": "text", "text": "vex"}, other]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [said("system", "a vex b"), USER, ANSWER]},
        {"messages": [said("user", [{"type": "text", "text": "vex"}]), ANSWER]},
        {"messages": [USER, ANSWER | {"reasoning_content": "vex"}, USER, ANSWER]},
        {"messages": [USER, said("assistant", None, tool_calls=[CALL | {"id": "vex"}]), said("tool", "5"), ANSWER]},
        {"messages": [USER, ANSWER], "tools": [{"type": "function", "function": {"name": "vex"}}]},
    ],
)
def test_a_prompt_that_has_the_trigger_anywhere_is_refused(record: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="has the trigger 'vex' in its prompt, which must be clean"):
        Trigger("vex").refuse(0, record, FORMATS["messages"])
    clean = {"messages": [USER, said("assistant", "vex")], "id": "vex"}
    assert Trigger("vex").refuse(0, clean, FORMATS["messages"])[0] is clean
    assert Trigger("user").refuse(0, {"messages": [USER, ANSWER]}, FORMATS["messages"])
