"""How near a sweep on SmolLM2-135M comes to the work that it cannot avoid, on real records, in CPU time.

The limit is Σ real tokens × layer applications × the best layer time for texts of that length, plus ended states × labels ×
the best head time. A layer's best time is that of one block call filled with texts of one length, so without padding. A
head's best time is that of norm, head and cross entropy at the best of several sizes. Both are timed before and after the
sweep, and the lower counts.

Needs RAYSWEEP_REAL_DATA, a folder with dolly_test.jsonl. The model is fetched into the user's cache. Arguments: the number of
records (64), every how manieth window of width 5 is swept (1), and the tokens of a batch (1,024).
"""

from __future__ import annotations

import copy
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from common import machine
from torch.nn.functional import cross_entropy

from raysweep.data.examples import load_examples
from raysweep.fetching import fetch
from raysweep.models.adapter import Adapter, apply_block
from raysweep.models.checkpoint import describe
from raysweep.models.loading import load_model, load_tokenizer
from raysweep.studies.schedule import schedule
from raysweep.studies.substitution import Pair, Work, sweep_losses
from raysweep.studies.windows import windows_of_widths

TRIES, STEP = 3, 32
HEAD_ROWS = (170, 340, 680)


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of one run."""
    started = time.process_time()
    work()
    return time.process_time() - started


def best(work: Callable[[], object]) -> float:
    """The least CPU seconds of some runs."""
    return min(cpu_seconds(work) for _ in range(TRIES))


@torch.no_grad()
def layer_time(adapter: Adapter, length: int, batch_tokens: int) -> float:
    """Seconds per token of a block call on texts of this length."""
    tokens = torch.randint(100, 1000, (max(1, batch_tokens // length), length))
    recording = adapter.record(tokens)
    block, call = adapter.blocks[0], recording.calls[0]
    return best(lambda: apply_block(block, recording.states, call, {})) / tokens.numel()


@torch.no_grad()
def head_time(adapter: Adapter) -> float:
    """Seconds per label of norm, head and cross entropy."""
    found = []
    for rows in HEAD_ROWS:
        states, targets = torch.randn(rows, adapter.model.config.hidden_size), torch.randint(0, 1000, (rows,))
        found.append(
            best(lambda s=states, t=targets: cross_entropy(adapter.logits(s).float(), t, reduction="none")) / rows
        )
    return min(found)


def noisy(model: torch.nn.Module) -> torch.nn.Module:
    """A tuned model: noise on what each layer adds to the residual stream."""
    tuned = copy.deepcopy(model)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight += 0.3 * weight.std() * torch.randn_like(weight)
    return tuned


def main() -> None:
    """Print the ratio, and what the limit is made of."""
    records, every, batch_tokens = (*map(int, sys.argv[1:]), *(64, 1, 1024)[len(sys.argv) - 1 :])
    fetch("smollm2", progress=print)
    checkpoint = describe("lab://smollm2")
    model = load_model(checkpoint)
    pair = Pair(Adapter(model), Adapter(noisy(model)))
    path = Path(os.environ["RAYSWEEP_REAL_DATA"]) / "dolly_test.jsonl"
    examples = load_examples(str(path), "dolly", load_tokenizer(checkpoint), limit=records).examples
    windows = windows_of_widths(pair.n_layers, [5])[::every]
    plan = schedule(pair.n_layers, windows, pair.same)

    lengths = Counter(-(-(example.length - 1) // STEP) * STEP for example in examples)

    def limits() -> tuple[dict[int, float], float]:
        return {n: layer_time(pair.tuned, n, max(n, batch_tokens)) for n in lengths}, head_time(pair.tuned)

    before, work = limits(), Work()
    taken = cpu_seconds(lambda: sweep_losses(pair, examples, windows, batch_tokens=batch_tokens, work=work))
    after = limits()
    layer = {n: min(before[0][n], after[0][n]) for n in lengths}
    real = sum(example.length - 1 for example in examples)
    labels = sum(example.n_tokens for example in examples)
    layers = plan.applications * sum((e.length - 1) * layer[-(-(e.length - 1) // STEP) * STEP] for e in examples)
    heads = len(plan.ends) * labels * min(before[1], after[1])
    print(f"{len(examples)} Dolly records, {len(windows)} windows of width 5, {batch_tokens} tokens; {machine()}")
    print(
        f"  sweep ÷ limit: {taken / (layers + heads):.3f} ({taken:.1f} s of CPU time ÷ ({layers:.1f} s layers + {heads:.1f} s heads))"
    )
    print(f"  padded ÷ real tokens: {work.token_applications / plan.applications / real:.3f}")


if __name__ == "__main__":
    main()
