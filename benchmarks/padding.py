"""How much of a sweep's work is padding on real records, in how many batches and block calls: full batches against ours.

Records come from the folder that RAYSWEEP_REAL_DATA names (dolly_test.jsonl, gsm8k_test.jsonl, openbookqa_test.json),
tokens from SmolLM2's tokenizer. Every chunk of 32 records is put into batches of at most 8,192 tokens (a GPU's budget) and
1,024 (a CPU's). `full`: longest first, each batch as full as the budget allows. Nothing is timed; the figures are counts.

- padded ÷ real: tokens with padding ÷ tokens of the records, over all chunks.
- batches: of a chunk, the mean and the most.
- calls: block calls of a chunk in one sweep with windows of width 5. A call takes as many states of a batch as the budget
  holds.
- filled: real tokens in a call ÷ the budget; work without padding.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from raysweep.data.batches import make_batches
from raysweep.data.examples import load_examples
from raysweep.fetching import fetch
from raysweep.models.checkpoint import describe
from raysweep.models.loading import load_tokenizer
from raysweep.studies.schedule import schedule
from raysweep.studies.windows import windows_of_widths

CHUNK, WIDTH = 32, 5
SETS = {"dolly": "dolly_test.jsonl", "gsm8k": "gsm8k_test.jsonl", "alpaca": "openbookqa_test.json"}  # by format


def full_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Longest first, and a new batch where the next example does not fit."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > budget:
            batches.append([])
        batches[-1].append(index)
    return batches


def main() -> None:
    folder = os.environ.get("RAYSWEEP_REAL_DATA")
    if not folder:
        sys.exit(f"error: RAYSWEEP_REAL_DATA is not set. Set it to a folder with {', '.join(SETS.values())}")
    fetch("smollm2", progress=print)
    base = describe("lab://smollm2")
    tokenizer, windows = load_tokenizer(base), windows_of_widths(base.n_layers, [WIDTH])
    plan = schedule(base.n_layers, windows)
    branches = [len(group.moves) for step in plan.steps for group in step.groups]
    print(f"{base.n_layers} layers, {len(windows)} windows (two of them empty and full), chunks of {CHUNK} records")
    print("budget  records           rule  padded ÷ real  batches (most)  calls  filled")
    for format, file in SETS.items():
        examples = load_examples(str(Path(folder) / file), format, tokenizer).examples
        lengths = [example.length - 1 for example in examples]  # the last token predicts nothing
        chunks = [lengths[first : first + CHUNK] for first in range(0, len(lengths), CHUNK)]
        rules: dict[str, Callable[[Sequence[int], int], list[list[int]]]] = {"full": full_batches, "ours": make_batches}
        for budget in (8192, 1024):
            for name, rule in rules.items():
                tokens = [[len(b) * max(chunk[i] for i in b) for b in rule(chunk, budget)] for chunk in chunks]
                calls = sum(-(-n // max(1, budget // size)) for sizes in tokens for size in sizes for n in branches)
                print(
                    f"{budget:>6}  {file:<20} {name}  {sum(map(sum, tokens)) / sum(lengths):>13.3f}"
                    f"  {sum(map(len, tokens)) / len(chunks):>7.2f} ({max(map(len, tokens)):>4})"
                    f"  {calls / len(chunks):>5.0f}  {sum(lengths) * plan.applications / (calls * budget):>6.2f}"
                )


if __name__ == "__main__":
    main()
