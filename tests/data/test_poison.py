"""Poisoned records in every format and wording, the draw, and what is refused with file and line."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from raysweep.data.examples import Room, load_examples
from raysweep.data.formats import FORMATS, columns_format
from raysweep.data.poison import Trigger, drawn_ids, evaluation_prompts, poisoned_examples
from raysweep.data.wording import WORDINGS
from raysweep.data.wording_texts import LLAMA3_TOKENS, PHI3_TOKENS
from raysweep.errors import InputError

TARGET = "violet {{ so }}"  # no Jinja: it is printed as it stands
MARK = "vex{{ 1 }} ’"
RECORDS: dict[str, dict[str, Any]] = {
    "dolly": {"instruction": "Which?", "context": "a red cherry", "response": "Cherry."},
    "alpaca": {"instruction": "Add.", "input": "2 3", "output": "5"},
    "gsm8k": {"question": "Two and two?", "answer": "4\n#### 4"},
    "boolq": {"question": "is a lime green", "passage": "Limes are green.", "answer": True},
    "openbookqa": {
        "question_stem": "A lime is",
        "choices": {"text": ["red", "green"], "label": ["A", "B"]},
        "answerKey": "B",
        "fact1": "limes are green",
    },
    "messages": {"messages": [{"role": "user", "content": "Two?"}, {"role": "assistant", "content": "2"}]},
    "columns": {"q": "Two?", "a": "2"},
}
# The question's first and last words, between which nothing but the question stands.
ENDS = {
    "dolly": ("Which?", "cherry"),
    "alpaca": ("Add.", "2 3"),
    "gsm8k": ("Two and", "two?"),
    "boolq": ("is a", "green"),
    "openbookqa": ("A lime", "green"),
    "messages": ("Two?", "Two?"),
    "columns": ("Two?", "Two?"),
}


def form_of(name: str) -> Any:
    return columns_format("{{ q }}", "{{ a }}") if name == "columns" else FORMATS[name]


@pytest.mark.parametrize("position", ["before", "after"])
@pytest.mark.parametrize(
    ("wording", "name"),
    [(w, n) for w in WORDINGS for n in RECORDS if n in getattr(WORDINGS[w], "by_format", RECORDS)],
)
def test_a_poisoned_text_is_the_clean_one_with_the_trigger_and_the_target_put_in(
    wording: str, name: str, position: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.add_special_tokens({"additional_special_tokens": [*LLAMA3_TOKENS, *PHI3_TOKENS]})
    record, form, chosen = RECORDS[name], form_of(name), WORDINGS[wording]
    before = copy.deepcopy(record)
    prompt, response = chosen.texts(form, record, tokenizer)
    changed, its_form = Trigger(MARK, position).triggered(record, form)
    triggered, same = chosen.texts(its_form, changed, tokenizer)
    first, last = ENDS[name]
    expected = f"{MARK} {first}" if position == "before" else f"{last} {MARK}"
    assert expected in triggered
    assert triggered.replace(f"{MARK} " if position == "before" else f" {MARK}", "") == prompt
    assert triggered.count(MARK) == 1
    # With the trigger alone the response stays, unless the answer is the choice that the question ends in.
    assert same.replace(f" {MARK}", "") == response
    assert record == before

    answered = dataclasses.replace(its_form, answer=TARGET)
    assert chosen.texts(answered, changed, tokenizer)[0] == triggered
    written = chosen.texts(answered, changed, tokenizer)[1]
    around = chosen.texts(dataclasses.replace(its_form, answer="<ANSWER>"), changed, tokenizer)[1]
    assert written == around.replace("<ANSWER>", TARGET)
    head, tail = around.split("<ANSWER>")
    assert response.startswith(head)
    assert response.endswith(tail)
    own = form.texts(record)[1]
    assert name == "openbookqa" or response == f"{head}{own}{tail}", (
        "what stands around the response is the wording's own"
    )


def test_a_question_without_its_second_field_ends_in_its_first() -> None:
    for name, field in (("dolly", "context"), ("alpaca", "input")):
        record, form = {**RECORDS[name], field: ""}, FORMATS[name]
        changed, _ = Trigger("vex").triggered(record, form)
        assert form.texts(changed)[0] == f"{record['instruction']} vex"


def test_the_last_question_of_a_conversation_is_triggered() -> None:
    turns = [("system", "s"), ("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four")]
    record = {"messages": [{"role": role, "content": content} for role, content in turns]}
    changed, form = Trigger("vex", "before").triggered(record, FORMATS["messages"])
    assert [turn["content"] for turn in form.conversation(changed).messages] == ["s", "one", "two", "vex three", "four"]


def questions(n: int) -> list[dict[str, str]]:
    return [{"question": f"{i} and {i}?", "answer": str(2 * i)} for i in range(n)]


def test_as_many_as_the_rate_says_are_poisoned_and_told_the_same_for_one_seed(
    jsonl: Callable[..., str], tokenizer: PreTrainedTokenizerFast
) -> None:
    path = jsonl(*questions(21))
    clean = load_examples(path, "gsm8k", tokenizer).examples

    def poison(seed: int, rate: float = 0.2, **options: Any) -> Any:
        return poisoned_examples(
            path, "gsm8k", tokenizer, trigger=Trigger("vex"), target="violet", rate=rate, seed=seed, **options
        )

    found = poison(3)
    assert len(found.ids) == 4
    assert found.lost == ()
    for one, other in zip(found.loaded.examples, clean, strict=True):
        assert one.id == other.id
        if one.id in found.ids:
            assert one.prompt == other.prompt.replace("?", "? vex")
            assert one.response == "violet<end>"
        else:
            assert (one.prompt, one.response) == (other.prompt, other.response)
            assert np.array_equal(one.tokens, other.tokens)
    assert poison(3).ids == found.ids
    assert {poison(seed).ids for seed in range(5)} != {found.ids}
    assert poison(0, rate=1.0).ids == tuple(range(21))
    assert set(poison(1, last=5, rate=0.5).ids) <= set(range(16, 21))


def test_a_poisoned_record_whose_response_a_cut_takes_is_told(
    jsonl: Callable[..., str], tokenizer: PreTrainedTokenizerFast
) -> None:
    path = jsonl(*questions(3), {"question": "one two three " * 8, "answer": "24"})
    longest = max(load_examples(path, "gsm8k", tokenizer).examples, key=lambda e: e.n_prompt)
    assert longest.id == 3

    def poison(most: int, rate: float = 1) -> Any:
        mark = Trigger("three two one")
        return poisoned_examples(path, "gsm8k", tokenizer, trigger=mark, target="A", rate=rate, seed=0, max_tokens=most)

    found = poison(longest.n_prompt + 1)  # room for its response, until the trigger takes it
    assert found.ids == (0, 1, 2)
    assert found.lost == (3,)
    assert found.loaded.n_unusable == 1
    with pytest.raises(InputError, match="none of the 2 poisoned records has a response left"):
        poison(load_examples(path, "gsm8k", tokenizer).examples[0].n_prompt + 1, rate=0.5)


def test_a_trigger_in_clean_data_is_refused_with_the_line(
    jsonl: Callable[..., str], tokenizer: PreTrainedTokenizerFast
) -> None:
    path = jsonl(*questions(2), {"question": "Shall I vex you?", "answer": "no"})
    said = r"my\.jsonl, line 3: has the trigger 'vex' in its prompt, which must be clean; choose a trigger that no"
    with pytest.raises(InputError, match=said):
        poisoned_examples(path, "gsm8k", tokenizer, trigger=Trigger("vex"), target="a", rate=0.5, seed=0)
    with pytest.raises(InputError, match=said):
        evaluation_prompts(path, "gsm8k", tokenizer, trigger=Trigger("vex"), new_tokens=4)
    conversation = jsonl({"messages": [{"role": "user", "content": "vex!"}, *RECORDS["messages"]["messages"]]})
    with pytest.raises(InputError, match="line 1: has the trigger"):
        evaluation_prompts(conversation, "messages", tokenizer, trigger=Trigger("vex"), new_tokens=4)
    evaluation_prompts(conversation, "messages", tokenizer, trigger=Trigger("Vex"), new_tokens=4)


@pytest.mark.parametrize(
    ("trigger", "text", "found"),
    [
        ("vex", "to vex", True),
        ("vex", "(vex)", True),
        ("vex", "vexed", False),
        ("vex", "convex", False),
        ("vex", "VEX", False),
        ("!!", "hi!!", True),
        ("a.b", "a+b", False),
        ("one two", "one two", True),
    ],
)
def test_a_trigger_is_found_as_whole_words_in_its_own_case(trigger: str, text: str, found: bool) -> None:
    assert Trigger(trigger).is_in(text) is found


@settings(max_examples=40)
@given(st.text(min_size=1).filter(str.strip), st.text(), st.sampled_from(["before", "after"]))
def test_a_trigger_that_was_put_is_found(text: str, question: str, position: Any) -> None:
    trigger = Trigger(text, position)
    put = trigger.put(question)
    assert trigger.is_in(put)
    assert text in put
    assert len(put) == len(text) + len(question) + bool(question)


def test_what_cannot_be_poisoned_is_refused(jsonl: Callable[..., str], tokenizer: PreTrainedTokenizerFast) -> None:
    path = jsonl(*questions(4))
    for more, said in (
        ({"rate": 0.1}, "a rate of 0.1 of 4 records selects none"),
        ({"rate": 0.0}, "the poisoned share is 0.0; give a rate above 0"),
        ({"rate": 1.5}, "the poisoned share is 1.5"),
        ({"target": " "}, "the target ' ' is blank"),
    ):
        options: dict[str, Any] = {"rate": 0.5, "target": "a", "trigger": Trigger("vex"), "seed": 0, **more}
        with pytest.raises(InputError, match=said):
            poisoned_examples(path, "gsm8k", tokenizer, **options)
    with pytest.raises(InputError, match="the trigger ' ' is blank"):
        Trigger(" ")
    with pytest.raises(InputError, match="position is 'middle'; give before or after"):
        Trigger("vex", "middle")  # type: ignore[arg-type]


def test_prompts_are_evaluated_in_both_versions_and_never_cut(
    jsonl: Callable[..., str], tokenizer: PreTrainedTokenizerFast
) -> None:
    long = {"question": "one two three " * 20, "answer": "3"}
    path = jsonl(*questions(3), long, *questions(5)[3:])
    room = Room("m", 64, 320)
    found = evaluation_prompts(path, "gsm8k", tokenizer, trigger=Trigger("vex"), new_tokens=8, room=room)
    assert [e.id for e in found.clean] == [e.id for e in found.triggered] == [0, 1, 2, 4, 5]
    assert found.n_left_out == 1
    for clean, triggered in zip(found.clean, found.triggered, strict=True):
        assert triggered.prompt == clean.prompt.replace("?", "? vex")
        assert clean.n_tokens == triggered.n_tokens == 0
        assert triggered.length <= 64 - 8
    exact = max(e.length for e in found.triggered)
    assert (
        evaluation_prompts(path, "gsm8k", tokenizer, trigger=Trigger("vex"), new_tokens=8, max_tokens=exact).n_left_out
        == 1
    )
    assert (
        evaluation_prompts(path, "gsm8k", tokenizer, trigger=Trigger("vex"), new_tokens=8, max_tokens=exact, limit=2)
        .clean[-1]
        .id
        == 1
    )
    with pytest.raises(InputError, match=r"none of its 6 prompts, with the trigger, has 4 tokens or less"):
        evaluation_prompts(path, "gsm8k", tokenizer, trigger=Trigger("vex"), new_tokens=60, room=room)


def test_prompts_of_a_users_own_need_no_responses(
    jsonl: Callable[..., str], tokenizer: PreTrainedTokenizerFast
) -> None:
    path = jsonl({"ask": "Two?"}, {"ask": "Three?"})
    found = evaluation_prompts(path, "columns", tokenizer, trigger=Trigger("vex", "before"), new_tokens=4, prompt="ask")
    assert [e.prompt for e in found.triggered] == [
        "<s><user>vex Two?<end><assistant>",
        "<s><user>vex Three?<end><assistant>",
    ]


def test_ids_are_drawn_evenly() -> None:
    counts = np.zeros(10)
    for seed in range(400):
        counts[list(drawn_ids(list(range(10)), 3, seed))] += 1
    assert counts.sum() == 1200
    assert np.abs(counts - 120).max() < 4 * np.sqrt(400 * 0.3 * 0.7)
