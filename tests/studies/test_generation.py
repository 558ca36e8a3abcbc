"""Text under every kind of change against plain greedy decoding by a copy whose weights are overwritten by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from architectures import put_back
from test_interventions import plainly
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from raysweep.data.examples import Example, load_examples
from raysweep.models.adapter import Adapter
from raysweep.models.checkpoint import describe
from raysweep.models.loading import load_model, load_tokenizer
from raysweep.studies.generation import generate_text
from raysweep.studies.interventions import Change, Intervention
from raysweep.studies.padded_prompts import prompt_batches
from raysweep.studies.substitution import Pair
from raysweep.studies.windows import Window

Pairs = Callable[..., tuple[PreTrainedModel, PreTrainedModel]]
Draw = Callable[..., list[Example]]


def greedy(model: PreTrainedModel, prompt: list[int], n: int) -> list[int]:
    """At most `n` tokens behind the prompt, by the whole forward for each, without a cache."""
    ids = list(prompt)
    for _ in range(n):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] == model.generation_config.eos_token_id:
            break
    return ids[len(prompt) :]


CHANGES: list[Change] = [
    Window(0, 0),
    Window(1, 3),
    Window(0, 4),
    Intervention("window", (1, 2), 0.5),
    Intervention("set", (0, 3)),
    Intervention("set", (0, 3), 0.25, "ends"),
    Intervention("attention", (1, 2)),
    Intervention("mlp", (1, 2)),
    Intervention("reverse", ()),
    Intervention("reverse", (1, 2)),
]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_text_under_every_change_is_what_the_changed_model_writes(
    kind: str, tiny_pair: Pairs, random_examples: Draw, tokenizer: PreTrainedTokenizerBase, block_path: dict[str, str]
) -> None:
    base, tuned = tiny_pair(kind, 4)
    examples = random_examples(2)
    pair = Pair(Adapter(base), Adapter(tuned))
    before = [[id(module) for module in model.modules()] for model in (base, tuned)]
    expected = []
    for change in CHANGES:
        model = plainly(base, tuned, change, block_path[kind], kind)
        told = [
            tokenizer.decode(greedy(model, e.tokens[: e.n_prompt].tolist(), 8), skip_special_tokens=True)
            for e in examples
        ]
        assert generate_text(pair, tokenizer, examples, [change], new_tokens=8) == [told], change.text
        expected.append(told)
    together = generate_text(pair, tokenizer, examples, CHANGES, new_tokens=8)
    assert together == expected
    few = max(e.n_prompt for e in examples) + 8
    assert generate_text(pair, tokenizer, examples, CHANGES, new_tokens=8, batch_tokens=6 * few) == expected
    assert len(set(map(tuple, expected))) > len(CHANGES) / 2, (
        "the models write differently, so that agreement says something"
    )
    assert [[id(module) for module in model.modules()] for model in (base, tuned)] == before


def test_trained_text_under_a_window_is_what_the_substituted_model_generates() -> None:
    base, tuned = (load_model(describe(source)) for source in ("lab://tiny", "lab://tiny/sums"))
    tokenizer = load_tokenizer(describe("lab://tiny"))
    examples = load_examples("lab://sums/test", "gsm8k", tokenizer, limit=2).examples
    window = Window(8, 13)
    model = put_back(base, tuned, window, "model.layers")
    expected = []
    for example in examples:
        prompt = torch.from_numpy(example.tokens[: example.n_prompt])[None]
        out = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False)
        expected.append(tokenizer.decode(out[0, example.n_prompt :], skip_special_tokens=True))
    assert all(expected)
    pair = Pair(Adapter(base), Adapter(tuned))
    before = [id(block) for block in pair.tuned.blocks]
    assert generate_text(pair, tokenizer, examples, [window, Window(0, 0)], new_tokens=12)[0] == expected
    assert [id(block) for block in pair.tuned.blocks] == before


def test_a_cache_of_another_kind_has_the_changes_one_after_the_other(
    tiny_pair: Pairs,
    random_examples: Draw,
    tokenizer: PreTrainedTokenizerBase,
    block_path: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Own(DynamicCache):
        """What some models come with: a cache that keeps more than the usual one."""

    base, tuned = tiny_pair("llama", 4)
    examples, windows = random_examples(2), [Window(0, 2), Window(1, 3)]
    models = [plainly(base, tuned, window, block_path["llama"], "llama") for window in windows]
    expected = [
        [tokenizer.decode(greedy(m, e.tokens[: e.n_prompt].tolist(), 6), skip_special_tokens=True) for e in examples]
        for m in models
    ]
    seen = []
    monkeypatch.setattr("transformers.generation.utils.DynamicCache", Own)
    base.model.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(type(kwargs["past_key_values"])), with_kwargs=True
    )
    assert generate_text(Pair(Adapter(base), Adapter(tuned)), tokenizer, examples, windows, new_tokens=6) == expected
    assert Own in seen


def test_prompts_of_unlike_lengths_share_a_batch_if_the_model_ignores_padding(
    tiny_pair: Pairs, random_examples: Draw, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, tuned = tiny_pair("llama", 4)
    examples, windows = random_examples(5), [Window(0, 2), Window(1, 3)]
    lengths = [example.n_prompt for example in examples]
    assert len(set(lengths)) > 1
    pair = Pair(Adapter(base), Adapter(tuned))
    single = [generate_text(pair, tokenizer, [example], windows, new_tokens=6) for example in examples]
    expected = [[of_one[place][0] for of_one in single] for place in range(len(windows))]
    settings = {"new_tokens": 6, "batch_tokens": 4096, "filling": 0}
    real = tuned.forward

    def blind(*args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:  # takes padding for text
        return real(*args, **kwargs)

    for padded in (True, False):
        batches = prompt_batches(tuned, pair.tuned.device, examples, **settings)
        assert sorted(i for batch in batches for i in batch) == list(range(len(examples)))
        assert len(batches) == (1 if padded else len(set(lengths)))
        assert generate_text(pair, tokenizer, examples, windows, new_tokens=6) == expected
        monkeypatch.setattr(tuned, "forward", blind)
