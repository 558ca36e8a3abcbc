"""Chat templates that read the clock, against transformers' own rendering with its clock moved."""

import datetime
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from transformers.utils import chat_template_utils

from raysweep.data.examples import load_examples
from raysweep.data.template_date import TemplateClock, today
from raysweep.errors import InputError

TURNS = [{"role": "user", "content": "How old is it? {{ 7 }}"}, {"role": "assistant", "content": "007 years"}]
BODY = "{% for m in messages %}\n  <{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"

# Templates in the ways of published ones, and in ways that a macro put before them could disturb.
READING = {
    "a date": "{{ strftime_now('%d %b %Y') }}" + BODY,
    "if there is a clock": (
        "{%- if strftime_now is defined %}\n    {%- set day = strftime_now('%d %b %Y') %}\n{%- else %}\n"
        "    {%- set day = '26 Jul 2024' %}\n{%- endif %}\n{{- 'Today: ' + day }}\n" + BODY
    ),
    "several formats": "{{ strftime_now('%A') }} {{ strftime_now('%-d') }}{{ strftime_now(\"%d %%\\n%B\") }}" + BODY,
    "a format that is made": "{% set parts = ['%Y', '%m'] %}{{ strftime_now(parts | join('-')) }}" + BODY,
    "by its argument's name": "{{ strftime_now(format='%j') | int + 1 }}" + BODY,
    "in a macro and a loop": (
        "{% macro head(x) %}[{{ x }} {{ strftime_now('%y') }}]{% endmacro %}"
        "{% for m in messages %}{{ head(m.role) }}{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ head('assistant') }}{% endif %}"
    ),
    "text that looks like code": "{% raw %}{{ strftime_now('%Y') }}{% endraw %}{{ strftime_now('%H:%M:%S %p') }}"
    + BODY,
    "a line break first": "\n\n{{ strftime_now('%Y') }}" + BODY,
    "blanks before a tag first": "   {% set x = strftime_now('%Y') %}  {{ x }}" + BODY,
    "blanks before text first": "   {{ strftime_now('%Y') }}" + BODY,
    "a stripped start": "  \n {%- set x = strftime_now('%Y') -%}\n {{ x }}" + BODY,
    "a comment first": "{# who #}\n{{ strftime_now('%Y') }}" + BODY,
    "with a generation tag": (
        "{{ strftime_now('%Y') }}{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    ),
}
NOT_READING = {
    "a date of its own": "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}{{ date_string }}"
    + BODY,
    "in a comment": "{# strftime_now #}" + BODY,
    "in raw text": "{% raw %}strftime_now{% endraw %}" + BODY,
    "where it is not called": "{% if tools %}{{ strftime_now('%Y') }}{% endif %}" + BODY,
    "only if there is one": "{% if strftime_now is defined %}yes{% endif %}" + BODY,
}


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """at(date): move the clock that transformers gives to templates to that day's midnight."""

    def move(date: str) -> None:
        class Moved(datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime.datetime:
                return datetime.datetime.fromisoformat(date)

        monkeypatch.setattr(chat_template_utils, "datetime", Moved)

    return move


@pytest.mark.parametrize("name", [*READING, *NOT_READING])
@pytest.mark.parametrize("date", ["2024-07-26", "2031-12-01"])
def test_texts_are_those_of_that_day(name: str, date: str, tokenizer: Any, at: Callable[[str], None]) -> None:
    tokenizer.chat_template = {**READING, **NOT_READING}[name]
    clock = TemplateClock(date)
    found = [clock.render(tokenizer, TURNS[:1], add_generation_prompt=True), clock.render(tokenizer, TURNS)]
    assert clock.was_read == (name in READING)
    at(date)
    expected = [tokenizer.apply_chat_template(TURNS[:1], add_generation_prompt=True, tokenize=False)]
    expected.append(tokenizer.apply_chat_template(TURNS, tokenize=False))
    assert found == expected


def test_templates_by_name(tokenizer: Any, at: Callable[[str], None]) -> None:
    tokenizer.chat_template = {"default": READING["a date"], "tool_use": READING["several formats"]}
    tools = [{"type": "function", "function": {"name": "f"}}]
    clock = TemplateClock("2024-07-26")
    found = [clock.render(tokenizer, TURNS, tools=tools), clock.render(tokenizer, TURNS, chat_template="default")]
    at("2024-07-26")
    assert found[0] == tokenizer.apply_chat_template(TURNS, tools=tools, tokenize=False)
    assert found[1] == tokenizer.apply_chat_template(TURNS, tokenize=False)


def test_what_a_template_raises_is_raised(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ strftime_now('%Y') }}{{ raise_exception('no system turn') }}"
    with pytest.raises(Exception, match=r"^no system turn$"):
        TemplateClock("2024-07-26").render(tokenizer, TURNS)
    tokenizer.chat_template = "{{ strftime_now() }}"
    with pytest.raises(Exception, match=r"needs the time as $"):
        TemplateClock("2024-07-26").render(tokenizer, TURNS)


def test_clocks_of_several_threads_do_not_meet(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{{ strftime_now('%Y-%m-%d') }}{{ strftime_now('%j') }} {% endfor %}"
    )
    dates = [f"20{year:02}-03-01" for year in range(10, 60)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda date: TemplateClock(date).render(tokenizer, TURNS), dates))
    for date, text in zip(dates, found, strict=True):
        assert text == f"{date}{datetime.date.fromisoformat(date):%j} " * 2


def test_examples_are_worded_at_their_date(tokenizer: Any, at: Callable[[str], None], tmp_path: Path) -> None:
    path = tmp_path / "my.jsonl"
    path.write_text(json.dumps({"messages": TURNS}) + "\n")
    body = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + body
    at("1999-12-31")
    for date in ("2024-07-26", datetime.date(2024, 7, 26)):
        found = load_examples(str(path), "messages", tokenizer, template_date=date)
        assert found.examples[0].prompt.startswith("26 Jul 2024")
        assert found.template_date == "2024-07-26"
    found = load_examples(str(path), "messages", tokenizer)
    assert found.template_date == today() == datetime.date.today().isoformat()
    assert found.examples[0].prompt.startswith(datetime.date.today().strftime("%d %b %Y"))
    tokenizer.chat_template = "26 Jul 2024" + body
    assert load_examples(str(path), "messages", tokenizer, template_date="2024-07-27").template_date is None
    assert load_examples(str(path), "messages", tokenizer, template="plain").template_date is None
    with pytest.raises(InputError, match="template_date: '26 Jul' is not a date; write it as YYYY-MM-DD"):
        load_examples(str(path), "messages", tokenizer, template_date="26 Jul")
