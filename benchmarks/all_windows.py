"""Every window of a 32-layer pair against the windows of one width: layer applications, and whether the times follow.

All 528 windows and width 0, against the 28 windows of width 5 and the two rows that every sweep has. Layer applications are
counted while the sweeps run, and must be 6,016 and 577. The two sides run in turn, the shorter one ten times a round, so that
a busy moment of the machine meets both alike; the figure is the ratio of their times over
the ratio of their applications, and the limit is within 15 % of 1. Norm, head and loss are one application a row and grow with
the rows (529 against 30), not with the layers, so the vocabulary is small against the layers, as a real model's head is.
"""

from __future__ import annotations

import copy
import statistics

import numpy as np
import torch
from common import in_turn, machine, spread
from transformers import AutoModelForCausalLM, LlamaConfig

from raysweep.data.examples import Example
from raysweep.models.adapter import Adapter
from raysweep.studies.substitution import Pair, Work, sweep_losses
from raysweep.studies.windows import Window, windows_of_widths

LAYERS, WIDTH, ROUNDS, TIMES = 32, 5, 3, 10
EXPECTED = (6016, 577)
LIMIT = 0.15


def make_pair() -> Pair:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
    )
    base = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    tuned = copy.deepcopy(base)
    for weight in tuned.parameters():
        weight += 0.01 * torch.randn_like(weight)
    return Pair(Adapter(base), Adapter(tuned))


def main() -> None:
    pair, rng = make_pair(), np.random.default_rng(0)
    examples = [Example(i, rng.integers(0, 512, 65), 56, "", "") for i in range(2)]
    works = (Work(), Work())

    def sweep(windows: list[Window], work: Work) -> None:
        work.applications = work.heads = 0
        sweep_losses(pair, examples, windows, batch_tokens=1024, work=work)

    sides = (windows_of_widths(LAYERS, "all"), windows_of_widths(LAYERS, [WIDTH]))

    def ten_times() -> None:
        for _ in range(TIMES):
            sweep(sides[1], works[1])

    every, ten = in_turn(ROUNDS, lambda: sweep(sides[0], works[0]), ten_times)
    one = [seconds / TIMES for seconds in ten]
    found = tuple(work.applications for work in works)
    print(f"every window of {LAYERS} layers against width {WIDTH}; {machine()}")
    print(
        f"  rows {len(sides[0])} and {len(sides[1])}; layer applications {found[0]} and {found[1]} (must be 6016 and 577)"
    )
    print(f"  seconds {spread(every)} and {spread(one)}")
    follow = [a / b / (found[0] / found[1]) for a, b in zip(every, one, strict=True)]
    print(f"  ratio of times over ratio of applications {spread(follow)} (limit 0.85 to 1.15)")
    if found != EXPECTED or abs(statistics.median(follow) - 1) > LIMIT:
        raise SystemExit("not met")


if __name__ == "__main__":
    main()
