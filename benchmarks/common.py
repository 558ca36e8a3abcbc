"""What the benchmarks share: the laboratory's pair and examples, clocks in turn, and the machine's description."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable

import torch

from raysweep.data.examples import Example, load_examples
from raysweep.models.adapter import Adapter
from raysweep.models.checkpoint import describe
from raysweep.models.loading import load_model, load_tokenizer
from raysweep.studies.substitution import Pair


def laboratory(name: str = "sums", form: str = "gsm8k", limit: int = 64) -> tuple[Pair, list[Example]]:
    """The laboratory's pair for one set, float32 on the CPU, and its first test examples."""
    base, tuned = describe("lab://tiny"), describe(f"lab://tiny/{name}")
    examples = load_examples(f"lab://{name}/test", form, load_tokenizer(base), limit=limit).examples
    return Pair(Adapter(load_model(base)), Adapter(load_model(tuned))), examples


def in_turn(rounds: int, *sides: Callable[[], object]) -> list[list[float]]:
    """Seconds of each side in every round, the sides in turn so that a drift of the machine meets all of them."""
    seconds: list[list[float]] = [[] for _ in sides]
    for side in sides:  # warm-up
        side()
    for _ in range(rounds):
        for times, side in zip(seconds, sides, strict=True):
            started = time.perf_counter()
            side()
            times.append(time.perf_counter() - started)
    return seconds


def spread(values: list[float]) -> str:
    """Median with the least and the greatest."""
    return f"{statistics.median(values):.3f} (from {min(values):.3f} to {max(values):.3f} in {len(values)} rounds)"


def machine() -> str:
    """One line about where the figures were taken."""
    return f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads"
