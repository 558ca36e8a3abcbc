"""Verification: losses of a sweep taken again the plain way, by actually swapping modules and running the model's own forward.

One example at a time, unpadded, the whole model: nothing of the one pass is used but the modules. Which changes are drawn is
decided by a seed alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from raysweep.data.examples import Example
from raysweep.models.surgery import substitute
from raysweep.models.transfers import to_device
from raysweep.studies.interventions import Change
from raysweep.studies.substitution import Pair
from raysweep.studies.versions import version_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# How far two ways of computing one loss may be apart, for each nat of a loss above 1: rounding, and what padding and
# batching make of it in 16 bits (about 1e-3), with room.
TOLERANCES = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 2e-2}


def draw(changes: Sequence[Change], n: int, seed: int = 0) -> list[Change]:
    """`n` of the changes at random (all where there are no more), in their order."""
    chosen = random.Random(seed).sample(range(len(changes)), min(n, len(changes)))
    return [changes[index] for index in sorted(chosen)]


@contextmanager
def changed_model(pair: Pair, change: Change) -> Iterator[PreTrainedModel]:
    """The changed model itself, while the context lasts; both models are as before when it ends."""
    frame = pair.frame(change.in_base)
    with ExitStack() as stack:
        versions = [
            stack.enter_context(version_of(tuned, base, change.version(layer)))
            for layer, (tuned, base) in enumerate(zip(pair.tuned.blocks, pair.base.blocks, strict=True))
        ]
        stack.enter_context(substitute(frame.blocks, nn.ModuleList(versions), range(pair.n_layers)))
        yield frame.model


@torch.no_grad()
def true_losses(pair: Pair, examples: Sequence[Example], change: Change) -> np.ndarray:
    """Mean negative log likelihood in nats over each example's response tokens, float64 [N], of the changed model."""
    losses = []
    with changed_model(pair, change) as model:
        for example in examples:
            tokens = to_device(torch.from_numpy(example.tokens)[None], pair.frame(change.in_base).device)
            logits = model(input_ids=tokens[:, :-1], use_cache=False).logits[0, example.n_prompt - 1 :].float()
            targets = tokens[0, example.n_prompt :].to(logits.device)
            losses.append(float(nn.functional.cross_entropy(logits, targets, reduction="none").double().mean()))
    return np.array(losses)


def apart(losses: np.ndarray, recomputed: np.ndarray) -> np.ndarray:
    """Difference of each two, nats; 0 for two that are NaN, or infinite, alike."""
    alike = (losses == recomputed) | (np.isnan(losses) & np.isnan(recomputed))
    with np.errstate(invalid="ignore"):
        return np.where(alike, 0.0, recomputed - losses)


def within(difference: np.ndarray, losses: np.ndarray, dtype: str) -> np.ndarray:
    """Whether each difference is what rounding in `dtype` explains; NaN against a number is not."""
    return np.asarray(np.abs(difference) <= TOLERANCES[dtype] * np.maximum(1.0, np.abs(losses)))
