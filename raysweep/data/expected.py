"""Examples on paper: what a source is expected to be like, as examples of those lengths, for plans.

Their tokens are all −1, which no tokenizer gives, so that they are never taken for real ones.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np

from raysweep.data.examples import Example, Loaded, Room
from raysweep.errors import InputError


def expected_examples(
    examples: int,
    prompt_tokens: int,
    response_tokens: int,
    *,
    limit: int | None = None,
    max_tokens: int | None = None,
    room: Room | None = None,
    too_long: Literal["refuse", "cut"] = "refuse",
    prompts_only: bool = False,
    last: int | None = None,
    all_but_last: int | None = None,
) -> Loaded:
    """So many examples of these lengths, counted and cut as `load_examples` does it with records.

    Raises InputError where none is left, where a cut leaves no response token, and where they are longer than the context of
    `room` and `too_long` refuses that.
    """
    n = examples - (all_but_last or 0)
    n = min(n, last or n, limit or n)
    if n < 1:
        raise InputError(
            f"expected.examples is {examples} and all_but_last removes {all_but_last}, so none is left; lower "
            "all_but_last"
        )
    length = prompt_tokens + (0 if prompts_only else response_tokens)
    context = room.context if room else None
    most = min((k for k in (max_tokens, context if too_long == "cut" else None) if k is not None), default=length)
    if most <= prompt_tokens and not prompts_only:
        raise InputError(
            f"expected.prompt_tokens is {prompt_tokens} and examples are cut to {most}, so no response token is left; "
            "expect "
            "shorter prompts, or set a larger max_tokens"
        )
    kept = min(length, most)
    if room and context is not None and kept > context:
        raise InputError(
            f"expected examples have {kept} tokens, and the context of '{room.model}' has {context}; set too_long: "
            f"cut, or max_tokens to {context} or less"
        )
    return Loaded(list(_alike(n, kept, min(prompt_tokens, kept))), n if kept < length else 0, 0)


@lru_cache(maxsize=64)  # the models of a plan expect the same, of which a training may have very many
def _alike(n: int, length: int, n_prompt: int) -> tuple[Example, ...]:
    tokens = np.full(length, -1, dtype=np.int64)
    return tuple(Example(index, tokens, n_prompt, "", "") for index in range(n))
