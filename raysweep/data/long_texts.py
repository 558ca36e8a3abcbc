"""Long texts, of which no more is tokenized than a number of tokens needs.

A tokenizer takes time in proportion to a text, and a model reads its first tokens alone. So a text is cut where a word ends, far
behind the last token that is needed, and what it begins with is tokenized twice, at two lengths: only if both give the same
tokens, and enough of them, does the rest of the text not matter. Otherwise more is tokenized, up to all of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from raysweep.limits import TEXT_CHARS

Texts = tuple[str, str]
Encoded = tuple[NDArray[np.int64], int]

SHORT = 2**16  # characters: no shorter text is cut
_PER_TOKEN = 16  # characters, of a first try
_SPARE = 64  # tokens that a cut may change
_WORD_ENDS = re.compile(r"(?<=\w)(?= \w)")
_NEAR = 2000  # characters before a cut in which a word's end is looked for


def encode_enough(texts: Texts, encode: Callable[[Texts], Encoded], most: int | None) -> tuple[Encoded, bool]:
    """Encode a prompt and its response as far as `most` tokens need; True if the rest of them was not tokenized.

    What `encode` returns for the whole texts begins with the tokens returned, `most` or more, and as many of these belong to
    the prompt. Raises InputError for texts beyond the limit that all have to be tokenized.
    """
    length = len(texts[0]) + len(texts[1])
    n, before = max(SHORT, _PER_TOKEN * (most or 0)), None
    while most is not None and n < length:
        found = encode(_cut(texts, n))
        if before is not None and _agree(before, found, most):
            return found, True
        before = found if len(found[0]) > most + _SPARE else None
        n *= 2
    TEXT_CHARS.check(length, "the prompt and the response")
    return encode(texts), False


def _agree(one: Encoded, other: Encoded, most: int) -> bool:
    """Whether both begin with the same tokens, one more than `most`, with the same border between prompt and response."""
    same = np.array_equal(one[0][: most + 1], other[0][: most + 1])
    return same and min(one[1], most + 1) == min(other[1], most + 1)


def _cut(texts: Texts, n: int) -> Texts:
    """About the first `n` characters of both together."""
    prompt, response = texts
    if n <= len(prompt):
        return _up_to_a_word(prompt, n), ""
    return prompt, _up_to_a_word(response, n - len(prompt))


def _up_to_a_word(text: str, n: int) -> str:
    if n >= len(text):
        return text
    start = max(0, n - _NEAR)
    ends = [found.start() for found in _WORD_ENDS.finditer(text, start, n)]
    return text[: ends[-1]] if ends else text[:n]
