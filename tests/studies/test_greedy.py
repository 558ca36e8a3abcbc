"""Greedy text whatever a checkpoint's generation config asks for, against the argmax of the model's own logits."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import put_back
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from raysweep.data.examples import Example
from raysweep.models.adapter import Adapter
from raysweep.models.checkpoint import describe
from raysweep.models.loading import load_model
from raysweep.models.text_settings import EndsOfPair
from raysweep.studies.answers import generate_answers
from raysweep.studies.generation import generate_text, greedy_text
from raysweep.studies.greedy import decode_greedily, padding_for
from raysweep.studies.interventions import Intervention
from raysweep.studies.substitution import Pair
from raysweep.studies.windows import Window

N = 10
SETTINGS: dict[str, dict[str, Any]] = {
    "temperature without sampling": {"do_sample": False, "temperature": 0.4, "top_p": 0.6},
    "sampling": {"do_sample": True, "temperature": 2.0, "top_k": 0},
    "sampling, restricted": {"do_sample": True, "top_p": 0.5, "min_p": 0.1, "typical_p": 0.3, "epsilon_cutoff": 0.1},
    "repetition penalty": {"repetition_penalty": 2.5},
    "encoder repetition penalty": {"encoder_repetition_penalty": 2.5},
    "n-gram ban": {"no_repeat_ngram_size": 1},
    "bad words": {"bad_words_ids": [[number] for number in range(3, 200)]},
    "bias": {"sequence_bias": [[[7], 50.0]]},
    "suppressed": {"suppress_tokens": list(range(3, 200))},
    "suppressed at the start": {"begin_suppress_tokens": list(range(3, 320))},
    "least new tokens": {"min_new_tokens": 40},
    "least length": {"min_length": 60},
    "length decay": {"exponential_decay_length_penalty": [1, 50.0]},
    "forced first": {"forced_bos_token_id": 9},
    "forced last": {"forced_eos_token_id": 9},
    "beams": {"num_beams": 4, "length_penalty": 3.0, "early_stopping": True},
    "beam groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0},
    "several sequences": {"num_return_sequences": 3},
    "several sequences of beams": {"num_beams": 4, "num_return_sequences": 3},
    "constrained": {"num_beams": 2, "force_words_ids": [[9]]},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "layers against layers": {"dola_layers": "low"},
    "guidance": {"guidance_scale": 3.0},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "early exit": {"assistant_early_exit": 1},
    "assistant": {"is_assistant": True, "num_assistant_tokens": 3, "assistant_confidence_threshold": 0.9},
    "watermark": {"watermarking_config": {"greenlist_ratio": 0.1, "bias": 50.0}},
    "stop strings": {"stop_strings": ["a", "e", " "]},
    "length": {"max_length": 3},
    "new tokens": {"max_new_tokens": 1},
    "time": {"max_time": 1e-9},
    "no cache": {"use_cache": False},
    "another cache": {"cache_implementation": "static"},
    "unknown cache": {"cache_implementation": "nothing like it"},
    "quantised cache": {"cache_implementation": "quantized", "cache_config": {"backend": "quanto"}},
    "more outputs": {"return_dict_in_generate": True, "output_scores": True, "output_hidden_states": True},
    "renormalised": {"renormalize_logits": True, "remove_invalid_values": True},
    "healing": {"token_healing": True},
    "compiled": {"compile_config": {"backend": "eager"}, "disable_compile": False},
    "prefilled in pieces": {"prefill_chunk_size": 2},
    "what nobody knows": {"a_key_of_their_own": [1, 2, 3]},
    "padding that is not there": {"pad_token_id": 4000},
    "negative padding": {"pad_token_id": -1},
}
CHANGES = [Window(0, 0), Window(1, 3), Intervention("reverse", (1, 2)), Intervention("reverse", ())]

Pairs = Callable[..., tuple[PreTrainedModel, PreTrainedModel]]
Draw = Callable[..., list[Example]]


def argmax(model: PreTrainedModel, example: Example, ends: set[int], n: int = N) -> list[int]:
    """The likeliest token after each other by the model's own logits, up to and with the first that ends the text."""
    ids = example.tokens[: example.n_prompt].tolist()
    for _ in range(n):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] in ends:
            break
    return ids[example.n_prompt :]


