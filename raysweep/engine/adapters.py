"""What inspection finds out about a model's PEFT adapters before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from raysweep.fingerprint import fingerprint
from raysweep.models.checkpoint import Checkpoint
from raysweep.models.peft_check import check_adapter


def inspect_adapters(
    model: str, base: Checkpoint, tuned: Mapping[str, Checkpoint]
) -> tuple[dict[str, Checkpoint], list[str]]:
    """Check the adapters among the tuned checkpoints (by data set); return the checkpoints and warnings in words.

    An adapter that changes one of two tied weights gets a fingerprint of its own: earlier versions merged it into both, and what
    they measured is not to be found again. Raises InputError for an adapter that cannot be merged.
    """
    found, warnings = dict(tuned), list[str]()
    for dataset, checkpoint in tuned.items():
        if not checkpoint.adapter or checkpoint.on_paper or base.on_paper:
            continue
        facts = check_adapter(checkpoint, base)
        warnings += [f"{dataset} (for {model}): {warning}" for warning in facts.warnings]
        if facts.unties:
            apart = fingerprint({"adapter": checkpoint.fingerprint, "tied weights": "untied before merging"})
            found[dataset] = replace(checkpoint, fingerprint=apart)
    return found, warnings
