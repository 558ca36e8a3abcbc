"""What decides figures, for the keys of parts and results: of a chunk its contents; of all, arithmetic, dtype and libraries. Pure."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from raysweep.data.examples import Example
from raysweep.engine.facts import Facts, ModelFacts
from raysweep.fingerprint import fingerprint

CALCULATION = 1  # raised when a study's arithmetic changes, so that old results are not taken for new ones
STATISTICS = 4  # likewise for similarity and correlation alone, which are made anew from what is captured and swept


def computed(facts: Facts, model: ModelFacts) -> dict[str, Any]:
    """The arithmetic, the dtype, and the libraries' major versions."""
    releases = {name: ".".join(facts.libraries[name].split(".")[:2]) for name in ("torch", "transformers")}
    return {"calculation": CALCULATION, "dtype": model.dtype, "libraries": releases}


@lru_cache(maxsize=1024)  # models on paper share their examples, and a plan asks more than once
def chunk_fingerprint(examples: tuple[Example, ...], *, prompts_only: bool) -> str:
    """Identity of a chunk's contents: which records, their tokens, and where the response starts.

    With `prompts_only` the response does not count: capture does not see it.
    """
    if prompts_only:
        return fingerprint([[e.id, e.tokens[: e.n_prompt].tolist()] for e in examples])
    return fingerprint([[e.id, e.n_prompt, e.tokens.tolist()] for e in examples])
