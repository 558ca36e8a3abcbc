"""Fingerprints: the identity of a value, the same in every process and on every machine.

A value is written canonically (JSON, sorted keys) and hashed. What cannot be written canonically is refused, never
guessed: a default repr with an address in it would make every run look new.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

LENGTH = 32
_MARK = "(what is put in here)"
_WRITING = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def canonical(value: Any) -> Any:
    """The value made of JSON's own types only; tuples become lists.

    Raises TypeError for any other type and for keys that are not text, ValueError for a float that is not finite.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"cannot fingerprint {value}: only finite numbers have one writing")
        return value
    if isinstance(value, (list, tuple)):
        if set(map(type, value)) <= {int, str}:  # thousands of tokens, mostly
            return list(value)
        return [canonical(item) for item in value]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"cannot fingerprint a key of type {type(key).__name__} ({key!r}); use text")
        return {key: canonical(item) for key, item in value.items()}
    raise TypeError(f"cannot fingerprint a {type(value).__name__} ({value!r}); give its plain values")


def fingerprint(value: Any) -> str:
    """The first 32 hexadecimal digits of the SHA-256 of the canonical writing."""
    return hashlib.sha256(_WRITING.encode(canonical(value)).encode()).hexdigest()[:LENGTH]


def fingerprints(value: Mapping[str, Any], key: str, texts: Iterable[str]) -> list[str]:
    """`fingerprint({**value, key: text})` of each text; the rest is written once, for there may be hundreds of thousands."""
    written = _WRITING.encode(canonical({**value, key: _MARK}))
    before, marked, behind = written.partition(_WRITING.encode(_MARK))
    if not marked or _MARK in behind:
        raise ValueError(f"the value of another key holds {_MARK!r}, which stands for '{key}' here")
    begun = hashlib.sha256(before.encode())
    found = []
    for text in texts:
        whole = begun.copy()
        whole.update((_WRITING.encode(canonical(text)) + behind).encode())
        found.append(whole.hexdigest()[:LENGTH])
    return found
