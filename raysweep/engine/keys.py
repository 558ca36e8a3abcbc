"""What decides figures beside checkpoints and records, for the keys of parts and results. Pure."""

from __future__ import annotations

from typing import Any

from raysweep.engine.inspection import Facts, ModelFacts

CALCULATION = 1  # raised when a study's arithmetic changes, so that old results are not taken for new ones
STATISTICS = 4  # likewise for similarity and correlation alone, which are made anew from what is captured and swept


def computed(facts: Facts, model: ModelFacts) -> dict[str, Any]:
    """The arithmetic, the dtype, and the libraries' major versions."""
    releases = {name: ".".join(facts.libraries[name].split(".")[:2]) for name in ("torch", "transformers")}
    return {"calculation": CALCULATION, "dtype": model.dtype, "libraries": releases}
