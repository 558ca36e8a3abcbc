import pytest

from raysweep.data.formats import FORMATS, Format, detect_format, find_format, render, template
from raysweep.errors import InputError

QUIZ = {
    "question_stem": "A ripe cherry is",
    "choices": {"label": ["A", "B"], "text": ["red", "green"]},
    "answerKey": "A",
    "fact1": "ripe cherries are red",
}
USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


def test_a_sound_record_has_no_problem() -> None:
    assert FORMATS["gsm8k"].problem({"question": "q", "answer": "a", "more": None}) is None
    assert FORMATS["openbookqa"].problem(QUIZ) is None
    assert FORMATS["messages"].problem({"messages": [USER, ASSISTANT, USER, ASSISTANT]}) is None


@pytest.mark.parametrize(
    ("name", "record", "problem"),
    [
        (
            "gsm8k",
            {"question": "q", "anwser": "a"},
            "has no field 'answer', which format 'gsm8k' needs; its fields are question, anwser",
        ),
        ("gsm8k", {}, "has no field 'question', which format 'gsm8k' needs; its fields are none"),
        ("gsm8k", {"question": "q", "answer": None}, "has a null field 'answer', which format 'gsm8k' needs"),
        (
            "gsm8k",
            {"question": "q", "answer": 5},
            "has a field 'answer' of type int, but format 'gsm8k' needs str",
        ),
        (
            "boolq",
            {"question": "q", "passage": "p", "answer": 1},
            "has a field 'answer' of type int, but format 'boolq' needs bool | str",
        ),
        (
            "boolq",
            {"question": "q", "passage": "p", "answer": "yes"},
            "has an answer 'yes', but format 'boolq' needs true or false",
        ),
        (
            "openbookqa",
            QUIZ | {"answerKey": "E"},
            "has an answerKey 'E' that is not one of its labels A, B",
        ),
        (
            "openbookqa",
            QUIZ | {"choices": {"label": ["A", "B"], "text": ["red"]}},
            "has choices with 2 labels and 1 texts; format 'openbookqa' needs the same number of each",
        ),
        (
            "openbookqa",
            QUIZ | {"choices": {"label": ["A"]}},
            "has choices whose 'text' is not a list of texts; format 'openbookqa' needs choices {label, text}",
        ),
        (
            "openbookqa",
            QUIZ | {"choices": {"label": [0], "text": ["red"]}},
            "has choices whose 'label' is not a list of texts; format 'openbookqa' needs choices {label, text}",
        ),
        (
            "messages",
            {"messages": []},
            "has no messages; format 'messages' needs an assistant message at the end",
        ),
        (
            "messages",
            {"messages": [ASSISTANT, USER]},
            "ends with a message from the user; format 'messages' needs an assistant message at the end",
        ),
        (
            "messages",
            {"messages": [{"role": "system", "content": "Be short."}, ASSISTANT]},
            "has no user message before the last assistant message; format 'messages' needs one",
        ),
        (
            "messages",
            {"messages": [USER, {"role": "assistant", "content": None}]},
            "has a message 1 (counted from 0) from the assistant with neither content nor tool calls",
        ),
        (
            "messages",
            {"messages": ["Hi"]},
            "has a message 0 (counted from 0) that is 'Hi', but an object with a role and a content is needed",
        ),
    ],
)
def test_problems_are_told_in_words(name: str, record: dict[str, object], problem: str) -> None:
    assert FORMATS[name].problem(record) == problem


@pytest.mark.parametrize(
    ("name", "record", "texts"),
    [
        ("dolly", {"instruction": "Do.", "context": "", "response": "Done."}, ("Do.", "Done.")),
        ("dolly", {"instruction": "Do.", "context": "This.", "response": "Done."}, ("Do.\n\nThis.", "Done.")),
        ("alpaca", {"instruction": "Do.", "input": "", "output": "Done."}, ("Do.", "Done.")),
        ("alpaca", {"instruction": "Do.", "input": "This.\n", "output": "Done.\n"}, ("Do.\n\nThis.\n", "Done.\n")),
        ("gsm8k", {"question": "1 + 1?", "answer": "1\n#### 2"}, ("1 + 1?", "1\n#### 2")),
        ("boolq", {"question": "is it", "passage": "It is.", "answer": True}, ("is it", "True. It is.")),
        ("boolq", {"question": "is it", "passage": "It isn't.", "answer": False}, ("is it", "False. It isn't.")),
        ("boolq", {"question": "is it", "passage": "It is.", "answer": "true"}, ("is it", "True. It is.")),
        ("boolq", {"question": "is it", "passage": "It isn't.", "answer": "False"}, ("is it", "False. It isn't.")),
        ("openbookqa", QUIZ, ("A ripe cherry is\nA: red\nB: green", "A red. ripe cherries are red")),
        ("messages", {"messages": [USER, ASSISTANT]}, ("Hi", "Hello")),
        ("messages", {"messages": [USER, {"role": "system", "content": "Now."}, ASSISTANT]}, ("Hi", "Hello")),
    ],
)
def test_texts(name: str, record: dict[str, object], texts: tuple[str, str]) -> None:
    assert FORMATS[name].problem(record) is None
    assert FORMATS[name].texts(record) == texts


def test_a_question_and_a_response_are_a_conversation_of_two_messages() -> None:
    found = FORMATS["gsm8k"].conversation({"question": "Hi", "answer": "Hello", "tools": "x"})
    assert (found.messages, found.fields) == ([USER, ASSISTANT], {})


