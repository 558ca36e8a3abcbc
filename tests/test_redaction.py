"""Secrets by their place, their shape and the environment's names for them; and what only looks like one."""

from __future__ import annotations

import pytest

from raysweep.redaction import redacted

AWS = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("s3://AKIAIOSFODNN7EXAMPLE:wJalr/XUtnFEMI@bucket/run", "s3://***@bucket/run"),
        ("cloned https://me:hunter2@host/x and http://h/y", "cloned https://***@host/x and http://h/y"),
        ("--set storage.secret=abc --set execution.chunk=4", "--set storage.secret=*** --set execution.chunk=4"),
        ("AWS_SECRET_ACCESS_KEY=a/b+c d", "AWS_SECRET_ACCESS_KEY=*** d"),
        ('{"api_key": "x y", "n": 3}', '{"api_key": ***, "n": 3}'),
        ("https://h/x?X-Amz-Signature=abc&part=1", "https://h/x?X-Amz-Signature=***&part=1"),
        ("Authorization: Bearer abc.DEF-1", "Authorization: Bearer ***"),
        ("with key AKIAIOSFODNN7EXAMPLE here", "with key *** here"),
        ("hf_" + "a" * 30, "***"),
    ],
)
def test_a_secret_is_hidden_and_the_rest_is_left(text, told):
    assert redacted(text, {}) == told


@pytest.mark.parametrize(
    "text",
    [
        "max_tokens=512, batch_tokens: 8192",
        "eos_token='</s>' pad_token: <pad>",
        "the token at position 5: 17",
        "lab://tiny/sums",
        "s3://bucket/run",
        "http://127.0.0.1:8265",
        "me@host",
        "substitute tiny/sums 8-12 chunk 3",
    ],
)
def test_what_only_looks_like_a_secret_is_left(text):
    assert redacted(text, {}) == text


def test_what_the_environment_holds_as_a_secret_is_hidden_wherever_it_stands():
    environment = {
        "AWS_SECRET_ACCESS_KEY": AWS,
        "HF_TOKEN": "x1y2z3x1y2z3",
        "PWD": "/home/somebody",
        "MY_TOKEN": "short",
    }
    told = redacted(
        [f"OSError: {AWS} was refused", {"a": ("/home/somebody", "x1y2z3x1y2z3"), "n": 1.5}, "short", None], environment
    )
    assert told == ["OSError: *** was refused", {"a": ("/home/somebody", "***"), "n": 1.5}, "short", None]


def test_the_value_of_a_key_that_is_named_for_a_secret_is_hidden():
    assert redacted({"token": "abc", "tokens": "abc", "n_tokens": 3}, {}) == {
        "token": "***",
        "tokens": "abc",
        "n_tokens": 3,
    }
