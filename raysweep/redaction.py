"""Secrets kept out of what is written down or shown: a run's folder, its log and page, messages, a job's metadata.

A secret is known by where it stands (a password in a URL, the value of a key that is named for one), by its shape (a
cloud's access key, a hub's token), or because the environment holds it under such a name. What is none of these cannot be
known for one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TypeVar

HIDDEN = "***"
_SHORTEST = 8  # a shorter value of the environment's is no secret, and would be found inside other words

_NAME = (
    r"(?:token|secret|passw(?:or)?d|passphrase|sas|signature"
    r"|(?:api|access|secret|private|account|storage|encryption)[_-]?key(?:[_-]?id)?|connection[_-]?string)"
)
_TOKENIZERS = r"(?<!bos_)(?<!eos_)(?<!pad_)(?<!unk_)(?<!sep_)(?<!cls_)(?<!mask_)"  # names of theirs, and no secrets
_NAMED = re.compile(rf"(?:^|[_.-]){_NAME}$", re.IGNORECASE)
_ASSIGNED = re.compile(
    rf"(?<![a-z0-9]){_TOKENIZERS}({_NAME}['\"]?\s?[=:]\s?)('[^']*'|\"[^\"]*\"|[^\s,;&'\"\]}})]+)", re.IGNORECASE
)
# A word up to the next @, white space, or quote; possessive, so that text without an @ is read once.
_WORD = re.compile(r"[^\s@'\"]++@?")
# What may be a URL's user and password, also after one slash, as paths are normalised.
_ONE_SLASH = re.compile(r":/[^/:]++:.", re.DOTALL)
_SHAPES = re.compile(
    r"\b(?:A[KS]IA[0-9A-Z]{16}|hf_[A-Za-z0-9]{16,}|gh[a-z]_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,})\b"
    r"|(?<=Bearer )[A-Za-z0-9._~+/=-]+"
)

T = TypeVar("T")


def redacted(value: T, environment: Mapping[str, str] | None = None) -> T:
    """The value (text, or mappings, lists and tuples of such) with `***` for every secret in it; of mappings the values only.

    `environment` is os.environ unless given.
    """
    return _hide(value, held(os.environ if environment is None else environment))


def held(environment: Mapping[str, str]) -> list[str]:
    """The values that an environment holds under a name for secrets, longest first."""
    found = {value for name, value in environment.items() if len(value) >= _SHORTEST and _NAMED.search(name)}
    return sorted(found, key=len, reverse=True)


def _hide(value: T, secrets: list[str]) -> T:
    if isinstance(value, str):
        return _without(value, secrets)  # type: ignore[return-value]
    if isinstance(value, Mapping):
        return {  # type: ignore[return-value]
            name: HIDDEN
            if isinstance(name, str) and isinstance(inner, str) and _NAMED.search(name)
            else _hide(inner, secrets)
            for name, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return type(value)(_hide(inner, secrets) for inner in value)
    return value


def _without_login(word: str) -> str:
    """The word with `***` for the user and password of a URL that ends in its @."""
    if not word.endswith("@"):
        return word
    starts = []
    start = word.find("://")
    rest = word[start + 3 : -1]
    if start >= 0 and rest and ("/" not in rest or ":" in rest):
        starts.append(start + 3)
    if found := _ONE_SLASH.search(word, 0, len(word) - 1):
        starts.append(found.start() + 2)
    return f"{word[: min(starts)]}{HIDDEN}@" if starts else word


def _without(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    if ":/" in text and "@" in text:
        text = _WORD.sub(lambda found: _without_login(found[0]), text)
    if "=" in text or ":" in text:
        text = _ASSIGNED.sub(rf"\1{HIDDEN}", text)
    return _SHAPES.sub(HIDDEN, text)
