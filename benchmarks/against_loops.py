"""The one-pass sweep against two loops that a user would write with transformers: same batches, dtype, windows and losses.

`swapped`: for every window, the base's layers take the place of the tuned model's, and every batch goes through the whole model.
`cached`: the same, but the tuned model runs once for each batch, and every window starts from the states before its first layer.
Loading is not in it: both models are in memory on all sides. Norm and head run at label positions only, on all sides.

Batch by batch, the sides run in turn. Each runs on the same batch, so that a slow minute meets all of them; what counts is the
ratio of their CPU seconds in all. The `swapped` loop takes the same time for every window, so it runs every few windows, and its time
is scaled up. The ratios of the counts are what the figures would be if time were only layer applications and heads.

The pairs: the laboratory's; and SmolLM2-135M (fetched once) with itself plus noise, a made-up tuned model whose losses differ enough to
compare. Dolly records from the folder RAYSWEEP_REAL_DATA; without it, the laboratory alone.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import laboratory, machine
from torch import nn
from torch.nn.functional import cross_entropy

from raysweep.data.batches import labelled_positions, make_batches, pad
from raysweep.data.examples import Example, load_examples
from raysweep.fetching import fetch
from raysweep.models.adapter import Adapter
from raysweep.models.checkpoint import describe
from raysweep.models.loading import load_model, load_tokenizer
from raysweep.studies.substitution import Pair, Work, sweep_losses
from raysweep.studies.windows import UNTOUCHED, Window, windows_of_widths

WIDTHS = ((5,), (1, 5, 10))
BATCH_TOKENS = 1024
SAMPLED = {"laboratory": 3, "SmolLM2-135M": 9}  # the swapped loop runs every so many windows
NOISE = 0.1  # of a weight's standard deviation
SAME = 1e-5  # nats


def published(records: int) -> tuple[Pair, list[Example]]:
    """SmolLM2 and itself plus noise, float32, and the first Dolly records."""
    fetch("smollm2", progress=print)
    source = describe("lab://smollm2")
    base, tuned = (load_model(source, dtype="float32") for _ in range(2))
    torch.manual_seed(0)
    for weight in tuned.model.layers.parameters():
        if weight.ndim == 2:
            weight.data += NOISE * weight.std() * torch.randn_like(weight)
    path = Path(os.environ["RAYSWEEP_REAL_DATA"]) / "dolly_test.jsonl"
    examples = load_examples(str(path), "dolly", load_tokenizer(source), limit=records, max_tokens=512).examples
    return Pair(Adapter(base), Adapter(tuned)), examples


def loss_of(model: Any, hidden: torch.Tensor, examples: Sequence[Example], *, normed: bool = False) -> np.ndarray:
    """Mean loss of each example's response tokens from the last layer's states (already `normed`, or not)."""
    rows, cols, targets = map(torch.from_numpy, labelled_positions(examples))
    chosen = hidden[rows, cols]
    logits = model.lm_head(chosen if normed else model.model.norm(chosen))
    nll = cross_entropy(logits, targets, reduction="none").double()
    return (torch.zeros(len(examples), dtype=torch.float64).index_add_(0, rows, nll) / torch.bincount(rows)).numpy()


@contextmanager
def replaced(layers: nn.ModuleList, base: nn.ModuleList, window: Window) -> Iterator[None]:
    """The base's layers in the window's place."""
    own = list(layers)
    for layer in range(window.start, window.stop):
        layers[layer] = base[layer]
    try:
        yield
    finally:
        for layer in range(window.start, window.stop):
            layers[layer] = own[layer]


@torch.no_grad()
def swapped(pair: Pair, examples: Sequence[Example], tokens: torch.Tensor, windows: Sequence[Window]) -> np.ndarray:
    """Losses [windows, examples]: one full forward for each window."""
    base, tuned = pair.base.model, pair.tuned.model
    losses = []
    for window in windows:
        with replaced(tuned.model.layers, base.model.layers, window):
            hidden = tuned.model(input_ids=tokens, use_cache=False).last_hidden_state
            losses.append(loss_of(tuned, hidden, examples, normed=True))
    return np.stack(losses)


@torch.no_grad()
def cached(pair: Pair, examples: Sequence[Example], tokens: torch.Tensor, windows: Sequence[Window]) -> np.ndarray:
    """Losses [windows, examples]: one forward of the tuned model, then each window from its first layer on."""
    base, tuned = pair.base.model, pair.tuned.model
    entering: list[torch.Tensor] = []
    calls: list[dict[str, Any]] = []

    def keep(layer: nn.Module, args: tuple[torch.Tensor], kwargs: dict[str, Any]) -> None:
        entering.append(args[0])
        calls.append(kwargs)

    hooks = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in tuned.model.layers]
    untouched = tuned.model(input_ids=tokens, use_cache=False).last_hidden_state
    for hook in hooks:
        hook.remove()
    losses = []
    for window in windows:
        if window == UNTOUCHED:
            losses.append(loss_of(tuned, untouched, examples, normed=True))
            continue
        hidden = entering[window.start]
        for layer in range(window.start, len(calls)):
            block = (base if layer < window.stop else tuned).model.layers[layer]
            hidden = block(hidden, **calls[layer])
        losses.append(loss_of(tuned, hidden, examples))
    return np.stack(losses)


class Clock:
    """CPU and wall seconds of each side, in all."""

    def __init__(self) -> None:
        self.cpu: dict[str, float] = defaultdict(float)
        self.wall: dict[str, float] = defaultdict(float)

    def run(self, side: str, once: Callable[[], np.ndarray], scale: float = 1.0) -> np.ndarray:
        """Run one side, its time taken `scale` times."""
        cpu, wall = time.process_time(), time.perf_counter()
        result = once()
        self.cpu[side] += scale * (time.process_time() - cpu)
        self.wall[side] += scale * (time.perf_counter() - wall)
        return result


def compare(name: str, pair: Pair, examples: Sequence[Example], widths: Sequence[int], rounds: int) -> None:
    """Print the ratios for windows of these widths."""
    windows = windows_of_widths(pair.n_layers, widths)
    lengths = [example.length - 1 for example in examples]
    groups = make_batches(lengths, BATCH_TOKENS, [pair.tuned.table(length) for length in lengths])
    some = windows[:: SAMPLED[name]]
    clock, work, apart, tokens_of_loops, labels = Clock(), Work(), 0.0, 0, 0
    for at in range(rounds * len(groups)):
        chosen = [examples[i] for i in groups[at % len(groups)]]
        tokens = torch.from_numpy(pad([example.tokens[:-1] for example in chosen]))
        tokens_of_loops += tokens.numel()
        labels += sum(example.n_tokens for example in chosen)
        sides = {
            "ours": lambda: sweep_losses(pair, chosen, windows, batch_tokens=BATCH_TOKENS, work=work),  # noqa: B023
            "cached": lambda: cached(pair, chosen, tokens, windows),  # noqa: B023
            "swapped": lambda: swapped(pair, chosen, tokens, some),  # noqa: B023
        }
        found = {}
        for turn in range(len(sides)):  # each first in turn
            side = list(sides)[(turn + at) % len(sides)]
            found[side] = clock.run(side, sides[side], len(windows) / len(some) if side == "swapped" else 1.0)
        both_loops = (found["cached"] - found["ours"], found["swapped"] - found["ours"][:: SAMPLED[name]])
        apart = float(np.max([apart, *(np.abs(each).max() for each in both_loops)]))  # NaN stays NaN
    layers = pair.n_layers
    applied = {
        "ours": work.token_applications,
        "cached": tokens_of_loops * (layers + sum(layers - w.start for w in windows if w != UNTOUCHED)),
        "swapped": tokens_of_loops * layers * len(windows),
    }
    a_layer = 2 * sum(weight.numel() for weight in pair.tuned.blocks[0].parameters())
    heads = labels * len(windows) * 2 * pair.tuned.model.lm_head.weight.numel()
    print(
        f"{name}, {len(examples)} examples in {len(groups)} batches, widths {', '.join(map(str, widths))}: {len(windows)} rows; "
        f"losses within {apart:.0e} ({'same' if apart <= SAME else 'NOT THE SAME'})"
    )
    for side in ("cached", "swapped"):
        counts = applied[side] / applied["ours"]
        both = (applied[side] * a_layer + heads) / (applied["ours"] * a_layer + heads)
        cpu, wall = (seconds[side] / seconds["ours"] for seconds in (clock.cpu, clock.wall))
        print(
            f"  {side} ÷ ours: CPU time {cpu:.2f}, wall {wall:.2f} (ours {clock.cpu['ours']:.1f} s of CPU); counts: layer "
            f"applications {counts:.2f}, with heads {both:.2f}; CPU time ÷ counts with heads {cpu / both:.2f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("laboratory", "SmolLM2-135M"))
    parser.add_argument("--records", type=int, default=2, help="Dolly records for SmolLM2")
    parser.add_argument("--rounds", type=int, default=1, help="rounds of the laboratory's; SmolLM2's has one")
    asked = parser.parse_args()
    print(f"one-pass sweep against loops on the same batches of at most {BATCH_TOKENS} tokens, float32; {machine()}")
    makes: dict[str, tuple[Callable[[], tuple[Pair, list[Example]]], int]] = {
        "laboratory": (laboratory, asked.rounds),
        "SmolLM2-135M": (lambda: published(asked.records), 1),
    }
    for name, (make, rounds) in makes.items():
        if asked.only not in (None, name):
            continue
        if name == "SmolLM2-135M" and "RAYSWEEP_REAL_DATA" not in os.environ:
            print(f"{name}: not run; set RAYSWEEP_REAL_DATA to a folder with dolly_test.jsonl")
            continue
        pair, examples = make()
        sweep_losses(pair, examples[:1], [UNTOUCHED], batch_tokens=BATCH_TOKENS)  # warm-up
        for widths in WIDTHS:
            compare(name, pair, examples, widths, rounds)


if __name__ == "__main__":
    main()
