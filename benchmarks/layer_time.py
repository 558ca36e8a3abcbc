"""Seconds per layer application of the one-pass sweep, over those of the model's own plain batched forward.

Same tuned model, same examples, same batches, one run, the two sides in turn. Both sides run everything they need: the
sweep its recordings, stacking, norm, head and losses; the plain forward embedding, layers, norm, head and losses at
the same labelled positions. The limit is 1: a sweep cannot be faster than the layer applications it needs.
"""

from __future__ import annotations

import numpy as np
import torch
from common import in_turn, laboratory, machine, spread
from torch.nn.functional import cross_entropy

from raysweep.data.batches import labelled_positions, make_batches, pad
from raysweep.studies.substitution import Work, sweep_losses
from raysweep.studies.windows import UNTOUCHED, windows_of_widths

ROUNDS = 5
WIDTH = 5


def main() -> None:
    pair, examples = laboratory()
    windows = windows_of_widths(pair.n_layers, [WIDTH])
    print(f"one-pass sweep against the plain batched forward, width {WIDTH}, {pair.n_layers} layers; {machine()}")
    for budget in (1024, 8192):
        batches = make_batches([e.length for e in examples], budget)
        plain_losses = torch.zeros(len(examples), dtype=torch.float64)

        @torch.no_grad()
        def plain(batches: list[list[int]] = batches, losses: torch.Tensor = plain_losses) -> None:
            model = pair.tuned.model
            for indices in batches:
                chosen = [examples[i] for i in indices]
                hidden = model.model(input_ids=torch.from_numpy(pad([e.tokens for e in chosen])), use_cache=False)
                rows, cols, targets = map(torch.from_numpy, labelled_positions(chosen))
                logits = model.lm_head(hidden.last_hidden_state[rows, cols])
                nll = cross_entropy(logits, targets, reduction="none").double()
                losses[indices] = torch.zeros(len(chosen), dtype=torch.float64).index_add_(
                    0, rows, nll
                ) / torch.bincount(rows)

        work, swept = Work(), dict[str, np.ndarray]()

        def sweep(budget: int = budget, work: Work = work, swept: dict[str, np.ndarray] = swept) -> None:
            work.__init__()
            swept["losses"] = sweep_losses(pair, examples, windows, batch_tokens=budget, work=work)

        sweep_s, plain_s = in_turn(ROUNDS, sweep, plain)
        tokens = sum(len(b) * max(examples[i].length for i in b) for b in batches)
        plain_rate = [s / (pair.n_layers * tokens) for s in plain_s]
        ratios = [s / work.token_applications / p for s, p in zip(sweep_s, plain_rate, strict=True)]
        apart = abs(swept["losses"][windows.index(UNTOUCHED)] - plain_losses.numpy()).max()
        print(
            f"  batches of {budget:>5} tokens: ratio {spread(ratios)}; "
            f"{work.applications} applications on batches; losses of the untouched model apart by {apart:.1e}"
        )


if __name__ == "__main__":
    main()
