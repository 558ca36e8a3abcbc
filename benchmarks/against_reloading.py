"""The one-pass sweep against reloading: for every window both checkpoints are loaded, the window's parameters copied,
and the test set run one example at a time; once with losses only, once also generating 32 tokens an example.

Same pair, same windows, same losses, one run. The reloading side is in one process (starting a new one for every window, as is
often done, would add seconds a window). The sweep's side loads both checkpoints too.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from common import machine
from torch.nn.functional import cross_entropy

from raysweep.data.examples import Example, load_examples
from raysweep.models.adapter import Adapter
from raysweep.models.checkpoint import Checkpoint, describe
from raysweep.models.loading import load_model, load_tokenizer
from raysweep.studies.substitution import Pair, sweep_losses
from raysweep.studies.windows import Window, windows_of_widths

EXAMPLES = 32
NEW_TOKENS = 32
WIDTH = 5


def one_pass(base: Checkpoint, tuned: Checkpoint, examples: list[Example], windows: list[Window]) -> np.ndarray:
    pair = Pair(Adapter(load_model(base)), Adapter(load_model(tuned)))
    return sweep_losses(pair, examples, windows, batch_tokens=1024)


@torch.no_grad()
def reloading(
    base: Checkpoint, tuned: Checkpoint, examples: list[Example], window: Window, generate: bool
) -> tuple[np.ndarray, float]:
    """Losses of one window, and the seconds that generation took."""
    donor, model = load_model(base), load_model(tuned)
    for layer in range(window.start, window.stop):
        model.model.layers[layer].load_state_dict(donor.model.layers[layer].state_dict())
    losses, generating = [], 0.0
    for example in examples:
        ids = torch.from_numpy(example.tokens)[None]
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
        predicted = logits[example.n_prompt - 1 : -1]
        losses.append(
            float(cross_entropy(predicted, torch.from_numpy(example.targets), reduction="none").double().mean())
        )
        if generate:
            started = time.perf_counter()
            prompt = ids[:, : example.n_prompt]
            model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                min_new_tokens=NEW_TOKENS,
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                pad_token_id=0,
            )
            generating += time.perf_counter() - started
    return np.array(losses), generating


def main() -> None:
    base, tuned = describe("lab://tiny"), describe("lab://tiny/sums")
    examples = load_examples("lab://sums/test", "gsm8k", load_tokenizer(base), limit=EXAMPLES).examples
    windows = windows_of_widths(base.n_layers, [WIDTH])
    one_pass(base, tuned, examples, windows)  # warm-up
    sweep_s = slow_s = generating_s = 0.0
    swept = np.empty(0)
    losses = []
    for index, window in enumerate(windows):
        if index % 4 == 0:  # the fast side again and again, so that a drift of the machine meets both
            started = time.perf_counter()
            swept = one_pass(base, tuned, examples, windows)
            sweep_s += time.perf_counter() - started
        started = time.perf_counter()
        row, generating = reloading(base, tuned, examples, window, generate=True)
        slow_s += time.perf_counter() - started
        generating_s += generating
        losses.append(row)
    sweep_s /= -(-len(windows) // 4)
    apart = np.abs(np.array(losses) - swept).max()
    print(f"one pass against reloading, {len(windows)} rows of width {WIDTH}, {EXAMPLES} examples; {machine()}")
    print(f"  one pass, loading included              {sweep_s:8.2f} s")
    print(
        f"  reloading, losses only                  {slow_s - generating_s:8.2f} s   {(slow_s - generating_s) / sweep_s:6.1f} ×"
    )
    print(f"  reloading, and {NEW_TOKENS} tokens generated each {slow_s:9.2f} s   {slow_s / sweep_s:6.1f} ×")
    print(f"  losses apart by at most {apart:.1e}")


if __name__ == "__main__":
    main()
