"""Component removal on the laboratory's models: what it leaves, what it costs in loss at critical layers and elsewhere, speed.

Figures: the largest inner product that `project` leaves (limit 1e-6); texts with nothing removed, all to be identical; the
change of the reference loss at change-point layers less that at the others, paired over examples, with a 95 % interval; and
the study's time beside whole forwards with the hook, one example and removal at a time, with how far the losses are apart.

    python benchmarks/removal.py
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from common import in_turn, laboratory, machine, spread
from transformers import PreTrainedTokenizerBase

from raysweep.data.examples import Example
from raysweep.models.adapter import Adapter
from raysweep.models.checkpoint import describe
from raysweep.models.loading import load_tokenizer
from raysweep.models.surgery import Mode, removed
from raysweep.numerics.resampling import mean_interval
from raysweep.studies.critical import critical_layers
from raysweep.studies.generation import greedy_text
from raysweep.studies.removal import Removal
from raysweep.studies.removal_effects import Effects, directions, mean_kept, removal_effects

SETS = (("sums", "gsm8k"), ("facts", "boolq"))
EXAMPLES = 24
BATCH_TOKENS = 1024
WAYS: tuple[tuple[Mode, bool], ...] = (("project", False), ("project", True), ("paper", False))
REMOVALS = [Removal(tuple(range(k)), mode, "last", keep) for mode, keep in WAYS for k in (1, 3, 10)]


def main() -> None:
    """Print the figures."""
    print(machine())
    tokenizer = load_tokenizer(describe("lab://tiny"))
    for name, form in SETS:
        pair, examples = laboratory(name, form, EXAMPLES)
        critical = critical_layers(pair.base, examples, resamples=1).layers
        print(f"\n{name}: {len(examples)} examples, change-point layers {critical} of {pair.n_layers}")
        for role, adapter in (("base", pair.base), ("tuned", pair.tuned)):
            by_layer = [
                removal_effects(adapter, examples, layer, REMOVALS, batch_tokens=BATCH_TOKENS)[0]
                for layer in range(adapter.n_layers)
            ]
            _left(by_layer, role)
            _contrast(by_layer, critical, role)
        _unchanged(pair.base, tokenizer, examples[:4])
        if name == SETS[0][0]:
            _speed(pair.base, examples)


def _left(by_layer: Sequence[Effects], role: str) -> None:
    project = [row for row, removal in enumerate(REMOVALS) if removal.mode == "project"]
    largest = max(float(effects.inner_product[project].max()) for effects in by_layer)
    print(f"{role}: largest inner product after project, relative to the state {largest:.1e} (limit 1e-6)")


def _contrast(by_layer: Sequence[Effects], critical: Sequence[int], role: str) -> None:
    loss = by_layer[0].loss.mean()
    print(f"{role}: loss {loss:.3f}; its mean change at change points, elsewhere, and the paired difference (nats)")
    change_LRN = np.stack([effects.removed_loss - effects.loss for effects in by_layer])
    others = [layer for layer in range(len(by_layer)) if layer not in critical]
    for row, removal in enumerate(REMOVALS):
        here_N, there_N = (change_LRN[layers, row].mean(axis=0) for layers in (list(critical), others))
        low, high = mean_interval(here_N - there_N)
        told = "more" if low > 0 else "less" if high < 0 else "not told apart"
        mean = "mean kept" if removal.keep_mean else "mean removed"
        print(
            f"  {removal.components:>6} {removal.mode:<7} {mean:<12} {here_N.mean():+7.3f} {there_N.mean():+7.3f} "
            f"{(here_N - there_N).mean():+7.3f} [{low:+.3f}, {high:+.3f}] {told}; by layer, most at "
            f"{int(change_LRN[:, row].mean(axis=1).argmax())}"
        )


def _unchanged(adapter: Adapter, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> None:
    def write(example: Example) -> str:
        return greedy_text(adapter.model, adapter.device, tokenizer, example, 24)

    width = adapter.model.config.hidden_size
    same = 0
    for example in examples:
        before = write(example)
        with removed(adapter, 8, torch.empty(0, width), positions="all"):
            same += write(example) == before
    print(f"texts that are identical with no component removed: {same} of {len(examples)}")


def _speed(adapter: Adapter, examples: Sequence[Example], layer: int = 12) -> None:
    asked = [removal for removal in REMOVALS if not removal.keep_mean]
    effects, stored_ND = removal_effects(adapter, examples, layer, asked, batch_tokens=BATCH_TOKENS)

    @torch.no_grad()
    def one_by_one() -> np.ndarray:
        losses_RN = np.empty((len(asked), len(examples)))
        for row, removal in enumerate(asked):
            for index, example in enumerate(examples):
                tokens = torch.from_numpy(example.tokens)[None]
                stored_D = stored_ND[index] if removal.mode == "paper" else None
                at, mean_D = slice(example.n_prompt - 1, None), mean_kept(effects.components, removal)
                basis_KD = directions(effects.components, removal)
                with removed(
                    adapter, layer, basis_KD, mode=removal.mode, positions=at, stored_D=stored_D, mean_D=mean_D
                ):
                    logits = adapter.model(input_ids=tokens[:, :-1], use_cache=False).logits[0, example.n_prompt - 1 :]
                losses_RN[row, index] = torch.nn.functional.cross_entropy(
                    logits.double(), tokens[0, example.n_prompt :]
                )
        return losses_RN

    apart = np.abs(one_by_one() - effects.removed_loss).max()
    ours, plain = in_turn(
        3, lambda: removal_effects(adapter, examples, layer, asked, batch_tokens=BATCH_TOKENS), one_by_one
    )
    ratios = [b / a for a, b in zip(ours, plain, strict=True)]
    print(
        f"{len(asked)} removals at layer {layer}: whole forwards ÷ the study, {spread(ratios)}, the study {spread(ours)} s"
    )
    print(f"losses of both apart by at most {apart:.1e} nats (limit 1e-5)")


if __name__ == "__main__":
    main()
