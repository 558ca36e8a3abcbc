"""`raysweep critical`: the one-model answer."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from command_line import Result, content, ended, started

import raysweep as rs


def test_critical_as_json_tells_what_the_library_finds(world, tmp_path):
    told = ended(
        started(
            "critical", world / "base", world / "counts.jsonl", "--top", 2, "--resamples", 50, "--json", cwd=tmp_path
        )
    )
    assert told.code == 0, told.err
    assert told.err == "capturing the states of 'counts'\n"
    assert content(tmp_path) == [], "nothing is written"
    found = json.loads(told.out)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(world / "base", dtype=torch.float32)
    loaded = rs.load_examples(
        str(world / "counts.jsonl"), "gsm8k", AutoTokenizer.from_pretrained(world / "base"), template="chat"
    )
    expected = rs.critical_layers(model, loaded.examples, top=2, resamples=50)
    assert found["layers"] == expected.layers
    np.testing.assert_allclose(found["delta"], expected.delta, atol=1e-6)
    np.testing.assert_allclose(found["stability"], expected.stability, atol=1e-6)
    assert found["peft"] == {"layers_to_transform": expected.layers, "layers_pattern": "layers"}
    names = [name for name, _ in model.named_parameters()]
    assert found["freeze"]["prefixes"] == [f"model.layers.{layer}." for layer in expected.layers]
    assert found["freeze"]["parameters"] == [n for n in names if n.startswith(tuple(found["freeze"]["prefixes"]))]
    assert found["agreement"] is None
    assert list(found["datasets"]) == ["counts"]
    assert found["datasets"]["counts"]["examples"] == 12
    assert found["datasets"]["counts"]["stretches_begin"][0] == 0


def test_critical_in_words_over_several_data_sets(world, raysweep):
    data = [world / "counts.jsonl", world / "counts.jsonl"]
    told = raysweep("critical", world / "base", *data, "--resamples", 20, "--limit", 9, "--residency", "stream")
    assert told.code == 0, told.err
    assert told.err == "capturing the states of 'counts'\ncapturing the states of 'counts-2'\n"
    lines, said = told.out.splitlines(), " ".join(told.out.split())
    path = str(world / "base")
    assert re.match(
        rf"Critical layers of {re.escape(path)}: \d \(1 of 5 layers\)\. Representations change most there ", said
    )
    assert re.search(
        r"(The layer is stable: chosen|It is not stable \(chosen) in ≥ 80 % of half-samples of the examples", said
    )
    assert sum(bool(re.fullmatch(r"counts(-2)?: 9 examples; critical layers \d", line)) for line in lines) == 2
    assert "The two data sets share 1.0 critical layers on average (0.2 by chance): agreement 1.00 [" in said, (
        "they are the same data set"
    )
    assert (
        " where 1 is the same layers and 0 is chance. Two samples of the same data set would have an agreement of "
        in said
    )
    assert re.search(
        r"pass this to PEFT's LoraConfig: layers_to_transform=\[\d\], layers_pattern=\"layers\" To freeze", said
    )
    assert re.search(r"whose names begin with: model\.layers\.\d\. layer +mean δ chosen in", said)
    assert sum(line.startswith("  segments of similar layers: 0") for line in lines) == 2
    assert all(len(line) <= 80 for line in lines if path not in line)


def test_a_decoder_needs_no_response_where_prompts_are_all_that_is_measured(world, raysweep):
    told = [
        raysweep(
            "critical",
            world / "base",
            world / "counts.jsonl",
            "--resamples",
            20,
            "--json",
            "--prompt",
            "question",
            *more,
        )
        for more in ([], ["--response", "answer"])
    ]
    assert [each.code for each in told] == [0, 0], told[0].err
    alone, both = (json.loads(each.out) for each in told)
    np.testing.assert_allclose(alone["delta"], both["delta"], atol=1e-6)
    assert alone["layers"] == both["layers"]
    refused = raysweep("critical", world / "base", world / "counts.jsonl", "--response", "answer")
    assert refused.code == 2
    assert "format 'columns' lacks prompt:" in refused.err


def test_a_sweep_needs_a_response(world, raysweep, tmp_path):
    refused = raysweep(
        "sweep",
        world / "base",
        world / "tuned",
        world / "counts.jsonl",
        "--prompt",
        "question",
        "--out",
        tmp_path / "run",
    )
    assert refused == Result(
        2, "", "error: format 'columns' lacks response: give a column's name or a Jinja template over columns\n"
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["--top", 6], "error: --top 6: '{base}' has 5 decoder layers; give a number from 1 to 5\n"),
        (
            ["--neighbourhood", 2],
            "error: raysweep critical: key 'studies.similarity.neighbourhood': the neighbourhood must be odd, because "
            "it is centred on a layer; 2 is even\n",
        ),
        (
            ["--neighbourhood", 1, "--no-diagonal"],
            "error: raysweep critical: studies.similarity: a neighbourhood of 1 contains only the layer itself; with "
            "diagonal: false give 3 or more\n",
        ),
    ],
)
def test_critical_refuses(world, raysweep, changes, told):
    refused = raysweep("critical", world / "base", world / "counts.jsonl", *changes)
    assert refused == Result(2, "", told.format(base=world / "base"))


def test_data_that_are_not_there_are_refused(world, raysweep):
    refused = raysweep("critical", world / "base", "gone.jsonl")
    assert refused == Result(2, "", "error: there is no file gone.jsonl: check the path\n")
