"""What gets through: counted and shown, and no page broken by it."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from spoil import CONTEXT, LAYERS, page_of, put


def test_examples_cut_to_the_context_are_counted_and_shown(world, raysweep, tmp_path):
    put(world, {"question": "x", "answer": "y " * 100})
    told = raysweep("run", world / "config.yaml", "--set", "datasets.0.too_long=cut")
    assert told.code == 0, told.err
    losses = pd.read_parquet(tmp_path / "run" / "results" / "substitution.parquet")
    assert losses["loss"].notna().all()
    assert losses["n_tokens"].max() < CONTEXT
    assert "1 examples were cut to max_tokens or to the model's context" in page_of(tmp_path).text


NASTY = [
    "<script>alert(1)</script>",
    "\"quotes\" 'and' `ticks` & &amp; </pre></td><!-- ]]>",
    "emoji 👩‍👩‍👧‍👦 🇺🇳 \u0301",
    "rtl \u202eevil\u202c \u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u05e2\u05d1\u05e8\u05d9\u05ea",
    "null \u0000 bell \u0007 del \u007f nel \u0085 nonchar \uffff",
    "{{ 7 * 7 }} {% raise %} ${x} %s",
    "line\u2028separator\u2029",
    "\n\t\r\n",
]


def test_records_of_every_kind_get_through_and_break_no_page(world, raysweep, tmp_path, monkeypatch):
    (world / "counts.jsonl").unlink()
    put(world, *({"question": f"q {text}", "answer": f"a {text}"} for text in NASTY))
    put(world, {"question": "big", "answer": "z" * 100_000, "aside": "\ud800" + "w" * 100_000})
    more = ["studies.substitution.generate={examples: 9, tokens: 4}", "datasets.0.too_long=cut"]
    ran = raysweep("run", world / "config.yaml", *(part for each in more for part in ("--set", each)))
    assert ran.code == 0, ran.err
    page = page_of(tmp_path)
    assert page.open == []
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "iframe", "object", "embed", "base", "form"}
    assert not [attrs for _, attrs in page.tags if any(key.startswith("on") for key in attrs)]
    for _, attrs in page.tags:
        assert all((attrs.get(key) or "#").startswith(("#", "data:")) for key in ("src", "href", "xlink:href"))
    assert "<script>alert(1)</script>" in page.text, "as text"
    assert "{{ 7 * 7 }}" in page.text
    assert not [c for c in page.source if (ord(c) < 32 and c not in "\n\t\r") or 0x7F <= ord(c) < 0xA0]
    texts = pd.read_parquet(tmp_path / "run" / "results" / "generation.parquet")
    references = set(texts["reference"])
    assert {f"a {text}<end>" for text in NASTY if text.strip()} <= references, "the table has them as they are"


def test_a_file_name_that_is_no_utf8(world, raysweep, tmp_path):
    odd = os.fsdecode(b"caf\xe9")
    shutil.copy(world / "config.yaml", tmp_path / f"{odd}.yaml")
    ran = raysweep("run", tmp_path / f"{odd}.yaml")
    assert ran.code == 0, ran.err
    refused = raysweep("run", tmp_path / f"{odd}.yaml", "--set", f"storage={tmp_path / odd}")
    assert refused.code == 2
    assert "caf\\udce9: the value is not YAML: unacceptable character" in refused.err


@pytest.fixture
def overflowing(world, tiny_pair, tokenizer):
    """A pair whose every weight is finite, and whose layer norms overflow on the token '7': its examples have no loss."""
    (token,) = tokenizer("7", add_special_tokens=False)["input_ids"]
    models = tiny_pair("gpt2", LAYERS, tie_word_embeddings=False, n_positions=CONTEXT)
    for name, model in zip(("base", "tuned"), models, strict=True):
        shutil.rmtree(world / name)
        with torch.no_grad():
            model.transformer.wte.weight[token] = 3e38
        model.save_pretrained(world / name)
        tokenizer.save_pretrained(world / name)
    put(world, {"question": "7?", "answer": "7 two"}, {"question": "7 7?", "answer": "one"})
    return world


def test_nan_losses_are_counted_left_out_and_shown(overflowing, raysweep, tmp_path):
    more = ("--set", "studies={substitution: {widths: [1]}}")
    ran = raysweep("run", overflowing / "config.yaml", *more)
    assert ran.code == 0, ran.err
    losses = pd.read_parquet(tmp_path / "run" / "results" / "substitution.parquet")
    assert set(losses[losses["loss"].isna()]["example_id"]) == {10, 11}
    counted = f"{2 * (LAYERS + 2)} of {12 * (LAYERS + 2)} losses are NaN and left out"
    mean = losses[losses["width"] == 1].groupby("layers")["loss"].mean()
    line = f"m on d: {counted}."
    said = ran.out.splitlines()
    assert "the tuned model is no better than its base" in " ".join(said[:2]), "noise makes no fine-tune"
    assert line in said
    page = page_of(tmp_path).text
    assert f"d on m: {counted.replace('left out', 'are skipped in every mean')}" in page
    assert any(f"{mean.max():.{decimals}f}" in page for decimals in (2, 3, 4)), "the page's mean is the same one"
    assert raysweep("report", tmp_path / "run").code == 0


def test_examples_whose_states_are_not_finite_are_left_out_too(overflowing, raysweep, tmp_path):
    ran = raysweep("run", overflowing / "config.yaml")
    assert ran.code == 0, ran.err
    assert f"{2 * (LAYERS + 2)} of {12 * (LAYERS + 2)} losses are NaN and left out." in ran.out
    page = page_of(tmp_path).text
    assert "2 of 12 examples have states that are not finite; 2 are skipped in every similarity" in page
    found = pd.read_parquet(tmp_path / "run" / "results" / "dynamics.parquet")
    shutil.move(tmp_path / "run", tmp_path / "first")
    lines = (overflowing / "counts.jsonl").read_text().splitlines(keepends=True)
    (overflowing / "counts.jsonl").write_text("".join(lines[:-2]))
    assert raysweep("run", overflowing / "config.yaml").code == 0
    without = pd.read_parquet(tmp_path / "run" / "results" / "dynamics.parquet")
    np.testing.assert_allclose(found["delta"], without["delta"], atol=1e-6)
    both = [pd.read_parquet(tmp_path / run / "results" / "correlation.parquet") for run in ("first", "run")]
    assert both[0]["spearman"].item() == pytest.approx(both[1]["spearman"].item(), abs=1e-9)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_correlation_leaves_out_the_same_losses(value, world, raysweep, tmp_path, monkeypatch):
    from raysweep.engine import work

    def sweep(*args, **kwargs):
        losses = measured(*args, **kwargs)
        losses[1, 0] = value  # the first example of each chunk, under the first window
        return losses

    measured = work.sweep_losses
    monkeypatch.setattr(work, "sweep_losses", sweep)
    ran = raysweep("run", world / "config.yaml")
    assert ran.code == 0, ran.err
    losses = pd.read_parquet(tmp_path / "run" / "results" / "substitution.parquet")
    n = f"3 of {len(losses)} losses are"
    said = "NaN and left out" if np.isnan(value) else "infinite"
    assert f"m on d: {n} {said}." in ran.out.splitlines()
    shown = (
        "NaN and are skipped in every mean"
        if np.isnan(value)
        else "infinite. They count as the largest, and their windows have no intervals"
    )
    assert f"d on m: {n} {shown}" in page_of(tmp_path).text
    delta = pd.read_parquet(tmp_path / "run" / "results" / "dynamics.parquet")["delta"]
    mean = losses[losses["width"] == 1].groupby("centre")["loss"].mean()
    (row,) = pd.read_parquet(tmp_path / "run" / "results" / "correlation.parquet").to_dict("records")
    assert row["spearman"] == pytest.approx(delta.rank().corr(mean.reset_index(drop=True).rank()), abs=1e-12)


def test_no_loss_at_all_is_told(world, raysweep, monkeypatch):
    from raysweep.engine import work

    measured = work.sweep_losses
    monkeypatch.setattr(work, "sweep_losses", lambda *a, **k: measured(*a, **k) * np.nan)
    ran = raysweep("run", world / "config.yaml", "--set", "studies={substitution: {widths: [1]}}")
    assert ran.code == 0, ran.err
    said = ran.out.splitlines()
    assert said[0] == "m on d: no window has a loss."
    assert "m on d: 60 of 60 losses are NaN and left out." in said
