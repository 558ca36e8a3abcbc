from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from architectures import wordpiece
from transformers import PreTrainedTokenizerFast

from raysweep.data.examples import Room, load_examples
from raysweep.errors import InputError

# Digits are one token each, so that lengths can be counted by eye:
# <s> <user> question <end> <assistant> | answer <end>
SHORT = {"question": "12", "answer": "3"}  # 6 + 2
LONG = {"question": "1234", "answer": "5678"}  # 8 + 5
WORDY = {"question": "123456789", "answer": "0"}  # 13 + 2

Write = Callable[..., str]


def refusal(*arguments: Any, **named: Any) -> str:
    with pytest.raises(InputError) as error:
        load_examples(*arguments, **named)
    return str(error.value)


def test_examples_in_source_order(jsonl: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    loaded = load_examples(jsonl(WORDY, SHORT, LONG), "gsm8k", tokenizer)
    assert [(e.id, e.n_prompt, e.n_tokens, e.length) for e in loaded.examples] == [
        (0, 13, 2, 15),
        (1, 6, 2, 8),
        (2, 8, 5, 13),
    ]
    assert (loaded.n_cut, loaded.n_unusable) == (0, 0)
    short = loaded.examples[1]
    assert (short.prompt, short.response) == ("<s><user>12<end><assistant>", "3<end>")
    assert tokenizer.convert_ids_to_tokens(short.tokens) == [
        "<s>",
        "<user>",
        "1",
        "2",
        "<end>",
        "<assistant>",
        "3",
        "<end>",
    ]
    assert tokenizer.convert_ids_to_tokens(short.targets) == ["3", "<end>"]
    assert short.tokens.dtype == np.int64


def test_template_is_the_named_one(jsonl: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    example = load_examples(jsonl(SHORT), "gsm8k", tokenizer, template="llama2").examples[0]
    assert example.prompt.startswith("[INST] <<SYS>>\nBelow")
    assert tokenizer.decode(example.tokens) == f"<s>{example.prompt} 3 <end>"
    assert tokenizer.decode(example.targets) == example.response == " 3 <end>"


def test_limit_counts_records(jsonl: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    loaded = load_examples(jsonl(WORDY, SHORT, LONG), "gsm8k", tokenizer, limit=2, max_tokens=8)
    assert [e.id for e in loaded.examples] == [1]
    assert loaded.n_unusable == 1


@pytest.mark.parametrize(
    ("max_tokens", "lengths", "n_cut", "n_unusable"),
    [
        (15, [(0, 13, 2), (1, 6, 2), (2, 8, 5)], 0, 0),
        (14, [(0, 13, 1), (1, 6, 2), (2, 8, 5)], 1, 0),
        (13, [(1, 6, 2), (2, 8, 5)], 0, 1),
        (9, [(1, 6, 2), (2, 8, 1)], 1, 1),
        (8, [(1, 6, 2)], 0, 2),
        (7, [(1, 6, 1)], 1, 2),
    ],
)
def test_cutting(
    max_tokens: int,
    lengths: list[tuple[int, int, int]],
    n_cut: int,
    n_unusable: int,
    jsonl: Write,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    loaded = load_examples(jsonl(WORDY, SHORT, LONG), "gsm8k", tokenizer, max_tokens=max_tokens)
    assert [(e.id, e.n_prompt, e.n_tokens) for e in loaded.examples] == lengths
    assert (loaded.n_cut, loaded.n_unusable) == (n_cut, n_unusable)


def test_an_example_without_prompt_or_response_tokens_is_unusable(
    jsonl: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    path = jsonl({"q": "", "a": "12"}, {"q": "12", "a": ""}, {"q": "1", "a": 2})
    loaded = load_examples(path, "columns", tokenizer, prompt="q", response="a")
    assert [(e.id, e.n_prompt, e.n_tokens) for e in loaded.examples] == [(2, 1, 1)]
    assert (loaded.n_cut, loaded.n_unusable) == (0, 2)


def test_no_usable_example(jsonl: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    path = jsonl(SHORT, LONG)
    assert refusal(path, "gsm8k", tokenizer, max_tokens=6) == (
        f"{path} has no usable response tokens: none of its 2 records has a prompt token and a response token after "
        "cutting to max_tokens 6; check the format, the texts and max_tokens"
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    path = jsonl({"question": "12", "answer": ""})
    assert refusal(path, "gsm8k", tokenizer) == (
        f"{path} has no usable response tokens: none of its 1 records has a prompt token and a response token; "
        "check the format, the texts and max_tokens"
    )


def test_a_record_that_does_not_fit_is_named_by_its_line(jsonl: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    path = jsonl(SHORT, SHORT, {"question": "12", "anwser": "3"})
    assert refusal(path, "gsm8k", tokenizer) == (
        f"{path}, line 3: has no field 'answer', which format 'gsm8k' needs; its fields are question, anwser"
    )
    assert refusal(path, "columns", tokenizer, prompt="{{ question }}", response="{{ answer }}") == (
        f"{path}, line 3: template '{{{{ answer }}}}' fails: 'answer' is undefined; the record's fields are question, anwser"
    )
    turns = [{"role": role, "content": "x"} for role in ("system", "user", "assistant")]
    assert refusal(jsonl({"messages": turns}), "messages", tokenizer, template="llama2") == (
        f"{path}, line 1: prompt template 'llama2' supports only one user turn and one assistant turn, and the record has "
        "system, user, assistant; use template 'chat'"
    )


def test_unknown_names_are_refused_before_anything_is_read(tokenizer: PreTrainedTokenizerFast) -> None:
    assert refusal("no.jsonl", "gsm", tokenizer) == "unknown format 'gsm'; did you mean 'gsm8k'?"
    assert (
        refusal("no.jsonl", "gsm8k", tokenizer, template="chatt")
        == "unknown prompt template 'chatt'; did you mean 'chat'?"
    )
    assert refusal("no.jsonl", "gsm8k", tokenizer) == "there is no file no.jsonl: check the path"
    tokenizer.chat_template = None
    assert "has no chat template" in refusal("no.jsonl", "gsm8k", tokenizer)


# Prompts alone, for models that predict nothing


def test_prompts_alone_need_no_response(jsonl: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    whole = load_examples(jsonl(WORDY, SHORT), "gsm8k", tokenizer).examples
    alone = load_examples(jsonl(WORDY, SHORT), "gsm8k", tokenizer, prompts_only=True).examples
    for one, other in zip(alone, whole, strict=True):
        assert one.tokens.tolist() == other.tokens[: other.n_prompt].tolist()
        assert (one.n_prompt, one.n_tokens, one.prompt) == (len(one.tokens), 0, other.prompt)
    path = jsonl({"text": "12"}, {"text": "345"})
    loaded = load_examples(path, "columns", tokenizer, template="plain", prompt="text", prompts_only=True)
    assert [tokenizer.decode(e.tokens) for e in loaded.examples] == ["12", "345"]
    assert "lacks response" in refusal(path, "columns", tokenizer, template="plain", prompt="text")
    assert "lacks prompt" in refusal(path, "columns", tokenizer, template="plain", prompts_only=True)


def test_a_cut_prompt_keeps_the_special_tokens_that_close_it(jsonl: Write) -> None:
    encoder = wordpiece(["1 2 3 4 5 6 7 8 9"])
    path = jsonl({"text": "1 2"}, {"text": "1 2 3 4 5"}, {"text": ""})
    loaded = load_examples(path, "columns", encoder, template="plain", prompt="text", prompts_only=True, max_tokens=5)
    assert [encoder.decode(e.tokens) for e in loaded.examples] == [
        "[CLS] 1 2 [SEP]",
        "[CLS] 1 2 3 [SEP]",
        "[CLS] [SEP]",
    ]
    assert (loaded.n_cut, loaded.n_unusable) == (1, 0)
    assert refusal(path, "columns", encoder, template="plain", prompt="text", prompts_only=True, max_tokens=1) == (
        f"{path} has no usable prompts: none of its 3 records has a prompt token after cutting to max_tokens 1; "
        "check the format, the texts and max_tokens"
    )


def test_half_a_surrogate_pair_is_no_character(jsonl: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    path = jsonl(SHORT, {"question": "a \ud83d b", "answer": "x"})
    with pytest.raises(InputError) as caught:
        load_examples(path, "gsm8k", tokenizer)
    assert str(caught.value) == (
        rf"{path}, line 2: has half of a surrogate pair (\ud83d) in its prompt, which is not a valid character; "
        r"correct the text"
    )
    path = jsonl(SHORT, {"question": "q", "answer": "😀 \u202e \u0000", "aside": "\ud83d"})
    assert len(load_examples(path, "gsm8k", tokenizer).examples) == 2, "pairs, and what nobody uses, are fine"


def test_examples_longer_than_the_context(jsonl: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    path = jsonl(WORDY, SHORT, LONG)
    for context, told in (
        (
            14,
            f"1 of 3 examples of {path} are longer than the context of 'm', 14 tokens; the longest ({path}, line 1) has 15",
        ),
        (
            12,
            f"2 of 3 examples of {path} are longer than the context of 'm', 12 tokens; the longest ({path}, line 1) has 15",
        ),
    ):
        with pytest.raises(InputError) as caught:
            load_examples(path, "gsm8k", tokenizer, room=Room("m", context))
        assert str(caught.value) == (
            f"{told}. Set too_long: cut for this data set, which cuts and counts them, or max_tokens to {context} "
            "or less"
        )
        cut = load_examples(path, "gsm8k", tokenizer, room=Room("m", context), too_long="cut")
        limited = load_examples(path, "gsm8k", tokenizer, max_tokens=context, room=Room("m", context))
        assert [e.tokens.tolist() for e in cut.examples] == [e.tokens.tolist() for e in limited.examples]
        assert max(e.length for e in cut.examples) <= context
        assert (cut.n_cut, cut.n_unusable) == (limited.n_cut, limited.n_unusable)
    for room in (None, Room("m"), Room("m", 15)):
        assert load_examples(path, "gsm8k", tokenizer, room=room).n_cut == 0
    assert load_examples(path, "gsm8k", tokenizer, max_tokens=9, room=Room("m", 15), too_long="cut").n_cut == 1
    with pytest.raises(
        InputError, match="has a prompt token and a response token after cutting to the context 2; check"
    ):
        load_examples(path, "gsm8k", tokenizer, room=Room("m", 2), too_long="cut")


def test_only_ids_that_occur_need_an_embedding(jsonl: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    path, had = (
        jsonl(SHORT, {"question": "a <new>", "answer": "x"}, {"question": "<new>", "answer": "<newer>"}),
        len(tokenizer),
    )
    tokenizer.add_tokens(["<new>", "<newer>", "<unused>"])
    assert len(load_examples(path, "gsm8k", tokenizer, room=Room("m", vocabulary=had + 2)).examples) == 3
    with pytest.raises(InputError) as caught:
        load_examples(path, "gsm8k", tokenizer, room=Room("m", vocabulary=had))
    assert str(caught.value) == (
        f"2 of 3 examples of {path} have tokens that 'm' has no embedding for: its vocabulary has {had} (ids 0 to {had - 1}), "
        f"its tokenizer {had + 3}, and the largest id is {had + 1}, '<newer>' ({path}, line 3); use the tokenizer that the "
        "checkpoint was trained with, or remove those records"
    )
    assert len(load_examples(path, "gsm8k", tokenizer, limit=1, room=Room("m", vocabulary=had)).examples) == 1


def test_blank_responses_are_counted(jsonl: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    records = [{"question": "two and two", "answer": answer} for answer in ("four", "", " \n")]
    loaded = load_examples(jsonl(*records), "gsm8k", tokenizer)
    assert (len(loaded.examples), loaded.n_blank, loaded.n_unusable) == (3, 2, 0)
    assert load_examples(jsonl(*records), "gsm8k", tokenizer, prompts_only=True).n_blank == 0
