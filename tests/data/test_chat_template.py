"""Prompts and label masks of conversations against `apply_chat_template` with the same arguments, token for token."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from chat_templates import (
    ANSWER,
    BYE,
    CALL,
    CASES,
    CHATML,
    DOCUMENTS,
    HERMES,
    LLAMA,
    MARKS,
    ONE_PART,
    PARTED,
    PARTS,
    QWEN,
    SHAPES,
    SILENT,
    SYSTEM,
    TOOL,
    USER,
    said,
)
from transformers import PreTrainedTokenizerFast

from raysweep.data.examples import Loaded, load_examples
from raysweep.data.formats import FORMATS
from raysweep.data.wording import find_wording
from raysweep.errors import InputError

Write = Callable[..., str]
# Marks, content and what follows it, as simply as can be; reads a message's role and content alone.
SIMPLE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


@pytest.fixture
def marked(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tokenizer with the marks of all shapes as tokens, so that none is merged with the text next to it."""
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS})
    tokenizer.model_max_length = 10_000
    return tokenizer


def loaded(write: Write, tokenizer: PreTrainedTokenizerFast, *records: Any, **options: Any) -> Loaded:
    return load_examples(write(*records), options.pop("format", "messages"), tokenizer, **options)


def refusal(write: Write, tokenizer: PreTrainedTokenizerFast, record: Any, **options: Any) -> str:
    with pytest.raises(InputError) as error:
        loaded(write, tokenizer, record, **options)
    return str(error.value).partition("line 1: ")[2]


