"""The one-pass sweep against reloading: for every window both checkpoints are loaded, the window's parameters copied,
and the test set run one example at a time. Losses of all examples; then at most 32 tokens of text for a few, which both sides
write, and which are compared.

Same pair, same windows, same losses and texts, one run, the two sides in turn. The reloading side is in one process (starting a new one for every window, as is
often done, would add seconds a window). The sweep's side loads both checkpoints too.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from common import machine
from torch.nn.functional import cross_entropy

from raysweep.data.examples import Example, load_examples
from raysweep.models.adapter import Adapter
from raysweep.models.checkpoint import Checkpoint, describe
from raysweep.models.loading import load_model, load_tokenizer
from raysweep.studies.generation import generate_text
from raysweep.studies.substitution import Pair, sweep_losses
from raysweep.studies.windows import Window, windows_of_widths

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EXAMPLES = 32
WRITTEN = 8  # examples that text is written for
NEW_TOKENS = 32
WIDTH = 5


def load(base: Checkpoint, tuned: Checkpoint) -> Pair:
    return Pair(Adapter(load_model(base)), Adapter(load_model(tuned)))


@torch.no_grad()
def reloading(
    base: Checkpoint, tuned: Checkpoint, tokenizer: PreTrainedTokenizerBase, examples: list[Example], window: Window
) -> tuple[np.ndarray, list[str], float]:
    """Losses of one window, texts of the first examples, and the seconds that writing them took."""
    donor, model = load_model(base), load_model(tuned)
    for layer in range(window.start, window.stop):
        model.model.layers[layer].load_state_dict(donor.model.layers[layer].state_dict())
    losses: list[float] = []
    texts, writing = [], 0.0
    for number, example in enumerate(examples):
        ids = torch.from_numpy(example.tokens)[None]
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
        predicted = logits[example.n_prompt - 1 : -1]
        losses.append(
            float(cross_entropy(predicted, torch.from_numpy(example.targets), reduction="none").double().mean())
        )
        if number < WRITTEN:
            started = time.perf_counter()
            prompt = ids[:, : example.n_prompt]
            out = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                pad_token_id=0,
            )
            texts.append(str(tokenizer.decode(out[0, example.n_prompt :], skip_special_tokens=True)))
            writing += time.perf_counter() - started
    return np.array(losses), texts, writing


def main() -> None:
    base, tuned = describe("lab://tiny"), describe("lab://tiny/sums")
    tokenizer = load_tokenizer(base)
    examples = load_examples("lab://sums/test", "gsm8k", tokenizer, limit=EXAMPLES).examples
    windows = windows_of_widths(base.n_layers, [WIDTH])
    sweep_losses(load(base, tuned), examples, windows, batch_tokens=1024)  # warm-up
    sweeping, writing = list[float](), list[float]()
    slow_s = slow_writing_s = 0.0
    losses, texts = [], []
    for index, window in enumerate(windows):
        if index % 4 == 0:  # the fast side again and again, so that a drift of the machine meets both
            started = time.perf_counter()
            pair = load(base, tuned)
            swept = sweep_losses(pair, examples, windows, batch_tokens=1024)
            sweeping.append(time.perf_counter() - started)
            started = time.perf_counter()
            written = generate_text(pair, tokenizer, examples[:WRITTEN], windows, new_tokens=NEW_TOKENS)
            writing.append(time.perf_counter() - started)
        started = time.perf_counter()
        row, told, of_it = reloading(base, tuned, tokenizer, examples, window)
        slow_s += time.perf_counter() - started - of_it
        slow_writing_s += of_it
        losses.append(row)
        texts.append(told)
    sweep_s, writing_s = statistics.mean(sweeping), statistics.mean(writing)
    apart = np.abs(np.array(losses) - swept).max()
    alike = [a == b for one, other in zip(texts, written, strict=True) for a, b in zip(one, other, strict=True)]
    print(f"one pass against reloading, {len(windows)} rows of width {WIDTH}; {machine()}")
    print(
        f"  losses of {EXAMPLES} examples, loading included: {sweep_s:.2f} and {slow_s:.2f} s, {slow_s / sweep_s:.1f} ×"
    )
    print(f"  apart by at most {apart:.1e}")
    print(
        f"  text of {NEW_TOKENS} tokens for {WRITTEN} of them: {writing_s:.2f} and {slow_writing_s:.2f} s, "
        f"{slow_writing_s / writing_s:.1f} ×; {sum(alike)} of {len(alike)} alike"
    )
    both = (slow_s + slow_writing_s) / (sweep_s + writing_s)
    print(f"  both: {both:.1f} ×")


if __name__ == "__main__":
    main()
