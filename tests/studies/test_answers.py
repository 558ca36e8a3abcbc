"""Answers of many prompts at a time against plain decoding of each alone, and samples against the model's probabilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from test_generation import greedy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raysweep.data.examples import Example, load_examples
from raysweep.models.checkpoint import describe
from raysweep.models.loading import load_model, load_tokenizer
from raysweep.studies.answers import generate_answers

Draw = Callable[..., list[Example]]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_padded_batches_write_what_each_prompt_alone_makes_the_model_write(
    kind: str, tiny: Callable[..., PreTrainedModel], random_examples: Draw, tokenizer: PreTrainedTokenizerBase
) -> None:
    model, examples = tiny(kind, 3), random_examples(7)
    expected = [
        tokenizer.decode(greedy(model, e.tokens[: e.n_prompt].tolist(), 8), skip_special_tokens=True) for e in examples
    ]
    assert len(set(expected)) > 4
    for batch_tokens in (1, 60, 8192):
        assert generate_answers(model, tokenizer, examples, new_tokens=8, batch_tokens=batch_tokens) == expected


def test_a_text_ends_where_the_model_ends_it(
    tiny: Callable[..., PreTrainedModel], random_examples: Draw, tokenizer: PreTrainedTokenizerBase
) -> None:
    model, examples = tiny("llama", 2), random_examples(4)
    written = [greedy(model, e.tokens[: e.n_prompt].tolist(), 12) for e in examples]
    longest = max(written, key=len)
    stop = longest[3]
    model.generation_config.eos_token_id = [stop, 2]
    try:
        found = generate_answers(model, tokenizer, examples, new_tokens=12)
    finally:
        model.generation_config.eos_token_id = 2
    for text, tokens in zip(found, written, strict=True):
        ended = tokens[: tokens.index(stop)] if stop in tokens else tokens
        assert text == tokenizer.decode(ended, skip_special_tokens=True)


def test_samples_depend_on_seed_and_example_alone(
    tiny: Callable[..., PreTrainedModel], random_examples: Draw, tokenizer: PreTrainedTokenizerBase
) -> None:
    model, examples = tiny("llama", 2), random_examples(5)

    def sample(chosen: list[Example], seed: int = 0, batch_tokens: int = 8192) -> list[str]:
        return generate_answers(
            model, tokenizer, chosen, new_tokens=6, temperature=1.0, seed=seed, batch_tokens=batch_tokens
        )

    together = sample(examples)
    assert sample(examples, batch_tokens=1) == together
    assert sample(examples[::-1]) == together[::-1]
    assert sample(examples, seed=1) != together
    assert generate_answers(model, tokenizer, examples, new_tokens=6) != together
    assert len(set(sample([replace(examples[0], id=number) for number in range(6)]))) > 3


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.6)])
def test_a_first_token_is_drawn_with_the_models_probability(
    temperature: float, top_p: float, tiny: Callable[..., PreTrainedModel], random_examples: Draw
) -> None:
    model, example = tiny("llama", 2), random_examples(1)[0]

    class Ids:  # token ids as text, so that each can be told
        pad_token_id, eos_token_id = 0, 2

        def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
            return " ".join(map(str, tokens)) or "2"

    draws = [replace(example, id=number) for number in range(1500)]
    found = generate_answers(model, Ids(), draws, new_tokens=1, temperature=temperature, top_p=top_p)  # type: ignore[arg-type]
    with torch.no_grad():
        prompt = torch.from_numpy(example.tokens[: example.n_prompt])[None]
        p = (model(prompt).logits[0, -1].double() / temperature).softmax(-1).numpy()
    order = np.argsort(-p)
    kept = order[: int(np.searchsorted(np.cumsum(p[order]), top_p)) + 1] if top_p < 1 else order
    counts = np.bincount(np.array(found, dtype=int), minlength=len(p))
    assert counts[kept].sum() == 1500, "nothing outside the likeliest is drawn"
    expected = p[kept] / p[kept].sum() * 1500
    common = expected >= 5
    seen, wanted = counts[kept][common], expected[common]
    rest = 1500 - seen.sum(), 1500 - wanted.sum()
    if rest[1] > 5:
        seen, wanted = np.append(seen, rest[0]), np.append(wanted, rest[1])
    assert len(wanted) > 3
    assert stats.chisquare(seen, wanted * seen.sum() / wanted.sum()).pvalue > 1e-3


def test_the_laboratorys_model_answers_its_sums() -> None:
    model, tokenizer = load_model(describe("lab://tiny/sums")), load_tokenizer(describe("lab://tiny"))
    examples = load_examples("lab://sums/test", "gsm8k", tokenizer, limit=4).examples
    found = generate_answers(model, tokenizer, examples, new_tokens=48)
    assert sum(text.split("\n")[0] == e.response.split("\n")[0] for text, e in zip(found, examples, strict=True)) >= 3
