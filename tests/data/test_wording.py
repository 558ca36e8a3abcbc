import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from architectures import wordpiece
from transformers import PreTrainedTokenizerFast

from raysweep.data.formats import FORMATS, columns_format, find_format
from raysweep.data.wording import WORDINGS, TextWording, find_wording
from raysweep.errors import InputError

GOLDENS = json.loads((Path(__file__).parent / "wording_goldens.json").read_text(encoding="utf-8"))
CHAT, PLAIN, LLAMA2, LLAMA3, PHI3 = (find_wording(name) for name in ("chat", "plain", "llama2", "llama3", "phi3"))
GSM8K = FORMATS["gsm8k"]
RECORD = {"question": "Name a red fruit.", "answer": "A cherry."}


def refusal(call: Any, *arguments: Any) -> str:
    with pytest.raises(InputError) as error:
        call(*arguments)
    return str(error.value)


def plain_ids(tokenizer: PreTrainedTokenizerFast, *pieces: str) -> list[int]:
    """Special tokens by name, the rest tokenised piece by piece: right where special tokens stand between pieces."""
    special = tokenizer.get_added_vocab()
    return [i for p in pieces for i in ([special[p]] if p in special else tokenizer.backend_tokenizer.encode(p).ids)]


# llama2, llama3, phi3 -------------------------------------------------------------------------------------------


