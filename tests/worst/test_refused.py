"""Data and models at their worst, through the command line: refused before anything runs, exit code 2, nothing written.

The wording of single readers is tested beside them; here the whole way is, as a user takes it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import Result, content
from safetensors.torch import load_file, save_file
from spoil import (
    UP,
    edit_json,
    edit_tensors,
    new_token,
    put,
    spoil_adapter,
    spoil_shards,
    spoil_with_pickle,
    template,
    told,
)

LONG = {"question": "x" * 200, "answer": "y"}
WORSE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a torn shard": (
        lambda w: (w / "base/model.safetensors").write_bytes((w / "base/model.safetensors").read_bytes()[:-9]),
        "{w}/base/model.safetensors has * bytes, but its header says *; copy the checkpoint again",
    ),
    "an empty weights file": (
        lambda w: (w / "tuned/model.safetensors").write_bytes(b""),
        "{w}/tuned/model.safetensors is not a complete safetensors file (0 bytes); copy or save the checkpoint again",
    ),
    "a missing shard": (
        spoil_shards,
        f"{{w}}/base/model.safetensors.index.json names the shard model-00002-of-00002.safetensors for 1 tensors ({UP} among "
        "them), and there is no such file; copy the checkpoint again, all of it",
    ),
    "NaN in a layer": (
        lambda w: edit_tensors(w / "tuned/model.safetensors", lambda t: t[UP][3].fill_(torch.nan)),
        f"{{w}}/tuned/model.safetensors: tensor {UP} of layer 2 has a weight that is not finite (NaN at [3, 0]); every "
        "loss through it would be NaN. Save the checkpoint again from undamaged weights",
    ),
    "infinity outside the layers": (
        lambda w: edit_tensors(w / "base/model.safetensors", lambda t: t["model.norm.weight"][5:6].fill_(-torch.inf)),
        "{w}/base/model.safetensors: tensor model.norm.weight has a weight that is not finite (minus infinity at [5]); *",
    ),
    "a pickle": (
        spoil_with_pickle,
        "checkpoint '{w}/tuned' has .bin weights that are not plain tensors, and raysweep runs no pickled code; save it as "
        "safetensors",
    ),
    "NaN in an adapter": (
        spoil_adapter,
        f"{{w}}/tuned/adapter_model.safetensors: tensor base_model.model.{UP} of layer 2 has a weight that is not finite (NaN at "
        "[1]); *",
    ),
    "a config of a checkpoint that is no object": (
        lambda w: (w / "base/config.json").write_text("3"),
        "{w}/base/config.json is not a JSON object; save the checkpoint again",
    ),
    "a billion layers": (
        lambda w: edit_json(w / "base/config.json", num_hidden_layers=10**9),
        "{w}/base/config.json, num_hidden_layers: a setting of the model asks for 1000000000 layers or blocks, and at most 2000 "
        "are accepted. If you trust it, set the environment variable RAYSWEEP_MAX_LAYERS to a higher number",
    ),
    "a tokenizer that is torn": (
        lambda w: (w / "base/tokenizer.json").write_text('{"version": '),
        "checkpoint '{w}/base' has no usable tokenizer: *",
    ),
    "ids beyond the embedding": (
        new_token,
        "1 of 11 examples of {w}/counts.jsonl have tokens that 'm' has no embedding for: its vocabulary has 320 (ids 0 to 319), "
        "its tokenizer 321, and the largest id is 320, '<new>' ({w}/counts.jsonl, line 11); use the tokenizer that the "
        "checkpoint was trained with, or remove those records",
    ),
    "no chat template": (
        template(None),
        "tokenizer '{w}/base' has no chat template, which template 'chat' uses; give the tokenizer one, or set "
        "template to plain, llama2, llama3 or phi3",
    ),
    "a chat template that refuses": (
        template("{{ raise_exception('no users here') }}"),
        "{w}/counts.jsonl, line 1: the tokenizer's chat template refuses the turns user, assistant (no users here); "
        "correct them, or use another prompt template",
    ),
    "a chat template with a type error": (
        template("{{ messages[0]['content'] + 1 }}"),
        "{w}/counts.jsonl, line 1: the tokenizer's chat template refuses the turns user, assistant (TypeError: can only "
        "concatenate str (not \"int\") to str); correct them, or use another prompt template",
    ),
    "a chat template that says nothing": (
        template("{# nothing #}"),
        "{w}/counts.jsonl, line 1: the tokenizer's chat template renders the turns user as empty text; give the "
        "tokenizer a template that renders them, or use another prompt template",
    ),
    "a chat template that does not parse": (
        template("{% for m in %}"),
        "{w}/counts.jsonl, line 1: the tokenizer's chat template refuses the turns user, assistant (*); correct them, "
        "or use another prompt template",
    ),
    "examples longer than the context": (
        lambda w: put(w, LONG, LONG | {"question": "x" * 300}),
        "2 of 12 examples of {w}/counts.jsonl are longer than the context of 'm', 128 tokens; the longest "
        "({w}/counts.jsonl, line 12) has *. Set too_long: cut for this data set, which cuts and counts them, or "
        "max_tokens to 128 or less",
    ),
    "a shorter context of the tuned one": (
        lambda w: edit_json(w / "tuned/config.json", max_position_embeddings=20),
        "* of 10 examples of {w}/counts.jsonl are longer than the context of 'm', 20 tokens; *",
    ),
    "a torn line": (
        lambda w: put(w, b'{"question": "x", "ans'),
        "{w}/counts.jsonl, line 11 is not a complete JSON object (Unterminated string starting at, column 19); correct "
        "the line: JSONL has one object per line",
    ),
    "an empty file": (
        lambda w: (w / "counts.jsonl").write_bytes(b""),
        "{w}/counts.jsonl is empty: it has no records",
    ),
    "UTF-16": (
        lambda w: (w / "counts.jsonl").write_text('{"question": "x", "answer": "y"}\n', encoding="utf-16"),
        "{w}/counts.jsonl is UTF-16 (by its first bytes), but UTF-8 is needed; convert the file",
    ),
    "Latin-1": (
        lambda w: put(w, '{"question": "Café", "answer": "y"}'.encode("latin-1")),
        "{w}/counts.jsonl, line 11 is not UTF-8 (byte 0xe9); convert the file",
    ),
    "a null byte": (
        lambda w: put(w, b'{"question": "a\0b", "answer": "y"}'),
        "{w}/counts.jsonl, line 11 contains a null byte (is it UTF-16, or binary?); convert the file to UTF-8",
    ),
    "half a surrogate pair": (
        lambda w: put(w, {"question": "x", "answer": "\udc00"}),
        "{w}/counts.jsonl, line 11: has half of a surrogate pair (\\udc00) in its response, which is not a valid "
        "character; correct the text",
    ),
    "nested too deeply": (
        lambda w: put(w, b'{"question": ' + b"[" * 50_000),
        "{w}/counts.jsonl, line 11 is nested too deeply; correct the line, or remove it",
    ),
    "a number of 5000 digits": (
        lambda w: put(w, b'{"question": "x", "answer": "y", "n": ' + b"1" * 5000 + b"}"),
        "{w}/counts.jsonl, line 11 contains a number that is too long to read (Exceeds the limit (4300 digits) *); "
        "correct the line, or remove it",
    ),
    "a field of another type": (
        lambda w: put(w, {"question": "x", "answer": 7}),
        "{w}/counts.jsonl, line 11: has a field 'answer' of type int, but format 'gsm8k' needs str",
    ),
}  # fmt: skip


def both(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def spoil(world: Path) -> None:
        for name in ("base", "tuned"):
            edit_tensors(world / name / "model.safetensors", change)

    return spoil


def leave_a_shard_out(world: Path) -> None:
    """The index tells of one shard; the other is there, and not in it."""
    tensors = load_file(world / "base/model.safetensors")
    (world / "base/model.safetensors").unlink()
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    save_file({UP: tensors.pop(UP)}, world / "base" / second)
    save_file(tensors, world / "base" / first)
    (world / "base/model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(tensors, first)}))


STREAMED: dict[str, tuple[Callable[[Path], Any], str]] = {
    **{
        name: WORSE[name]
        for name in (
            "a torn shard",
            "an empty weights file",
            "a missing shard",
            "NaN in a layer",
            "infinity outside the layers",
            "a pickle",
        )
    },
    "a shard that the index leaves out": (
        leave_a_shard_out,
        f"checkpoint '{{w}}/base' lacks 1 weights, {UP} among them; it would run with random values; copy or save the "
        "checkpoint again",
    ),
    "float8": (
        lambda w: edit_tensors(w / "tuned/model.safetensors", lambda t: t.update({UP: t[UP].to(torch.float8_e4m3fn)})),
        f"{{w}}/tuned/model.safetensors: tensor {UP} is stored as F8_E4M3, which raysweep cannot stream; save the checkpoint in "
        "bfloat16, float16 or float32, or set execution.residency to resident",
    ),
    "whole numbers": (
        lambda w: edit_tensors(w / "tuned/model.safetensors", lambda t: t.update({UP: t[UP].to(torch.int8)})),
        f"checkpoint '{{w}}/tuned' has quantised weights ({UP} is stored as I8), and its config.json has no "
        "quantization_config that describes how; dequantise it, or restore the config",
    ),
    "another shape in one checkpoint": (
        lambda w: edit_tensors(w / "tuned/model.safetensors", lambda t: t.update({UP: t[UP][:3].clone()})),
        f"base '{{w}}/base' and tuned '{{w}}/tuned' differ in tensor {UP}: [*] and [3, *]; a pair must have the same width and "
        "vocabulary",
    ),
    "another shape in both": (
        both(lambda t: t.update({UP: t[UP][:3].clone()})),
        f"checkpoint '{{w}}/base': tensor {UP} has the shape [3, *], but LlamaForCausalLM with this config has [*]; "
        "correct "
        "config.json, or save the checkpoint again",
    ),
}


@pytest.mark.parametrize("name", STREAMED)
def test_refused_before_anything_is_streamed(name, world, raysweep, tmp_path):
    spoil, expected = STREAMED[name]
    spoil(world)
    before = content(tmp_path)
    refused = raysweep("run", world / "config.yaml", "--set", "execution.residency=stream")
    assert (refused.code, refused.out) == (2, "")
    assert told(refused, expected.replace("{w}", str(world))), refused.err
    assert content(tmp_path) == before


def test_weights_of_another_floating_dtype_in_one_checkpoint_are_converted(world, raysweep, tmp_path):
    edit_tensors(world / "tuned/model.safetensors", lambda t: t.update({n: v.bfloat16() for n, v in t.items()}))
    losses = []
    for residency in ("resident", "stream"):
        run = tmp_path / residency
        more = (f"storage={run}", f"execution.residency={residency}", "models.0.dtype=float32")
        ran = raysweep("run", world / "config.yaml", *(part for each in more for part in ("--set", each)))
        assert ran.code == 0, ran.err
        losses.append(pd.read_parquet(run / "results" / "substitution.parquet")["loss"])
    np.testing.assert_allclose(*losses, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", WORSE)
def test_refused_before_anything_is_written(name, world, raysweep, tmp_path):
    spoil, expected = WORSE[name]
    spoil(world)
    before = content(tmp_path)
    refused = raysweep("run", world / "config.yaml")
    assert (refused.code, refused.out) == (2, "")
    assert told(refused, expected.replace("{w}", str(world))), refused.err
    assert content(tmp_path) == before


def test_one_example_is_too_few_to_compare(world, raysweep):
    refused = raysweep("run", world / "config.yaml", "--set", "datasets.0.limit=1")
    assert refused == Result(
        2,
        "",
        "error: data set 'd' has one usable example for 'm', and similarity compares examples; give 2 or more, or "
        "remove studies.similarity\n",
    )


def test_text_generated_beyond_the_context_is_refused(world, raysweep):
    refused = raysweep("run", world / "config.yaml", "--set", "studies.substitution.generate.tokens=120")
    assert refused.code == 2
    assert told(
        refused,
        "studies.substitution.generate asks for 120 tokens after each prompt; record 2 of 'd' (counted from 0) has a "
        "prompt of *, and the context of 'm' is 128. Set tokens to * or less, or use fewer examples",
    ), refused.err
    most = refused.err.partition("Set tokens to ")[2].split()[0]
    assert raysweep("plan", world / "config.yaml", "--set", f"studies.substitution.generate.tokens={most}").code == 0


def test_a_device_that_is_not_there(world, raysweep, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    refused = raysweep("run", world / "config.yaml", "--set", "execution.device=cuda:7")
    assert refused == Result(
        2,
        "",
        "error: execution.device asks for cuda:7, and this machine has 2 CUDA devices; use auto or cpu\n",
    )
