"""Text of many examples side by side against one example at a time, and under many changes at once against one by one.

Many examples: 24 of the laboratory (128 take minutes), 26 windows (widths of 5, and some of 10) and 16 tokens. The other side is one example at
a time, unpadded, under as many windows at once as fit: each example is a call of its own. `generation.py 128` takes as many
examples. Seconds are CPU time.

Many changes:

Same pair, same examples, same windows, one run, the two sides in turn; every text is compared. The limit is the reading
of weights: a token under any number of changes needs two versions of a layer, where one after the other needs a layer
for each change. The laboratory's model is small, so that most of what it takes is calls; the wide pair (random weights,
the second with noise on each) is bound by its weights, as large models on a GPU are.
"""

from __future__ import annotations

import copy
import sys
import time

import torch
from common import in_turn, laboratory, machine, spread

from raysweep.data.examples import Example
from raysweep.models.adapter import Adapter
from raysweep.models.checkpoint import describe
from raysweep.models.loading import load_tokenizer
from raysweep.studies.generation import generate_text
from raysweep.studies.substitution import Pair
from raysweep.studies.windows import Window, windows_of_widths

ROUNDS = 5
WIDTH = 5
TOKENS = 24
EXAMPLES, WINDOWS, FEW_TOKENS, PAIRS = 24, 26, 16, 2


def wide(width: int = 512, layers: int = 12) -> Pair:
    """A Llama of 10 MB a layer in float32, more in all than processors cache, and one a little apart from it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    vocabulary = len(load_tokenizer(describe("lab://tiny")))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=8,
        initializer_range=0.05,
        eos_token_id=None,
    )
    base = LlamaForCausalLM(config)
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for weight in tuned.parameters():
            weight += 0.2 * weight.std() * torch.randn_like(weight)
    return Pair(Adapter(base), Adapter(tuned))


def measure(name: str, pair: Pair, examples: list[Example]) -> None:
    tokenizer = load_tokenizer(describe("lab://tiny"))
    windows = [w for w in windows_of_widths(pair.n_layers, [WIDTH]) if w != Window(0, pair.n_layers)]
    texts: dict[str, list[list[str]]] = {}

    def together() -> None:
        texts["together"] = generate_text(pair, tokenizer, examples, windows, new_tokens=TOKENS)

    def in_a_row() -> None:
        texts["in a row"] = [
            generate_text(pair, tokenizer, examples, [window], new_tokens=TOKENS)[0] for window in windows
        ]

    ours, theirs = in_turn(ROUNDS, together, in_a_row)
    alike = [a == b for one, other in zip(*texts.values(), strict=True) for a, b in zip(one, other, strict=True)]
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    print(
        f"  {name}: one after the other ÷ together {spread(ratios)}; {sum(alike)} of {len(alike)} texts alike; "
        f"limit {len(windows) / 2:.1f}"
    )


def many(pair: Pair, examples: list[Example]) -> None:
    """Print the time of one example at a time ÷ the time of all, with the texts that are equal."""
    tokenizer = load_tokenizer(describe("lab://tiny"))
    windows = windows_of_widths(pair.n_layers, [5, 10])[:WINDOWS]
    ratios, same = [], 0
    for _ in range(PAIRS):
        started = time.process_time()
        ours = generate_text(pair, tokenizer, examples, windows, new_tokens=FEW_TOKENS)
        between = time.process_time()
        single = [generate_text(pair, tokenizer, [example], windows, new_tokens=FEW_TOKENS) for example in examples]
        ratios.append((time.process_time() - between) / (between - started))
        theirs = [[text for (text,) in of_window] for of_window in zip(*single, strict=True)]
        same = sum(a == b for one, other in zip(ours, theirs, strict=True) for a, b in zip(one, other, strict=True))
    print(
        f"  {len(examples)} examples, {len(windows)} windows, {FEW_TOKENS} tokens: one example at a time ÷ side by side "
        f"{spread(ratios)}; {same} of {len(examples) * len(windows)} texts equal"
    )


def main() -> None:
    many(*laboratory(limit=int(sys.argv[1]) if len(sys.argv) > 1 else EXAMPLES))
    pair, examples = laboratory(limit=2)
    print(f"text of {TOKENS} tokens under each window of width {WIDTH}, and none; {machine()}")
    measure(f"laboratory, {pair.n_layers} layers", pair, examples)
    pair = wide()
    measure(f"wide, {pair.n_layers} layers", pair, examples[:1])


if __name__ == "__main__":
    main()