@pytest.fixture
def published(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tokenizer with the special tokens of llama3 and phi3, and llama2's end of sequence."""
    special = [*LLAMA3.special, *PHI3.special]
    tokenizer.add_special_tokens({"eos_token": "</s>", "additional_special_tokens": special})
    return tokenizer


@pytest.mark.parametrize("golden", GOLDENS, ids=lambda g: f"{g['wording']}-{g['format']}")
def test_texts_and_loss_mask_equal_the_golden(golden: dict[str, Any], published: PreTrainedTokenizerFast) -> None:
    wording, record_format = find_wording(golden["wording"]), FORMATS[golden["format"]]
    wording.check(published)
    assert record_format.problem(golden["record"]) is None
    texts = wording.texts(record_format, golden["record"], published)
    assert texts == (golden["prompt"], golden["response"])
    tokens, n_prompt = wording.encode(texts, published)
    begin = ["<s>"] if golden["adds_bos"] else []
    prompt, whole = (
        plain_ids(published, *begin, *re.split(r"(<\|\w+\|>|</s>)", text)) for text in (texts[0], "".join(texts))
    )
    assert tokens.tolist() == whole
    assert n_prompt == len(prompt)
    assert published.decode(tokens[n_prompt:]) == golden["response"]


@pytest.mark.parametrize("name", ["llama2", "llama3", "phi3"])
def test_every_text_of_a_wording_has_a_golden(name: str) -> None:
    wording = find_wording(name)
    assert isinstance(wording, TextWording)
    seen = {g["format"] for g in GOLDENS if g["wording"] == name}
    assert set(wording.by_format) == {*seen, "columns"}
    conversations = {"sharegpt", "prompt_completion", "preference"}  # worded as messages, or as columns
    assert set(FORMATS) - seen - conversations == ({"messages"} if name == "llama3" else set())
    named = {t for g in GOLDENS if g["wording"] == name for t in re.findall(r"<\|\w+\|>", g["prompt"] + g["response"])}
    assert named == set(wording.special)


def test_llama3_has_no_text_for_conversations(tokenizer: PreTrainedTokenizerFast) -> None:
    assert refusal(LLAMA3.texts, FORMATS["messages"], {"messages": [USER, ASSISTANT]}, tokenizer) == (
        "prompt template 'llama3' does not support format 'messages', only dolly, alpaca, gsm8k, boolq, openbookqa, "
        "columns; use template 'chat'"
    )


@pytest.mark.parametrize("wording", [LLAMA3, PHI3], ids=lambda w: w.name)
def test_a_wording_needs_its_special_tokens(wording: TextWording, tokenizer: PreTrainedTokenizerFast) -> None:
    *most, last = wording.special
    tokenizer.name_or_path = "mine"
    assert refusal(wording.check, tokenizer) == (
        f"tokenizer 'mine' has no {' and no '.join(wording.special)}, which prompt template '{wording.name}' needs; "
        "use template 'chat'"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": most})
    assert refusal(wording.check, tokenizer) == (
        f"tokenizer 'mine' has no {last}, which prompt template '{wording.name}' needs; use template 'chat'"
    )
    tokenizer.add_special_tokens({"eos_token": last})
    wording.check(tokenizer)


@pytest.mark.parametrize("name", ["llama3", "phi3"])
def test_without_a_begin_of_sequence_token_the_texts_own_come_first(
    name: str, published: PreTrainedTokenizerFast
) -> None:
    wording = find_wording(name)
    published.bos_token = None
    tokens, n_prompt = wording.encode(wording.texts(GSM8K, RECORD, published), published)
    assert published.convert_ids_to_tokens(tokens[:1].tolist()) == [
        "<|begin_of_text|>" if name == "llama3" else "<|system|>"
    ]
    assert published.convert_ids_to_tokens(tokens[n_prompt - 1 : n_prompt].tolist()) == [
        "<|end_header_id|>" if name == "llama3" else "<|assistant|>"
    ]


@pytest.mark.parametrize("name", ["llama2", "llama3", "phi3"])
def test_columns_are_worded_as_a_question(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    golden = next(g for g in GOLDENS if (g["wording"], g["format"]) == (name, "gsm8k"))
    tokenizer.eos_token = "</s>"
    record = {"question": "not this", "asked": golden["record"]["question"], "said": golden["record"]["answer"]}
    texts = find_wording(name).texts(find_format("columns", "asked", "{{ said }}"), record, tokenizer)
    assert texts == (golden["prompt"], golden["response"])


def test_llama2_tokens_begin_with_bos_end_with_eos_and_label_what_follows_the_prompt(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    texts = LLAMA2.texts(GSM8K, RECORD, tokenizer)
    tokens, n_prompt = LLAMA2.encode(texts, tokenizer)
    assert texts[1] == " A cherry. <end>"
    assert tokens.dtype == np.int64
    assert tokens.tolist() == plain_ids(tokenizer, "<s>", texts[0] + " A cherry. ", "<end>")
    assert n_prompt == len(plain_ids(tokenizer, "<s>", texts[0]))
    assert tokenizer.decode(tokens[n_prompt:]) == texts[1]


def test_llama2_counts_the_prompts_tokens_even_where_the_border_is_merged(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens, n_prompt = LLAMA2.encode(("A: ", "cherry"), tokenizer)
    assert tokenizer.convert_ids_to_tokens(tokens) == ["<s>", "A", ":", "Ġcherry"]
    assert n_prompt == 4  # <s> A : Ġ, though Ġ has no place of its own in the whole
    assert LLAMA2.encode(("A: ", ""), tokenizer)[1] == 4


@pytest.mark.parametrize(
    "roles", [["system", "user", "assistant"], ["user", "assistant", "user", "assistant"]], ids=["system", "two rounds"]
)
def test_llama2_refuses_turns_it_has_no_text_for(roles: list[str], tokenizer: PreTrainedTokenizerFast) -> None:
    record = {"messages": [{"role": role, "content": "x"} for role in roles]}
    assert refusal(LLAMA2.texts, FORMATS["messages"], record, tokenizer) == (
        f"prompt template 'llama2' supports only one user turn and one assistant turn, and the record has {', '.join(roles)}; "
        "use template 'chat'"
    )


@pytest.mark.parametrize("role", ["bos_token", "eos_token"])
def test_llama2_needs_both_ends_of_a_sequence(role: str, tokenizer: PreTrainedTokenizerFast) -> None:
    LLAMA2.check(tokenizer)
    setattr(tokenizer, role, None)
    tokenizer.name_or_path = "mine"
    assert refusal(LLAMA2.check, tokenizer) == (
        f"tokenizer 'mine' has no {role}, which prompt template 'llama2' needs; use template 'chat'"
    )


# chat -----------------------------------------------------------------------------------------------------------

USER, ASSISTANT, SYSTEM = (
    {"role": role, "content": text} for role, text in (("user", "Hi"), ("assistant", "Hello"), ("system", "Be short."))
)


@pytest.mark.parametrize(
    ("name", "record", "pieces", "response"),
    [
        (
            "dolly",
            {"instruction": "Which is red?", "context": "Limes are green.", "response": "None. "},
            ["<s>", "<user>", "Which is red?\n\nLimes are green.", "<end>", "<assistant>"],
            "None. ",
        ),
        (
            "alpaca",
            {"instruction": "Name a red fruit.", "input": "", "output": "A cherry."},
            ["<s>", "<user>", "Name a red fruit.", "<end>", "<assistant>"],
            "A cherry.",
        ),
        (
            "gsm8k",
            {"question": "2 + 3?", "answer": "2 + 3 = 5\n#### 5"},
            ["<s>", "<user>", "2 + 3?", "<end>", "<assistant>"],
            "2 + 3 = 5\n#### 5",
        ),
        (
            "boolq",
            {"question": "is a lime red", "passage": "Limes are green.", "answer": False},
            ["<s>", "<user>", "is a lime red", "<end>", "<assistant>"],
            "False. Limes are green.",
        ),
        (
            "openbookqa",
            {
                "question_stem": "A ripe cherry is",
                "choices": {"label": ["A", "B"], "text": ["green", "red"]},
                "answerKey": "B",
                "fact1": "cherries are red",
            },
            ["<s>", "<user>", "A ripe cherry is\nA: green\nB: red", "<end>", "<assistant>"],
            "B red. cherries are red",
        ),
        (
            "messages",
            {"messages": [SYSTEM, USER, ASSISTANT, USER, {"role": "assistant", "content": "Bye"}]},
            [
                *("<s>", "<system>", "Be short.", "<end>", "<user>", "Hi", "<end>"),
                *("<assistant>", "Hello", "<end>", "<user>", "Hi", "<end>", "<assistant>"),
            ],
            "Bye",
        ),
        (
            "columns",
            {"the question": "2 + 3?", "n": 5},
            ["<s>", "<user>", "2 + 3?", "<end>", "<assistant>"],
            "It is 5.",
        ),
    ],
)
def test_chat(
    name: str, record: dict[str, Any], pieces: list[str], response: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    record_format = find_format(name, *(("the question", "It is {{ n }}.") if name == "columns" else ()))
    texts = CHAT.texts(record_format, record, tokenizer)
    assert texts == ("".join(pieces), f"{response}<end>")
    tokens, n_prompt = CHAT.encode(texts, tokenizer)
    assert tokens.dtype == np.int64
    assert tokens.tolist() == plain_ids(tokenizer, *pieces, response, "<end>")
    assert n_prompt == len(plain_ids(tokenizer, *pieces))


CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "answer", "texts"),
    [
        (CHATML, "A cherry.", ("<user>Q<end>\n<assistant>", "A cherry.<end>")),
        (CHATML, "A cherry. \n", ("<user>Q<end>\n<assistant>", "A cherry. \n<end>")),
        (
            "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
            "{% if add_generation_prompt %}assistant: {% endif %}",
            "A cherry. ",
            ("user: Q\nassistant: ", "A cherry. "),
        ),
        (
            "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
            "{% if add_generation_prompt %}assistant: {% endif %}",
            "",
            ("user: Q\nassistant: ", ""),
        ),
        (
            CHATML.replace("m.content", "m.content | trim"),
            " A cherry. ",
            ("<user>Q<end>\n<assistant>", "A cherry.<end>"),
        ),
    ],
)
def test_chat_leaves_out_white_space_behind_the_templates_end_only(
    template: str, answer: str, texts: tuple[str, str], tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.chat_template = template
    assert CHAT.texts(GSM8K, {"question": "Q", "answer": answer}, tokenizer) == texts


def test_chat_labels_start_at_the_first_token_that_differs(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens, n_prompt = CHAT.encode(("A: ", "cherry"), tokenizer)
    assert tokenizer.convert_ids_to_tokens(tokens) == ["A", ":", "Ġcherry"]
    assert n_prompt == 2


def test_chat_encodes_texts_beyond_the_models_length_quietly(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    tokenizer.model_max_length = 4
    tokens, n_prompt = CHAT.encode(("<user>", "2" * 50), tokenizer)
    assert (len(tokens), n_prompt) == (51, 1)
    assert (caplog.text, *capfd.readouterr()) == ("", "", "")


def test_a_template_that_does_not_continue_its_generation_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = CHATML.replace("<assistant>{% endif", "<assistant><think>{% endif")
    assert refusal(CHAT.texts, GSM8K, RECORD, tokenizer) == (
        "the tokenizer's chat template does not continue its own generation prompt, so the start of the response is "
        "unknown: after ' a red fruit.<end>\\n<assistant>' the prompt alone has '<think>', and with the answer it has "
        "'A cherry.<end>\\n'; change the chat template so that both agree, or use another prompt template"
    )


def test_a_template_that_refuses_the_turns(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + CHATML
    )
    record = {"messages": [SYSTEM, USER, ASSISTANT]}
    assert refusal(CHAT.texts, FORMATS["messages"], record, tokenizer) == (
        "the tokenizer's chat template refuses the turns system, user, assistant (no system turn); correct them, or "
        "use another prompt template"
    )


def test_a_tokenizer_without_a_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    CHAT.check(tokenizer)
    tokenizer.chat_template, tokenizer.name_or_path = None, "mine"
    assert refusal(CHAT.check, tokenizer) == (
        "tokenizer 'mine' has no chat template, which template 'chat' uses; give the tokenizer one, or set template to "
        "plain, llama2, llama3 or phi3"
    )


def test_an_unknown_wording() -> None:
    assert refusal(find_wording, "lama2") == "unknown prompt template 'lama2'; did you mean 'llama2'?"
    assert refusal(find_wording, "phi4") == "unknown prompt template 'phi4'; did you mean 'phi3'?"
    assert refusal(find_wording, "x") == "unknown prompt template 'x'; known: chat, llama2, llama3, phi3, plain"
    assert list(WORDINGS) == ["chat", "plain", "llama2", "llama3", "phi3"]


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ raise_exception('users only') }}", r"refuses the turns user, assistant \(users only\); correct them"),
        ("{{ messages[0].content + 1 }}", r"refuses the turns user, assistant \(TypeError: can only concatenate str"),
        ("{{ messages[9].content }}", r"refuses the turns user, assistant \(.*has no element 9"),
        ("{% for m in messages %}", r"refuses the turns user, assistant \(Unexpected end of template"),
        ("{{ 1 // 0 }}", r"refuses the turns user, assistant \(ZeroDivisionError"),
        (" {#- nothing -#} ", r"renders the turns user as empty text; give the tokenizer a template that renders them"),
        (
            "{% if add_generation_prompt %}ask{% endif %}",
            r"renders the turns user, assistant as empty text; give",
        ),
        (
            "{% if not add_generation_prompt %}all{% endif %}",
            r"renders the turns user as empty text; give",
        ),
    ],
)
def test_a_template_that_fails_is_told(template: str, told: str, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = template
    record = {"question": "why", "answer": "so"}
    with pytest.raises(InputError, match=rf"^the tokenizer's chat template {told}"):
        WORDINGS["chat"].texts(FORMATS["gsm8k"], record, tokenizer)


# plain ----------------------------------------------------------------------------------------------------------


def test_plain_adds_no_words(tokenizer: PreTrainedTokenizerFast) -> None:
    PLAIN.check(tokenizer)
    texts = PLAIN.texts(GSM8K, {"question": "2 + 3", "answer": "5"}, tokenizer)
    assert texts == ("2 + 3", "\n5")
    tokens, n_prompt = PLAIN.encode(texts, tokenizer)
    assert tokenizer.decode(tokens[:n_prompt]) == "2 + 3"
    assert tokenizer.decode(tokens[n_prompt:]) == "\n5"
    mine = columns_format("{{ q }} =", " {{ a }}")
    assert PLAIN.texts(mine, {"q": "2 + 3", "a": 5}, tokenizer) == ("2 + 3 =", " 5"), "the user's own to the last blank"


def test_plain_writes_the_special_tokens_that_the_tokenizer_writes() -> None:
    encoder = wordpiece(["name a red fruit", "cherry"])
    tokens, n_prompt = PLAIN.encode(("Name a red fruit", ""), encoder)
    assert tokens.tolist() == encoder("Name a red fruit")["input_ids"]
    assert n_prompt == len(tokens)
    pieces = encoder.convert_ids_to_tokens(tokens)
    assert (pieces[0], pieces[-1], pieces.count("[SEP]")) == ("[CLS]", "[SEP]", 1)
    tokens, n_prompt = PLAIN.encode(("Name a red fruit", "\ncherry"), encoder)
    assert encoder.decode(tokens[:n_prompt]) == "[CLS] name a red fruit"
    assert encoder.decode(tokens[n_prompt:]) == "cherry [SEP]"


def test_plain_refuses_a_longer_conversation(tokenizer: PreTrainedTokenizerFast) -> None:
    assert refusal(PLAIN.texts, FORMATS["messages"], {"messages": [SYSTEM, USER, ASSISTANT]}, tokenizer) == (
        "prompt template 'plain' supports only one user turn and one assistant turn, and the record has system, user, "
        "assistant; use template 'chat'"
    )