def asking(model: PreTrainedModel, settings: dict[str, Any]) -> None:
    """Give the model a generation config with these settings, unchecked: its constructor refuses some that files hold."""
    model.generation_config = GenerationConfig(bos_token_id=1, pad_token_id=0)
    for name, value in settings.items():
        setattr(model.generation_config, name, value)


@dataclass(frozen=True)
class Reference:
    """A pair, examples, the end tokens of the pair's models (which end the first text), and the text of each change and example."""

    pair: Pair
    examples: list[Example]
    ends: dict[str, list[int]]
    texts: list[list[str]]
    answers: list[str]


@pytest.fixture(scope="module")
def reference(
    tiny_pair: Pairs, random_examples: Draw, tokenizer: PreTrainedTokenizerBase, block_path: dict[str, str]
) -> Reference:
    base, tuned = tiny_pair("llama", 4, max_position_embeddings=128)
    examples = random_examples(2)
    path = block_path["llama"]
    ends = {name: [2, argmax(model, examples[0], {2})[4]] for name, model in (("base", base), ("tuned", tuned))}
    models = {
        "none": (tuned, "tuned"),
        "1-2": (put_back(base, tuned, Window(1, 3), path), "tuned"),
        "reverse 1-2": (put_back(tuned, base, Window(1, 3), path), "base"),
        "reverse none": (base, "base"),
    }
    written = [[argmax(model, each, set(ends[of])) for each in examples] for model, of in models.values()]
    assert len(written[0][0]) == len(written[3][0]) == 5, "texts end early, so that what ends them matters"
    texts = [[tokenizer.decode(ids, skip_special_tokens=True) for ids in of_change] for of_change in written]
    assert len({text for of_change in texts for text in of_change}) > 5
    without_end = [ids[:-1] if ids[-1] in ends["tuned"] else ids for ids in written[0]]
    answers = [tokenizer.decode(ids, skip_special_tokens=True) for ids in without_end]
    return Reference(Pair(Adapter(base), Adapter(tuned)), examples, ends, texts, answers)


@pytest.mark.parametrize("asked", SETTINGS)
def test_text_is_greedy_whatever_the_generation_config_asks_for(
    asked: str, reference: Reference, tokenizer: PreTrainedTokenizerBase
) -> None:
    pair, examples = reference.pair, reference.examples
    for name, adapter in (("base", pair.base), ("tuned", pair.tuned)):
        asking(adapter.model, {"eos_token_id": reference.ends[name], **SETTINGS[asked]})
    model = pair.tuned.model
    before, values = model.generation_config, vars(model.generation_config).copy()
    first = [of_change[:1] for of_change in reference.texts]
    assert generate_text(pair, tokenizer, examples[:1], CHANGES, new_tokens=N) == first
    assert greedy_text(model, pair.tuned.device, tokenizer, examples[1], N) == reference.texts[0][1]
    assert generate_answers(model, tokenizer, examples, new_tokens=N) == reference.answers
    assert model.generation_config is before
    assert vars(before) == values


def test_changes_one_by_one_write_the_same(reference: Reference, tokenizer: PreTrainedTokenizerBase) -> None:
    for name, adapter in (("base", reference.pair.base), ("tuned", reference.pair.tuned)):
        asking(adapter.model, {"eos_token_id": reference.ends[name], "num_beams": 3, "repetition_penalty": 2.5})
    found = generate_text(reference.pair, tokenizer, reference.examples, CHANGES, new_tokens=N, batch_tokens=1)
    assert found == reference.texts


REFUSED = {"several sequences", "unknown cache", "compiled"}  # by transformers, when it reads the file as a whole


