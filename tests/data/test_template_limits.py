"""Templates under limits: attacks are refused, and everything else renders as in Jinja's own sandbox."""

from __future__ import annotations

import time

import jinja2
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from raysweep.data.formats import render
from raysweep.data.template_date import TemplateClock
from raysweep.data.template_limits import Allowance, LimitedEnvironment, limited_twin
from raysweep.errors import InputError
from raysweep.models.checkpoint import describe
from raysweep.models.loading import load_tokenizer

TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(describe("lab://tiny"))


TOO_LARGE = [
    "{{ 'a' * 10**10 }}",
    "{{ messages[0].content.center(10**10) }}",
    "{{ 'a'|center(10**10) }}",
    "{{ '%10000000000d' % 1 }}",
    "{{ '%*d'|format(10**10, 1) }}",
    "{{ '{:{}}'.format(1, 10**10) }}",
    "{% set a = 'a' * 10**4 %}{{ a|replace('a', a)|replace('a', a) }}",
    "{% set a = 'a' * 10**4 %}{{ a.replace('a', a).replace('a', a) }}",
    "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x=1) %}{% for i in range(99) %}{% set n.x = {'a': n.x, 'b': n.x} %}{% endfor %}{{ n.x|tojson }}",
    "{% set n = namespace(x=3) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "{% set s = 'a' * 10**6 %}{% for i in range(99999) %}{{ s }}{% endfor %}",
    "{% set s = 'a' * 10**6 %}{% set t %}{% for i in range(99999) %}{{ s }}{% endfor %}{% endset %}",
    "{% set s = 'a' * 10**6 %}{% macro m(s) %}{{ m(s[1:]) }}{% endmacro %}{{ m(s) }}",
    "{{ ('a' * 10**6).join(range(99999)|map('string')) }}",
    "{{ messages|tojson(indent=10**10) }}",
    "{{ 1.5|round(10**9, 'floor') }}",
    "{{ (1).to_bytes(10**10, 'big') }}",
    "{{ lipsum(n=10**9) }}",
    "{{ [1]|batch(10**10, 2)|list }}",
    "{{ ('<!--' * 10**5)|striptags }}",
]
TOO_LONG = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "{% set a = range(99999)|list %}{{ a|select('in', a)|list|length }}",
]


@pytest.mark.parametrize("template", TOO_LARGE)
def test_what_gets_too_large_is_refused_before_it_is_made(template, tokenizer, monkeypatch):
    monkeypatch.setenv("RAYSWEEP_MAX_TEMPLATE_BYTES", "5M")
    monkeypatch.setattr(tokenizer, "chat_template", template)
    for rendered in (
        lambda: TemplateClock("2026-01-01").render(tokenizer, TURNS),
        lambda: render(template, {"messages": TURNS}),
    ):
        begun = time.process_time()
        with pytest.raises(
            InputError, match=r"a template makes texts and lists of .* bytes, .* RAYSWEEP_MAX_TEMPLATE_BYTES"
        ):
            rendered()
        assert time.process_time() - begun < 5


@pytest.mark.parametrize("template", TOO_LONG)
def test_what_takes_too_long_is_ended(template, tokenizer, monkeypatch):
    monkeypatch.setenv("RAYSWEEP_MAX_TEMPLATE_SECONDS", "0.2")
    monkeypatch.setattr(tokenizer, "chat_template", template)
    with pytest.raises(InputError, match=r"a template takes more than 0\.2 seconds"):
        TemplateClock("2026-01-01").render(tokenizer, TURNS)


def test_the_records_of_a_source_share_their_seconds(monkeypatch):
    monkeypatch.setenv("RAYSWEEP_MAX_TEMPLATE_SECONDS", "0.5")
    allowance, slow = Allowance(), "{% for i in range(99999) %}{% for j in range(8) %}{% endfor %}{% endfor %}"
    with pytest.raises(InputError, match=r"more than 0\.5 seconds"):  # noqa: PT012 - any record may be the one
        for _ in range(20):
            with allowance.one_record():
                render(slow, {})


