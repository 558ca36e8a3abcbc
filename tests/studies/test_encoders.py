"""Encoders: captured states against transformers' own hidden states, one unpadded example at a time; and whole runs.

The plain way is the model's forward with `output_hidden_states`. Where an architecture has a norm behind its last layer,
the last of these is behind it; there that norm is applied to what was captured.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import ENCODERS, build, wordpiece
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typer.testing import CliRunner

import raysweep as rs
from raysweep.cli import app
from raysweep.data.examples import Example
from raysweep.engine.inspection import inspect
from raysweep.errors import InputError
from raysweep.models.adapter import Adapter
from raysweep.models.checkpoint import describe
from raysweep.models.loading import load_model, load_tokenizer

FINAL_NORM = {"modernbert": "final_norm", "headless_llama": "norm"}
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
TEXTS = [f"count {' '.join(WORDS[i % 4 : 1 + i])}" for i in range(10)]


@pytest.fixture(scope="module")
def encoder_tokenizer() -> PreTrainedTokenizerBase:
    return wordpiece(TEXTS)


def plain_states(kind: str, model: PreTrainedModel, examples: Sequence[Example], pooling: str) -> torch.Tensor:
    """[L, N, D]"""
    rows = []
    for example in examples:
        prompt = torch.from_numpy(example.tokens[: example.n_prompt])[None]
        with torch.no_grad():
            states = model(input_ids=prompt, output_hidden_states=True).hidden_states[1:]
        pool = {"first": lambda s: s[0, 0], "last": lambda s: s[0, -1], "mean": lambda s: s[0].mean(0)}[pooling]
        rows.append(torch.stack([pool(s) for s in states]))
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("pooling", ["first", "last", "mean"])
def test_states_are_those_of_the_models_own_forward_at_every_batch_size(
    kind: str, pooling: str, random_examples: Callable[..., list[Example]]
) -> None:
    model = build(ENCODERS[kind])
    adapter, examples = Adapter(model), random_examples(9, longest=40)
    expected = plain_states(kind, model, examples, pooling)
    for budget in (1, 100, 65_536):
        found = rs.capture(adapter, examples, pooling, batch_tokens=budget)
        torch.testing.assert_close(found[:-1], expected[:-1], rtol=1e-5, atol=2e-5)
        if kind not in FINAL_NORM:
            torch.testing.assert_close(found[-1], expected[-1], rtol=1e-5, atol=2e-5)
        elif pooling != "mean":  # a mean of normed states is not the norm of their mean
            normed = model.get_submodule(FINAL_NORM[kind])(found[-1])
            torch.testing.assert_close(normed, expected[-1], rtol=1e-4, atol=1e-4)


def test_an_encoder_sees_the_whole_prompt_and_no_padding(random_examples: Callable[..., list[Example]]) -> None:
    model, examples = build(ENCODERS["bert"]), random_examples(2, longest=20)
    examples = [Example(e.id, e.tokens, e.length, "", "") for e in examples]
    first = rs.capture(model, examples, "first")
    examples[0].tokens[-1] += 1
    moved = rs.capture(model, examples, "first")
    assert (first - moved)[:, 0].abs().max() > 0.01, "what follows is seen"
    torch.testing.assert_close(first[:, 1], moved[:, 1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_cka_and_critical_layers_of_a_folder(
    kind: str, encoder_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    build(ENCODERS[kind], cls=ENCODERS[kind].classes[1]).save_pretrained(tmp_path / "m")
    encoder_tokenizer.save_pretrained(tmp_path / "m")
    write_records(tmp_path / "texts.jsonl")
    checkpoint = describe(str(tmp_path / "m"))
    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    source = str(tmp_path / "texts.jsonl")
    loaded = rs.load_examples(source, "columns", tokenizer, template="plain", prompt="text", prompts_only=True)
    assert [e.tokens.tolist() for e in loaded.examples] == [tokenizer(text)["input_ids"] for text in TEXTS]
    X = rs.capture(model, loaded.examples, "mean")
    S = rs.cka_matrix(X)
    np.testing.assert_allclose(S, rs.cka_matrix(plain_states(kind, model, loaded.examples, "mean")), atol=1e-6)
    critical = rs.critical_layers(model, loaded.examples, top=2, pooling="mean", resamples=20)
    np.testing.assert_allclose(critical.delta, rs.local_dynamics(S, 3), atol=1e-9)
    prefixes = tuple(critical.freeze_list())
    named = {id(p) for name, p in model.named_parameters() if name.startswith(prefixes)}
    assert named == {id(p) for layer in critical.layers for p in Adapter(model).blocks[layer].parameters()}


# Whole runs


def write_records(path: Path) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, encoder_tokenizer: PreTrainedTokenizerBase) -> Path:
    """A pretrained encoder, another for its tuned one, and records with no response."""
    made = tmp_path_factory.mktemp("encoder")
    for seed, name in enumerate(("base", "tuned")):
        build(ENCODERS["bert"], seed, cls="BertForMaskedLM").save_pretrained(made / name)
        encoder_tokenizer.save_pretrained(made / name)
    write_records(made / "texts.jsonl")
    return made


def settings(folder: Path, storage: Path, **model: Any) -> dict[str, Any]:
    return {
        "name": "encoder",
        "models": [{"name": "m", "base": str(folder / "base"), "template": "plain", **model}],
        "datasets": [{"name": "d", "path": str(folder / "texts.jsonl"), "format": "columns", "prompt": "text"}],
        "studies": {"similarity": {"pooling": "first"}},
        "execution": {"chunk": 4, "device": "cpu", "batch_tokens": 64},
        "storage": str(storage),
    }


def test_a_run_measures_an_encoder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(settings(folder, tmp_path / "run")))
    for command in (["plan"], ["run"]):
        outcome = CliRunner().invoke(app, [*command, str(tmp_path / "config.json")], catch_exceptions=False)
        assert outcome.exit_code == 0, outcome.output
    done = rs.open_run(tmp_path / "run")
    assert list(done.tables) == ["similarity", "dynamics", "critical", "health"]
    model, tokenizer = load_model(describe(str(folder / "base"))), load_tokenizer(describe(str(folder / "base")))
    examples = [
        Example(i, np.array(ids), len(ids), "", "")
        for i, ids in enumerate(tokenizer(text)["input_ids"] for text in TEXTS)
    ]
    expected = rs.cka_matrix(plain_states("bert", model, examples, "first"))
    np.testing.assert_allclose(done.similarity["value"], expected.ravel(), rtol=0, atol=1e-6)
    assert "encoder" in done.report.read_text()


def test_a_substitution_study_of_an_encoder_is_refused_before_anything_runs(folder: Path, tmp_path: Path) -> None:
    config = settings(folder, tmp_path / "run", tuned={"d": str(folder / "tuned")})
    config["studies"]["substitution"] = {"widths": [1]}
    with pytest.raises(InputError) as caught:
        rs.run(config)
    assert str(caught.value) == (
        f"model 'm': checkpoint '{folder / 'base'}' does not predict the next token (it is an encoder, or lacks its "
        "head), and substitution measures the loss of a response's tokens; remove its `tuned` and run only similarity"
    )
    assert not (tmp_path / "run").exists()


def test_an_encoder_stands_beside_a_pair_that_is_swept(
    folder: Path, tmp_path: Path, tiny_pair: Callable[..., Any], tokenizer: PreTrainedTokenizerBase
) -> None:
    for name, model in zip(("a", "b"), tiny_pair("llama", 6, max_position_embeddings=256), strict=True):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    config = settings(folder, tmp_path / "run")
    config["models"].append({"name": "p", "base": str(tmp_path / "a"), "tuned": {"d": str(tmp_path / "b")}})
    config["datasets"][0] |= {"response": "text"}
    config["studies"]["substitution"] = {"widths": [5]}
    from raysweep.config import parse_config

    facts = inspect(parse_config(config))
    assert [facts.models[name].predicts for name in ("m", "p")] == [False, True]
    assert {e.n_tokens for e in facts.cells["m", "d"].examples} == {0}
    assert min(e.n_tokens for e in facts.cells["p", "d"].examples) > 0


def test_an_encoder_without_a_chat_template_is_told_of_plain(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no chat template.* or set template to plain, llama2, llama3 or phi3"):
        rs.run(settings(folder, tmp_path / "run", template="chat"))