@pytest.mark.parametrize("asked", [*sorted(REFUSED), "beams"])
def test_a_model_loads_whatever_its_generation_config_asks_for(
    asked: str, tmp_path: Path, reference: Reference, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = reference.pair.tuned.model
    asking(model, {})
    model.save_pretrained(tmp_path)
    stored = {"eos_token_id": reference.ends["tuned"], **SETTINGS[asked]}
    (tmp_path / "generation_config.json").write_text(json.dumps(stored))
    if asked in REFUSED:
        with pytest.raises((ValueError, TypeError)):
            GenerationConfig.from_pretrained(tmp_path)
    loaded = load_model(describe(str(tmp_path)))
    assert generate_answers(loaded, tokenizer, reference.examples, new_tokens=N) == reference.answers


def test_end_tokens_that_are_given_come_before_the_models_own(
    reference: Reference, tokenizer: PreTrainedTokenizerBase
) -> None:
    pair, example = reference.pair, reference.examples[0]
    for name, adapter in (("base", pair.base), ("tuned", pair.tuned)):
        asking(adapter.model, {"eos_token_id": reference.ends[name]})
    changes = [Window(0, 0), Intervention("reverse", ())]
    of_base, of_tuned = (tuple(reference.ends[name]) for name in ("base", "tuned"))
    for given in (EndsOfPair((), ()), EndsOfPair(of_base, ()), EndsOfPair(of_base, of_tuned)):
        expected = [
            tokenizer.decode(argmax(model, example, set(ends)), skip_special_tokens=True)
            for model, ends in ((pair.tuned.model, given.tuned), (pair.base.model, given.base))
        ]
        found = generate_text(pair, tokenizer, [example], changes, new_tokens=N, ends=given)
        assert [texts[0] for texts in found] == expected


@pytest.mark.parametrize("stored", [None, [], [4000], -1, [None], True])
def test_without_an_end_token_of_its_vocabulary_the_tokenizers_ends_a_text(
    stored: Any, reference: Reference, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = reference.pair.tuned.model
    asking(model, {"eos_token_id": stored})

    class Other:
        pad_token_id, eos_token_id = 0, reference.ends["tuned"][1]
        decode = tokenizer.decode

    found = generate_answers(model, Other(), reference.examples[:1], new_tokens=N)  # type: ignore[arg-type]
    assert found == reference.answers[:1]


def test_a_failure_leaves_the_generation_config_as_it_was(
    reference: Reference,
) -> None:
    model = reference.pair.tuned.model
    before = model.generation_config

    def broken(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("broken")

    prompt = torch.tensor([[5, 6]])
    with pytest.raises(RuntimeError, match="broken"):
        decode_greedily(model, prompt, torch.ones_like(prompt), new_tokens=2, ends=[2], padding=0, processors=[broken])
    assert model.generation_config is before


def test_what_pads_is_a_token_that_the_model_can_read(tiny: Callable[..., PreTrainedModel]) -> None:
    class Added:  # a padding token was added, and the embedding was not made larger
        pad_token_id, eos_token_id = 320, 319

    model = tiny("llama", 2)
    assert padding_for(model, Added(), [5]) == 319  # type: ignore[arg-type]
    Added.eos_token_id = 400
    assert padding_for(model, Added(), [5]) == 5  # type: ignore[arg-type]
    assert padding_for(model, Added(), []) == 0  # type: ignore[arg-type]


def test_an_adapter_in_training_writes_as_its_model_does(
    tiny: Callable[..., PreTrainedModel], random_examples: Draw, tokenizer: PreTrainedTokenizerBase
) -> None:
    from peft import LoraConfig, get_peft_model

    model, examples = tiny("llama", 2), random_examples(3)
    expected = [tokenizer.decode(argmax(model, example, {2}), skip_special_tokens=True) for example in examples]
    asking(model, {"eos_token_id": 2, "num_beams": 3, "repetition_penalty": 2.0})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers under a name it is giving up
        whole: Any = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])).eval()
    assert generate_answers(whole, tokenizer, examples, new_tokens=N) == expected
    with torch.no_grad():
        for name, weight in whole.named_parameters():
            if "lora_B" in name:
                weight += torch.randn_like(weight)
    changed = [tokenizer.decode(argmax(whole, example, {2}), skip_special_tokens=True) for example in examples]
    assert generate_answers(whole, tokenizer, examples, new_tokens=N) == changed != expected