@pytest.mark.parametrize(("shape", "what", "record"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_tokens_and_mask_equal_the_templates(
    shape: str, what: str, record: dict[str, Any], jsonl: Write, marked: PreTrainedTokenizerFast
) -> None:
    marked.chat_template = SHAPES[shape]
    messages, others = record["messages"], {key: value for key, value in record.items() if key != "messages"}
    whole = marked.apply_chat_template(messages, **others)["input_ids"]
    prompt = marked.apply_chat_template(messages[:-1], add_generation_prompt=True, **others)["input_ids"]
    found = loaded(jsonl, marked, record)
    (example,) = found.examples
    assert example.tokens.tolist() == whole[: example.length]
    assert marked.decode(whole[example.length :]).strip() == "", "only white space after the close is left out"
    assert example.tokens[: example.n_prompt].tolist() == prompt
    assert example.n_tokens > 1
    if shape != "r1":
        assert (found.n_answer_cut, found.n_blank, found.notes.dropped) == (0, 0, {})


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_has_a_case(shape: str) -> None:
    assert sum(case[0] == shape for case in CASES) >= 2
    assert len(SHAPES) > 10


def test_reasoning_that_the_template_cuts_is_counted(jsonl: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = SHAPES["r1"]
    think = said("assistant", "<think>2 and 3</think>\n\n5")
    found = loaded(jsonl, tokenizer, *[{"messages": [USER, last]} for last in (ANSWER, think, think)])
    assert found.n_answer_cut == 2
    assert [example.response for example in found.examples] == ["It is 5.<end>", *["\n\n5<end>"] * 2]
    assert loaded(jsonl, tokenizer, {"messages": [USER, think]}, prompts_only=True).n_answer_cut == 0


@pytest.mark.parametrize(
    ("content", "cut"),
    [
        ("m.content", False),
        ("m.content | trim", False),
        ("m.content.split() | join(' ')", False),
        ("m.content[:20]", True),
        ("m.content[3:]", True),
        ("m.content | upper", True),
        ("m.content | replace('5', 'five')", True),
        ("m.content if m.role == 'user' else ''", True),
    ],
)
def test_an_answer_is_whole_if_nothing_but_white_space_is_missing(
    content: str, cut: bool, jsonl: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.chat_template = SIMPLE.replace("m.content", content)
    record = {"question": "  2 + 3 are how many?  ", "answer": " \n2 + 3  =\n\n5, and not one more.  "}
    found = loaded(jsonl, tokenizer, record, format="gsm8k")
    assert found.n_answer_cut == int(cut)


def test_an_answer_that_only_the_prompt_has_is_cut(jsonl: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = SIMPLE.replace("m.content", "m.content if m.role == 'user' else ''")
    assert loaded(jsonl, tokenizer, {"question": "5", "answer": "5"}, format="gsm8k").n_answer_cut == 1


def test_an_answer_may_begin_with_what_the_prompt_opens(jsonl: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = SIMPLE.replace("<assistant>{% endif", "<assistant><think>{% endif")
    record = {"messages": [USER, said("assistant", "<think>2, 3</think>5")]}
    found = loaded(jsonl, tokenizer, record)
    assert (found.examples[0].response, found.n_answer_cut) == ("2, 3</think>5<end>", 0)
    assert refusal(jsonl, tokenizer, {"messages": [USER, ANSWER]}) == (
        "the tokenizer's chat template does not continue its own generation prompt, so the start of the response is "
        "unknown: after '<user>2 + 3?<end><assistant>' the prompt alone has '<think>', and with the answer it has "
        "'It is 5.<end>'; change the chat template so that both agree, or use another prompt template"
    )


def test_what_opens_an_answer_in_another_way_may_be_set_in_the_records(
    jsonl: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    opened = "<assistant>{% if enable_thinking is not false %}<think>{% endif %}{% endif"
    tokenizer.chat_template = SIMPLE.replace("<assistant>{% endif", opened)
    told = refusal(jsonl, tokenizer, {"messages": [USER, ANSWER]})
    assert told.endswith(
        "change the chat template so that both agree, set enable_thinking in the records, or use another prompt "
        "template"
    )
    found = loaded(jsonl, tokenizer, {"messages": [USER, ANSWER], "enable_thinking": False})
    assert found.examples[0].response == "It is 5.<end>"


def test_calls_that_leave_no_response_are_named(jsonl: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = SIMPLE.replace("<end>", "")
    with pytest.raises(InputError) as error:
        loaded(jsonl, tokenizer, {"messages": [USER, said("assistant", "", tool_calls=[CALL])]})
    assert str(error.value).endswith(
        "check the format, the texts and max_tokens; the prompt template does not use these, so they are ignored: "
        "tool_calls of "
        "assistant messages (1 record)"
    )


def test_calls_that_the_template_does_not_write_are_a_cut_answer(
    jsonl: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.chat_template = SIMPLE
    found = loaded(jsonl, tokenizer, {"messages": [USER, said("assistant", "Wait.", tool_calls=[CALL])]})
    assert (found.n_answer_cut, found.notes.unread) == (1, {"tool_calls of assistant messages": 1})


def test_a_response_that_is_a_call_or_reasoning_is_not_blank(jsonl: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = QWEN
    lasts = [SILENT, said("assistant", "", reasoning_content="5"), said("assistant", " ")]
    assert loaded(jsonl, tokenizer, *[{"messages": [USER, last]} for last in lasts]).n_blank == 1


# what is not read ------------------------------------------------------------------------------------------------


def test_keys_that_no_text_depends_on_are_listed_once(jsonl: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = SIMPLE
    first = {"messages": [USER | {"name": "Ann"}, ANSWER | {"weight": 0}], "tools": [TOOL], "id": 7, "empty": ""}
    second = {"messages": [said("system", "Hi", name="x"), USER, ANSWER | {"reasoning_content": "so"}], "id": 8}
    found = loaded(jsonl, tokenizer, first, second)
    assert found.notes.unread == {
        "tools": 1,
        "id": 2,
        "name of user messages": 1,
        "weight of assistant messages": 1,
        "name of system messages": 1,
        "reasoning_content of assistant messages": 1,
    }
    assert found.notes.warnings("messages") == [
        "the prompt template does not use these, so they are ignored: tools (1 record), id (2 records), name of user "
        "messages (1 "
        "record), weight of assistant messages (1 record), name of system messages (1 record), reasoning_content of assistant "
        "messages (1 record)"
    ]


def test_keys_that_texts_depend_on_are_not(jsonl: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = HERMES
    result = said("tool", "5", name="add", tool_call_id="abc")
    found = loaded(jsonl, tokenizer, {"messages": [USER, SILENT, result, ANSWER], "tools": [TOOL]})
    assert found.notes.unread == {"tool_call_id of tool messages": 1}


def test_a_key_that_one_record_needs_is_read(jsonl: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = QWEN
    earlier = {
        "messages": [USER, ANSWER | {"reasoning_content": "so"}, USER, ANSWER]
    }  # cut where it is no longer the last
    last = {"messages": [USER, ANSWER | {"reasoning_content": "so"}]}
    assert loaded(jsonl, tokenizer, earlier).notes.unread == {"reasoning_content of assistant messages": 1}
    assert loaded(jsonl, tokenizer, earlier, last, earlier).notes.unread == {}


def test_two_names_of_one_thing_are_both_read(jsonl: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = QWEN
    record = {"messages": [USER, ANSWER | {"reasoning_content": "so", "reasoning": "so", "id": 3}]}
    assert loaded(jsonl, tokenizer, record).notes.unread == {"id of assistant messages": 1}


def test_a_template_may_read_whole_messages(jsonl: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = SIMPLE.replace("{{ m.content }}", "{{ m | tojson }}")
    found = loaded(jsonl, tokenizer, {"messages": [USER | {"name": "Ann"}, ANSWER]})
    assert found.notes.unread == {}
    assert '"name": "Ann"' in found.examples[0].prompt


def test_messages_that_are_not_written_are_counted_by_role(jsonl: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = SIMPLE.replace("in messages", "in messages if m.role != 'system'")
    records = [{"messages": [SYSTEM, USER, ANSWER]}, {"messages": [SYSTEM, USER, ANSWER]}, {"messages": [USER, ANSWER]}]
    found = loaded(jsonl, tokenizer, *records)
    assert found.notes.warnings("messages") == [
        "the chat template does not include the full text of every message: system (2 records)"
    ]


def test_fields_that_another_format_does_not_give_are_named(jsonl: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = LLAMA
    record = {"question": "2 + 3?", "answer": "5", "tools": [TOOL], "level": "easy"}
    plain = loaded(jsonl, tokenizer, {"question": "2 + 3?", "answer": "5"}, format="gsm8k")
    found = loaded(jsonl, tokenizer, record, format="gsm8k")
    assert found.examples[0].tokens.tolist() == plain.examples[0].tokens.tolist()
    assert found.notes.warnings("gsm8k") == [
        "the chat template uses fields that format 'gsm8k' does not provide: tools (1 record); use format messages if "
        "the "
        "prompt should have them"
    ]
    own = loaded(jsonl, tokenizer, record, format="columns", prompt="{{ tools[0].function.name }}", response="answer")
    assert own.notes.warnings("columns") == [], "the prompt has them"
    assert plain.notes.warnings("gsm8k") == []


# what the template gets besides messages ------------------------------------------------------------------------


def test_fields_cannot_take_the_place_of_what_the_tokenizer_gives(
    jsonl: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.chat_template = "{{ bos_token }}" + SIMPLE + "{% if max_length or namespace(x=1).x == 2 %}!{% endif %}"
    plain = {"messages": [USER, ANSWER]}
    clashing = {
        "bos_token": "B",
        "add_generation_prompt": True,
        "max_length": 3,
        "namespace": "n",
        "conversations": [1],
    }
    found = loaded(jsonl, tokenizer, plain | clashing)
    assert found.examples[0].tokens.tolist() == loaded(jsonl, tokenizer, plain).examples[0].tokens.tolist()
    assert list(found.notes.unread) == list(clashing)


def test_further_variables_of_the_template(jsonl: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = QWEN
    off = {"messages": [USER, ANSWER], "chat_template_kwargs": {"enable_thinking": False, "mood": "good", "x": None}}
    found = loaded(jsonl, tokenizer, off)
    assert found.examples[0].prompt.endswith("<think>\n\n</think>\n\n")
    assert found.notes.unread == {"chat_template_kwargs.mood": 1}


@pytest.mark.parametrize("as_text", [False, True])
def test_tools_and_documents_may_be_json_text(as_text: bool, jsonl: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = SHAPES["command"]
    given = {"tools": [TOOL], "documents": DOCUMENTS}
    record = {"messages": [USER, ANSWER], **{k: json.dumps(v) if as_text else v for k, v in given.items()}}
    want = tokenizer.apply_chat_template([USER], add_generation_prompt=True, tokenize=False, **given)
    assert loaded(jsonl, tokenizer, record).examples[0].prompt == want
    bare = tokenizer.apply_chat_template([USER], add_generation_prompt=True, tokenize=False)
    assert (
        loaded(jsonl, tokenizer, {"messages": [USER, ANSWER], "tools": "", "documents": None}).examples[0].prompt
        == bare
    )


@pytest.mark.parametrize("tools", ["add", "{}", '["add"]', ["add"], {"a": 1}, 3])
def test_tools_that_are_no_list_of_objects(tools: Any, jsonl: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = HERMES
    record = {"messages": [USER, ANSWER], "tools": tools}
    told = f"has tools {tools!r}, but a chat template needs a list of objects, or its JSON"
    assert refusal(jsonl, tokenizer, record) == told
    tokenizer.chat_template = SIMPLE
    assert loaded(jsonl, tokenizer, record).notes.unread == {"tools": 1}


def test_of_several_templates_tools_choose_theirs(jsonl: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = {"default": SIMPLE, "tool_use": HERMES}  # type: ignore[assignment]
    with_tools = {"messages": [USER, ANSWER], "tools": [TOOL]}
    found = loaded(jsonl, tokenizer, with_tools, {"messages": [USER, ANSWER]})
    want = tokenizer.apply_chat_template([USER], tools=[TOOL], add_generation_prompt=True, tokenize=False)
    assert [example.prompt for example in found.examples] == [want, "<user>2 + 3?<end><assistant>"]
    assert found.notes.unread == {}
    tokenizer.chat_template = {"rag": SIMPLE, "tool_use": HERMES}  # type: ignore[assignment]
    assert loaded(jsonl, tokenizer, with_tools).examples[0].prompt == want
    assert refusal(jsonl, tokenizer, {"messages": [USER, ANSWER]}) == (
        "the tokenizer has several chat templates, rag, tool_use, and none of them is named default; name one default, "
        "or use another prompt template"
    )


def test_arguments_of_calls_reach_the_template_as_written(jsonl: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = HERMES
    as_text = {"function": {"name": "add", "arguments": '{"a": 2, "b": null}'}}
    as_object = {"function": {"name": "add", "arguments": {"a": 2, "b": None}}}
    records = [{"messages": [USER, said("assistant", None, tool_calls=[call])]} for call in (as_text, as_object)]
    found = loaded(jsonl, tokenizer, *records)
    assert r'"arguments": "{\"a\": 2, \"b\": null}"' in found.examples[0].response
    assert '"arguments": {"a": 2, "b": null}' in found.examples[1].response
    assert found.notes.warnings("messages") == [
        "the chat template writes arguments of tool calls that are JSON text as a quoted string: 1 record; give objects if the "
        "model was trained on objects"
    ]
    tokenizer.chat_template = QWEN
    assert loaded(jsonl, tokenizer, records[0]).notes.quoted == 0, "it writes them as they are"


# parts of a content ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [CHATML, SIMPLE, SIMPLE.replace("m.content", "m.content | trim")])
def test_a_template_for_texts_gets_the_text_of_the_parts(
    template: str, jsonl: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.chat_template = template
    one = loaded(jsonl, tokenizer, {"messages": [said("user", [{"type": "text", "text": "2 + 3?"}]), ONE_PART]})
    plain = loaded(jsonl, tokenizer, {"messages": [USER, ANSWER]})
    assert one.examples[0].tokens.tolist() == plain.examples[0].tokens.tolist()
    assert one.notes.warnings("messages") == []
    several = loaded(jsonl, tokenizer, {"messages": [PARTED, ONE_PART]})
    joined = loaded(jsonl, tokenizer, {"messages": [said("user", "2 + 3?\n Say it."), ANSWER]})
    assert several.examples[0].tokens.tolist() == joined.examples[0].tokens.tolist()
    assert several.notes.warnings("messages") == [
        "the prompt template takes only text, so messages with several text parts are joined by line breaks: 1 record"
    ]


def test_a_template_that_passes_over_parts_gets_texts(jsonl: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = SIMPLE.replace("m.content", "m.content if m.content is string else ''")
    found = loaded(jsonl, tokenizer, {"messages": [PARTED, ONE_PART]})
    assert found.examples[0].prompt == "<user>2 + 3?\n Say it.<end><assistant>"


def test_a_template_that_cuts_a_part_gets_the_parts_as_they_are(
    jsonl: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.chat_template = PARTS.replace("part.text", "part.text[:4]")
    found = loaded(jsonl, tokenizer, {"messages": [PARTED, ONE_PART]})
    assert found.examples[0].prompt == "<|im_start|>user\n2 +  Say<|im_end|>\n<|im_start|>assistant\n"
    assert (found.n_answer_cut, found.notes.dropped, found.notes.joined) == (1, {"user": 1}, 0)


def test_null_keys_of_messages_and_parts_say_nothing(jsonl: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = PARTS
    part = {"type": "text", "text": "2 + 3?", "image": None}
    record = {
        "messages": [{"role": "user", "content": [part], "tool_calls": None, "name": None}, ONE_PART],
        "tools": None,
    }
    found = loaded(jsonl, tokenizer, record)
    assert found.examples[0].prompt == "<|im_start|>user\n2 + 3?<|im_end|>\n<|im_start|>assistant\n"
    assert found.notes.warnings("messages") == []


def test_parts_of_other_types_reach_a_template_that_knows_them(
    jsonl: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    thought, text = {"type": "thinking", "thinking": "2, 3"}, {"type": "text", "text": "5"}
    record = {"messages": [PARTED, said("assistant", [thought, text])]}
    tokenizer.chat_template = PARTS
    assert loaded(jsonl, tokenizer, record).examples[0].response == "[2, 3]5<|im_end|>"
    tokenizer.chat_template = SIMPLE
    assert refusal(jsonl, tokenizer, record) == (
        "message 1 (counted from 0) has a part of type 'thinking', which the tokenizer's chat template does not know; "
        "remove it, or give its text as a part of type 'text'"
    )
    tokenizer.chat_template = SIMPLE + "{# #}{% if x == 'thinking' %}{% endif %}"
    assert refusal(jsonl, tokenizer, record) == (
        "message 1 (counted from 0) has a part of type 'thinking', and the tokenizer's chat template takes only text; "
        "remove it, or give its text as a part of type 'text'"
    )


@pytest.mark.parametrize("kind", ["image", "image_url", "input_audio", "video"])
def test_images_and_sounds_are_refused(kind: str, jsonl: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = PARTS
    record = {"messages": [said("user", [{"type": "text", "text": "Which?"}, {"type": kind, kind: "x.png"}]), ONE_PART]}
    assert refusal(jsonl, tokenizer, record) == (
        f"has a message 0 (counted from 0) whose content has a part of type '{kind}'; only text is measured, so "
        "exclude such records"
    )


def test_a_tools_result_may_be_an_object_if_the_template_writes_it(
    jsonl: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    record = {"messages": [USER, SILENT, said("tool", {"sum": 5}), ANSWER], "tools": [TOOL]}
    tokenizer.chat_template = LLAMA
    assert '<|end_header_id|>\n\n{"sum": 5}<|eot_id|>' in loaded(jsonl, tokenizer, record).examples[0].prompt
    tokenizer.chat_template = SIMPLE
    assert refusal(jsonl, tokenizer, record) == (
        "message 2 (counted from 0) has a content that is not text, {'sum': 5}, and the tokenizer's chat template "
        "takes only text; give its text"
    )


# other wordings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "llama2", "phi3"])
@pytest.mark.parametrize(
    ("record", "named"),
    [
        ({"messages": [USER, ANSWER], "tools": [TOOL]}, "tools"),
        ({"messages": [USER, SILENT]}, "tool_calls"),
        (
            {"messages": [USER, ANSWER | {"reasoning_content": "so"}], "documents": DOCUMENTS},
            "reasoning_content, documents",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_wordings_have_no_text_for_tools(
    name: str, record: dict[str, Any], named: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(InputError) as error:
        find_wording(name).texts(FORMATS["messages"], record, tokenizer)
    assert str(error.value) == f"prompt template '{name}' does not support the record's {named}; use template 'chat'"


def test_other_wordings_join_parts_and_list_what_they_ignore(jsonl: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    found = loaded(jsonl, tokenizer, {"messages": [PARTED | {"name": "Ann"}, ONE_PART], "id": 1}, template="plain")
    assert (found.examples[0].prompt, found.examples[0].response) == ("2 + 3?\n Say it.", "\nIt is 5.")
    assert (found.notes.joined, found.notes.unread) == (1, {"id": 1, "name of user messages": 1})


def test_white_space_of_the_answer_stays(jsonl: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = SIMPLE
    assert loaded(jsonl, tokenizer, {"messages": [USER, BYE]}).examples[0].response == f"{BYE['content']}<end>"
