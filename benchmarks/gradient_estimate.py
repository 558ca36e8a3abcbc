"""The gradient estimate: what it costs, and how well it tells the order of the exact losses.

Cost: seconds of one point over (layers × seconds of an application in the plain batched forward), both in turn, for models of
24, 32 and 80 layers (random weights: only their arithmetic counts). It does not depend on the windows, for it has none until
its scores are summed. Accuracy: the laboratory's pairs, all windows of width 5, against exact losses of the same records;
at several coefficients, for an estimate is local: it is good where the step is small against what the loss bends.
"""

from __future__ import annotations

import argparse
import statistics

import numpy as np
import torch
from common import in_turn, laboratory, machine
from scipy.stats import spearmanr
from transformers import LlamaConfig, LlamaForCausalLM

from raysweep.data.batches import pad
from raysweep.data.examples import Example
from raysweep.models.adapter import Adapter, apply_block
from raysweep.studies.gradient import estimate_losses, first_order
from raysweep.studies.interventions import Change, check_changes
from raysweep.studies.substitution import Pair, Work, sweep_losses

SETS = {"sums": "gsm8k", "facts": "boolq", "quiz": "openbookqa", "orders": "dolly"}
WIDTH, ROUNDS = 5, 5


def cost(layers: int) -> None:
    """Time of one point by the plain forward's applications."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=layers,
        num_attention_heads=4,
        vocab_size=512,
        max_position_embeddings=128,
    )
    base, tuned = LlamaForCausalLM(config), LlamaForCausalLM(config)
    pair = Pair(Adapter(base.requires_grad_(False)), Adapter(tuned.requires_grad_(False)))
    rng = np.random.default_rng(0)
    examples = [Example(i, rng.integers(0, 512, 65), 48, "", "") for i in range(32)]
    tokens = torch.from_numpy(pad([example.tokens[:-1] for example in examples]))
    work = Work()

    @torch.no_grad()
    def forward() -> None:
        for batch in torch.split(tokens, 16):
            recording = pair.tuned.record(batch)
            states = recording.states
            for block, call in zip(pair.tuned.blocks, recording.calls, strict=True):
                states = apply_block(block, states, call)

    def estimate() -> None:
        first_order(pair, examples, batch_tokens=1024, work=work)

    plain, ours = in_turn(ROUNDS, forward, estimate)
    applications = work.applications / (ROUNDS + 1) / 2 / layers
    ratios = [b / a for a, b in zip(plain, ours, strict=True)]
    print(
        f"  {layers} layers: {applications:.2f}·L layer applications (limit 3), "
        f"{statistics.median(ratios):.2f}·L in time ({min(ratios):.2f} to {max(ratios):.2f} in {ROUNDS} rounds; the head's gradient included)",
        flush=True,
    )


def accuracy(limit: int) -> None:
    """Rank correlation with the exact losses over windows of width 5."""
    for name, form in SETS.items():
        pair, examples = laboratory(name, form, limit)
        for coefficient in (0.1, 0.3, 1.0):
            changes: list[Change] = [
                change
                for change in check_changes(pair.n_layers, [WIDTH], coefficients=[coefficient])
                if change.width == WIDTH and change.coefficient == coefficient
            ]
            exact = sweep_losses(pair, examples, changes, batch_tokens=1024).mean(axis=1)
            told = []
            for points in (1, 4):
                estimate = estimate_losses(pair, examples, changes, points=points, batch_tokens=1024).mean(axis=1)
                off = float(np.sqrt(np.mean((estimate - exact) ** 2)))
                told.append(f"{points} points {spearmanr(estimate, exact)[0]:+.2f} (off by {off:.3f})")
            print(
                f"  {name:<7} step {coefficient:g}: Spearman of {len(changes)} windows with {', '.join(told)}; "
                f"exact {exact.min():.3f} to {exact.max():.3f} nats",
                flush=True,
            )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--limit", type=int, default=64, help="records a data set")
    asked = options.parse_args()
    print(f"gradient estimate; {machine()}")
    for layers in (24, 32, 80):
        cost(layers)
    accuracy(asked.limit)


if __name__ == "__main__":
    main()
