"""Long texts are tokenized as far as they are needed, and give the same tokens as the whole."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import numpy as np
import pytest

from raysweep.data import long_texts
from raysweep.data.examples import Room, load_examples
from raysweep.data.long_texts import SHORT, encode_enough
from raysweep.data.wording import find_wording
from raysweep.errors import InputError
from raysweep.models.checkpoint import describe
from raysweep.models.loading import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(describe("lab://tiny"))


def words(rng: random.Random, n: int) -> str:
    some = ["two", "plus", "  ", "\n", "three", "é", "日本", "x" * 50, "?", "a,b", "\t", "ﷺ"]
    return " ".join(rng.choice(some) for _ in range(n))


@pytest.mark.parametrize("wording", ["chat", "plain", "llama2"])
@pytest.mark.parametrize("most", [1, 20, 150])
def test_the_tokens_are_those_of_the_whole_text(wording, most, tokenizer, monkeypatch):
    monkeypatch.setattr(long_texts, "SHORT", 500)
    rng, chosen = random.Random(f"{wording} {most}"), find_wording(wording)

    def encode(texts):
        return chosen.encode(texts, tokenizer)

    for lengths in ((3000, 10), (10, 3000), (1500, 1500), (5, 5)):
        texts = words(rng, lengths[0]), words(rng, lengths[1])
        (tokens, n_prompt), partly = encode_enough(texts, encode, most)
        whole, whole_prompt = encode(texts)
        assert partly == (sum(map(len, texts)) > 500)
        assert np.array_equal(tokens[:most], whole[:most])
        assert min(n_prompt, most) == min(whole_prompt, most)
        assert (len(tokens) > most) == (len(whole) > most)


def test_a_text_without_an_end_of_a_word_is_tokenized_as_far_as_two_lengths_agree(tokenizer):
    lengths = []

    def encode(texts):
        lengths.append(len("".join(texts)))
        return np.arange(lengths[-1] % 1000 + 200), 0  # other tokens at each length

    texts = ("a" * (5 * SHORT + 1), "")
    (tokens, _), partly = encode_enough(texts, encode, 500)
    assert not partly
    assert lengths[-1] == len(texts[0])
    assert len(tokens) == lengths[-1] % 1000 + 200


def records(path: Path, question: str, answer: str) -> str:
    path.write_text(json.dumps({"question": question, "answer": answer}) + "\n")
    return str(path)


def test_a_record_longer_than_the_context_is_refused_without_reading_its_end(tmp_path, tokenizer):
    for texts in (("two " * 100_000, "five"), ("two", "five " * 100_000)):
        source = records(tmp_path / "x.jsonl", *texts)
        with pytest.raises(
            InputError, match=r"longer than the context of 'tiny', 64 tokens; .* has more than \d+. Set"
        ):
            load_examples(source, "gsm8k", tokenizer, room=Room("tiny", 64))


def test_a_long_record_is_cut_as_before(tmp_path, tokenizer):
    source = records(tmp_path / "x.jsonl", "two", "five " * 100_000)
    found = load_examples(source, "gsm8k", tokenizer, max_tokens=32)
    short = load_examples(records(tmp_path / "y.jsonl", "two", "five " * 100), "gsm8k", tokenizer, max_tokens=32)
    assert found.examples[0].tokens.tolist() == short.examples[0].tokens.tolist()
    assert found.n_cut == short.n_cut == 1
    with pytest.raises(InputError, match="none of its 1 records has a prompt token and a response token"):
        load_examples(records(tmp_path / "z.jsonl", "two " * 100_000, "five"), "gsm8k", tokenizer, max_tokens=32)


def test_a_text_that_has_to_be_tokenized_as_a_whole_is_limited(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setenv("RAYSWEEP_MAX_TEXT_CHARS", "1000")
    source = records(tmp_path / "x.jsonl", "two", "five " * 1000)
    with pytest.raises(InputError, match=r"x.jsonl, line 1: .* has 50\d\d characters, .* RAYSWEEP_MAX_TEXT_CHARS"):
        load_examples(source, "gsm8k", tokenizer)


def test_a_record_of_megabytes_takes_no_time(tmp_path, tokenizer):
    source = records(tmp_path / "x.jsonl", "two", "five " * 500_000)
    before = time.process_time()
    load_examples(source, "gsm8k", tokenizer, max_tokens=32)
    assert time.process_time() - before < 4  # all of it takes a quarter of a minute
