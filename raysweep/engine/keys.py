"""What decides figures, for the keys of parts and results: of a chunk its contents; of all, arithmetic, dtype and libraries. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from raysweep.fingerprint import fingerprint

if TYPE_CHECKING:
    from raysweep.data.examples import Example
    from raysweep.engine.facts import Facts, ModelFacts
    from raysweep.models.checkpoint import Checkpoint

CALCULATION = 1  # raised when a study's arithmetic changes, so that old results are not taken for new ones
STATISTICS = 4  # likewise for similarity and correlation alone, which are made anew from what is captured and swept


TRAINING = 1  # likewise for trainings and what is made of them


def computed(facts: Facts, model: ModelFacts, *measured: Checkpoint) -> dict[str, Any]:
    """Return the arithmetic, the dtype, and the releases of libraries that the figures of these checkpoints depend on."""
    with_peft = any(checkpoint.adapter for checkpoint in measured)
    return {
        "calculation": CALCULATION,
        "dtype": model.dtype,
        "libraries": releases(facts.libraries, with_peft=with_peft),
    }


def releases(libraries: Mapping[str, str], *, with_peft: bool) -> dict[str, str]:
    """Return major and minor versions of the libraries that figures depend on; of peft only if adapters are merged or trained."""
    names = ("torch", "transformers", *(["peft"] if with_peft else []))
    return {name: ".".join(libraries[name].split(".")[:2]) for name in names}


@lru_cache(maxsize=1024)  # models on paper share their examples, and a plan asks more than once
def chunk_fingerprint(examples: tuple[Example, ...], *, prompts_only: bool) -> str:
    """Identity of a chunk's contents: which records, their tokens, and where the response starts.

    With `prompts_only` the response does not count: capture does not see it.
    """
    if prompts_only:
        return fingerprint([[e.id, e.tokens[: e.n_prompt].tolist()] for e in examples])
    return fingerprint([[e.id, e.n_prompt, e.tokens.tolist()] for e in examples])