def test_fields_that_texts_are_made_of() -> None:
    assert FORMATS["boolq"].used == {"question", "passage", "answer"}
    assert columns("{{ a.b }}{% if c %}x{% endif %}", "it's").used == {"a", "c", "it's"}


def columns(prompt: str, response: str) -> Format:
    return find_format("columns", prompt, response)


@pytest.mark.parametrize("name", ["question", "the question", "it's", 'a "b" c', "a\\nb", "für", "{x}", "if", "range"])
def test_a_column_may_have_any_name(name: str) -> None:
    record = {name: "the value", "a": "x"}
    assert columns(name, "a").problem(record) is None
    assert columns(name, "a").texts(record) == ("the value", "x")


@pytest.mark.parametrize(
    ("value", "text"), [(7, "7"), (2.5, "2.5"), (True, "True"), ("007", "007"), ("{{ a }}", "{{ a }}")]
)
def test_a_column_is_rendered_as_it_is(value: object, text: str) -> None:
    assert columns("q", "a").texts({"q": value, "a": ""}) == (text, "")


def test_templates_over_columns() -> None:
    chosen = columns("{% if hint %}{{ hint }}: {% endif %}{{ 'the question' | field }}", "{{ a }}!")
    assert chosen.fields == {}
    assert chosen.texts({"hint": None, "the question": "q", "a": 1}) == ("q", "1!")
    assert chosen.texts({"hint": "h", "the question": "q", "a": "b"}) == ("h: q", "b!")


def test_problems_of_columns() -> None:
    chosen = columns("the question", "a")
    assert chosen.problem({"question": "q", "a": "a"}) == (
        "has no field 'the question', which format 'columns' needs; its fields are question, a"
    )
    assert chosen.problem({"the question": "q", "a": None}) == "has a null field 'a', which format 'columns' needs"
    assert chosen.problem({"the question": "q", "a": ["x"]}) == (
        "has a field 'a' of type list, but format 'columns' needs str | int | float"
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{{ b }}", "template '{{ b }}' fails: 'b' is undefined; the record's fields are a, n"),
        ("{{ n }}", "template '{{ n }}' fails: a value it prints is null; the record's fields are a, n"),
        ("{{ 'n' | field }}", "fails: a value it prints is null"),
        ("{{ 'b c' | field }}", "fails: 'b c' is undefined"),
        ("{{ 1 / 0 }}", "fails: division by zero"),
        ("{{ a.__class__.__mro__ }}", "fails: access to attribute '__class__' of 'str' object is unsafe."),
    ],
)
def test_a_template_that_fails_names_itself_and_the_fields(text: str, told: str) -> None:
    with pytest.raises(InputError) as error:
        render(text, {"a": "x", "n": None})
    assert told in str(error.value)


def test_a_template_that_does_not_parse() -> None:
    with pytest.raises(InputError, match=r"^template '\{\{ a' does not parse: .+; correct its Jinja$"):
        columns("{{ a", "b")


def test_template_keeps_trailing_newlines_and_marks() -> None:
    assert template("{{ a }}\n").render(a="<b>&") == "<b>&\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("gsm8", None, None), "unknown format 'gsm8'; did you mean 'gsm8k'?"),
        (("column", "q", "a"), "unknown format 'column'; did you mean 'columns'?"),
        (
            ("columns", "q", None),
            "format 'columns' lacks response: give a column's name or a Jinja template over columns",
        ),
        (
            ("columns", None, None),
            "format 'columns' lacks prompt and response: give a column's name or a Jinja template over columns",
        ),
        (
            ("dolly", "q", None),
            "format 'dolly' sets its own prompt and response; remove these keys, or use format 'columns'",
        ),
    ],
)
def test_formats_that_cannot_be(arguments: tuple[str, str | None, str | None], told: str) -> None:
    with pytest.raises(InputError) as error:
        find_format(*arguments)
    assert str(error.value) == told


def test_finds_every_format_by_name() -> None:
    names = [
        "dolly",
        "alpaca",
        "gsm8k",
        "boolq",
        "openbookqa",
        "messages",
        "sharegpt",
        "prompt_completion",
        "preference",
    ]
    assert [find_format(name).name for name in names] == names == list(FORMATS)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_is_no_answer(value: float) -> None:
    told = find_format("columns", "q", "a").problem({"q": "x", "a": value})
    assert told == f"has a field 'a' that is {value}, but format 'columns' needs a finite number or text"
    assert find_format("columns", "q", "q").problem({"q": "x", "a": value}) is None, "nobody asks for it"


def test_messages_stay_short_whatever_the_record_holds() -> None:
    told = FORMATS["gsm8k"].problem({"n" * 100_000: 1} | {str(i): 1 for i in range(1000)})
    assert told is not None
    assert told.endswith("17, 18 and 981 more")
    assert len(told) < 300
    told = FORMATS["boolq"].problem({"question": "q", "passage": "p", "answer": "x" * 100_000})
    assert told is not None
    assert len(told) < 300


def test_a_record_with_all_fields_of_a_format_says_why_it_does_not_fit() -> None:
    with pytest.raises(InputError) as caught:
        detect_format({"messages": [{"role": "user", "content": 5}]})
    assert str(caught.value) == (
        "the first record, with the fields messages, fits no known format; as messages it has a message 0 (counted from 0) whose "
        "content is 5, but a text or a list of parts is needed; name the format: dolly, alpaca, gsm8k, boolq, openbookqa, "
        "messages, sharegpt, prompt_completion, preference, or columns with a prompt and a response (--prompt, --response)"
    )
