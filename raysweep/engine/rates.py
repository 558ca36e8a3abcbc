"""A rough clock for plans: the machine's matrix-product rate at a model's own width, measured in a moment."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from raysweep.engine.pending import batch_budget
from raysweep.engine.plan import hidden_size

if TYPE_CHECKING:
    from raysweep.config import Config
    from raysweep.engine.inspection import Facts
    from raysweep.engine.plan import Cost

_SECONDS = 0.1


def matmul_rate(tokens: int, width: int, dtype: str, device: str) -> float:
    """Floating point operations a second of [tokens, width] × [width, 4·width]."""
    import torch

    kind = getattr(torch, dtype)
    left = torch.ones(tokens, width, dtype=kind, device=device)
    right = torch.ones(width, 4 * width, dtype=kind, device=device)

    def product() -> None:
        torch.mm(left, right)
        if left.is_cuda:
            torch.cuda.synchronize()

    product()
    started, n = time.perf_counter(), 0
    while time.perf_counter() - started < _SECONDS:
        product()
        n += 1
    return 8.0 * tokens * width * width * n / (time.perf_counter() - started)


def seconds_for(config: Config, facts: Facts, cost: Cost) -> float:
    """Seconds that the cost's products take at the measured rate, the slowest model's."""
    if not cost.flops:
        return 0.0
    tokens = batch_budget(config.execution.batch_tokens, facts.device)
    rates = [
        matmul_rate(tokens, hidden_size(model.base.config), model.dtype, facts.device)
        for model in facts.models.values()
    ]
    return cost.flops / min(rates)