def test_templates_change_nothing_that_they_are_given(tokenizer, monkeypatch):
    for change in ("messages.append(1)", "messages[0].update(role='x')", "messages.clear()"):
        with pytest.raises(InputError, match="unsafe"):
            render(f"{{% set _ = {change} %}}", {"messages": TURNS})
    monkeypatch.setattr(tokenizer, "chat_template", "{% set _ = messages.append(1) %}")
    with pytest.raises(jinja2.exceptions.SecurityError):
        TemplateClock("2026-01-01").render(tokenizer, TURNS)


def test_transformers_renders_without_limits_elsewhere(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", "{{ 'a' * 1000 }}")
    monkeypatch.setenv("RAYSWEEP_MAX_TEMPLATE_BYTES", "10")
    with pytest.raises(InputError):
        TemplateClock("2026-01-01").render(tokenizer, TURNS)
    assert tokenizer.apply_chat_template(TURNS, tokenize=False) == "a" * 1000


EQUAL = [
    "{% for m in messages %}{{ loop.index }}{{ loop.last }}{{ loop.length }}{{ m.role|upper }}{{ loop.previtem }}{% else %}none{% endfor %}",
    "{% for m in messages[::-1] if m.role != 'x' %}{{ m['content'] ~ loop.revindex ~ m }}{% endfor %}{{ messages[1:] }}",
    "{% for k, v in messages[0].items() %}{{ k }}={{ v }},{% endfor %}{% for c in 'abc' %}{{ c }}{% endfor %}{% for x in none_here %}{% endfor %}",
    "{% macro m(x, y=2) %}{{ x + y }}{{ caller() if caller else '' }}{% endmacro %}{% call m(1) %}!{% endcall %}{{ m(3, 4) }}",
    "{{ messages|map(attribute='role')|join(', ') }}{{ [3, 1, 2]|sort|first }}{{ messages|tojson(indent=2) }}{{ '%05.1f|%s' % (2.5, 'x') }}",
    "{{ 'x'.join(['a', 'b']) }}{{ ' a '|trim|center(9) }}{{ '{:>8}{}'.format('a', 1) }}{{ 'a-b'.split('-')|last }}{{ 7 // 2 * 2 ** 3 % 5 }}",
    "{% set n = namespace(x='', y=[]) %}{% for m in messages %}{% set n.x = n.x ~ m.role %}{% set n.y = n.y + [m] %}{% endfor %}{{ n.x }}{{ n.y }}",
    "{% for x in [1, [2, [3]]] recursive %}{{ x if x is number else loop(x) }}{% endfor %}{{ (1, 2) + (3,) }}{{ {'a': [1]}['a'][0] }}",
    "{{ [1, 2, 3]|sum }}{{ ['a', 'b']|batch(1)|list }}{{ 'abc'|replace('b', 'x', 1) }}{{ 'a\nb'|indent(2, true) }}{{ '<a>'|e }}{{ 5|round }}",
    "{% set t %}x{{ messages|length }}{% endset %}{{ t * 2 }}{% filter upper %}abc{% endfilter %}{{ messages is iterable }}{{ '%d' % 1700000000 }}",
    "{{ messages|selectattr('role', 'equalto', 'user')|list }}{{ messages|groupby('role')|list|length }}{{ range(3)|list }}{{ 1.5|string }}",
]  # fmt: skip


@pytest.mark.parametrize("template", EQUAL)
@pytest.mark.parametrize(
    "options", [{}, {"trim_blocks": True, "lstrip_blocks": True}, {"keep_trailing_newline": True}], ids=str
)
def test_other_templates_render_as_in_the_sandbox(template, options):
    values = {"messages": TURNS}
    plain = ImmutableSandboxedEnvironment(**options)
    expected = plain.from_string(template).render(values)
    assert LimitedEnvironment(**options).from_string(template).render(values) == expected
    assert limited_twin(plain).from_string(template).render(values) == expected
