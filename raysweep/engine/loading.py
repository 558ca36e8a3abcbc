"""How a model's calls have its checkpoints: in which dtype, on which device, in what batches, resident or streamed. Pure."""

from __future__ import annotations

from typing import Literal

from raysweep.config import Config
from raysweep.engine.calls import Loading
from raysweep.engine.facts import Facts, ModelFacts


def batch_budget(asked: int | Literal["auto"], device: str) -> int:
    """Padded tokens of one block call.

    `auto` is 8192 on an accelerator; on a CPU 1024, where products are as fast as they get and states stay in its caches.
    """
    if asked == "auto":
        return 1024 if device == "cpu" else 8192
    return asked


def loading_of(config: Config, facts: Facts, model: ModelFacts) -> Loading:
    """How a model's calls have its checkpoints."""
    budget = batch_budget(config.execution.batch_tokens, facts.device)
    at = model.residency
    stream, spill = at.mode == "stream", config.execution.spill_folder
    where = str(spill) if stream and spill is not None else None
    return Loading(
        model.dtype, facts.device, config.execution.spread_on(facts.device), budget, stream, at.memory, where
    )
