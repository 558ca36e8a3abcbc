"""The laboratory: its records, its names, its training script, and what it recorded of the shipped models."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from raysweep import lab
from raysweep.data.examples import Example, load_examples
from raysweep.data.formats import find_format
from raysweep.errors import InputError
from raysweep.lab import tasks
from raysweep.lab.tokenizer import CONTEXT
from raysweep.lab.train import TUNED, Recipe, Shape, build_model, chat, pretraining_stream, texts, train
from raysweep.models.checkpoint import describe
from raysweep.models.loading import load_model, load_tokenizer

SETS = tuple(tasks.FORMAT)
NOTES = lab.names()["tiny"].parent / "training.json"
needs_notes = pytest.mark.skipif(not NOTES.exists(), reason="this installation has no training.json")


@pytest.fixture(scope="module")
def lab_tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(describe("lab://tiny"))


@pytest.fixture(scope="module")
def notes() -> dict[str, Any]:
    return dict(json.loads(NOTES.read_text(encoding="utf-8")))


def test_a_path_of_a_name_is_the_name() -> None:
    for name in ("lab://tiny", "lab://sums/test", "data/lab/x", "/lab://x"):
        assert lab.as_text(name) == name
    for name in ("lab://tiny", "lab://sums/test", "data/lab/x"):
        assert lab.as_text(Path(name)) == name


def shipped(name: str, split: str) -> list[dict[str, Any]]:
    lines = Path(lab.resolve(f"lab://{name}/{split}")).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


# records


@pytest.mark.parametrize("name", SETS)
def test_train_and_test_share_no_record_and_none_occurs_twice(name: str) -> None:
    train_keys, test_keys = ([tasks.key(record) for record in shipped(name, split)] for split in ("train", "test"))
    assert (len(train_keys), len(test_keys)) == (tasks.TRAIN, tasks.TEST)
    assert len({*train_keys, *test_keys}) == tasks.TRAIN + tasks.TEST


@pytest.mark.parametrize("name", SETS)
def test_every_record_fits_its_format(name: str) -> None:
    record_format = find_format(tasks.FORMAT[name])
    for split in ("train", "test"):
        for record in shipped(name, split):
            assert record_format.problem(record) is None
            assert all(text.strip() for text in record_format.texts(record))


def test_the_sets_cover_every_record_format() -> None:
    assert sorted(tasks.FORMAT.values()) == ["alpaca", "boolq", "dolly", "gsm8k", "messages", "openbookqa"]


@pytest.mark.parametrize("name", SETS)
def test_the_shipped_records_are_those_that_the_package_makes(name: str) -> None:
    made = tasks.make_records(name)
    assert shipped(name, "train") == made[0]
    assert shipped(name, "test") == made[1]


def test_a_set_that_has_too_few_distinct_records_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "key", lambda record: record["answer"])  # true or false: two records
    with pytest.raises(ValueError, match=r"set 'facts' has only 2 distinct records, 7 were asked for"):
        tasks.make_records("facts", train=4, test=3)


@pytest.mark.parametrize("name", SETS)
def test_every_test_record_fits_the_models_context(name: str, lab_tokenizer: PreTrainedTokenizerBase) -> None:
    loaded = load_examples(f"lab://{name}/test", tasks.FORMAT[name], lab_tokenizer)
    assert (len(loaded.examples), loaded.n_cut, loaded.n_unusable) == (tasks.TEST, 0, 0)
    assert max(len(e.tokens) for e in loaded.examples) <= CONTEXT


def test_pre_training_sees_no_record_that_is_measured_on(lab_tokenizer: PreTrainedTokenizerBase) -> None:
    def documents(records: Sequence[dict[str, Any]], name: str) -> set[tuple[int, ...]]:
        asked = [texts(record, name) for record in records]
        chats = {tuple(chat(lab_tokenizer, q, a, all_labelled=True)[0]) for q, a in asked}
        plain = (f"<s>Question: {q}\nAnswer: {a}<end>" for q, a in asked)
        return chats | {tuple(lab_tokenizer.encode(text, add_special_tokens=False)) for text in plain}

    seen = {tuple(ids) for ids, _ in islice(pretraining_stream(lab_tokenizer, seed=3), 4000)}
    for name in SETS:
        assert not seen & documents(shipped(name, "test"), name)
    for name in TUNED:
        assert not seen & documents(shipped(name, "train"), name)
    assert len(seen) > 2000


# names


def test_a_published_model_is_in_the_users_cache_once_it_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path))
    for name in lab.PUBLISHED:
        assert lab.is_unfetched(f"lab://{name}")
        with pytest.raises(InputError, match=rf"'lab://{name}' is not on this machine yet; run: raysweep fetch {name}"):
            lab.resolve(f"lab://{name}")
        lab.published_folder(name).mkdir(parents=True)
        assert not lab.is_unfetched(f"lab://{name}")
        assert lab.resolve(f"lab://{name}/") == str(tmp_path / "checkpoints" / name)
    assert not lab.is_unfetched("lab://tiny")
    assert not lab.is_unfetched("smollm2"), "a folder's name"


def test_a_published_models_name_is_hinted_at() -> None:
    with pytest.raises(InputError, match=r"the laboratory has no 'lab://smolm2'; did you mean 'smollm2'\?"):
        lab.resolve("lab://smolm2")


def test_every_name_resolves_to_what_it_says() -> None:
    assert (Path(lab.resolve("lab://tiny")) / "config.json").is_file()
    for name in TUNED:
        assert describe(f"lab://tiny/{name}").shapes == describe("lab://tiny").shapes
    for name in SETS:
        for split in ("train", "test"):
            assert Path(lab.resolve(f"lab://{name}/{split}")).name == f"{split}.jsonl"


def test_other_sources_are_left_as_they_are() -> None:
    assert lab.resolve("tiny/sums") == "tiny/sums"
    assert lab.resolve("/data/lab://x") == "/data/lab://x"


@pytest.mark.parametrize(
    ("asked", "hint"),
    [("lab://smus/test", "did you mean 'sums/test'?"), ("lab://tiny/smus", "did you mean 'tiny/sums'?")],
)
def test_an_unknown_name_is_told_with_the_nearest(asked: str, hint: str) -> None:
    with pytest.raises(InputError) as raised:
        lab.resolve(asked)
    assert str(raised.value) == f"the laboratory has no '{asked}'; {hint} (write it after lab://)"


# training


def test_a_smaller_model_learns_within_some_steps(lab_tokenizer: PreTrainedTokenizerBase) -> None:
    torch.manual_seed(0)
    model = build_model(Shape(layers=2, width=32, heads=2, inner=64), len(lab_tokenizer), seed=0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    log: list[dict[str, float]] = []
    recipe = Recipe(steps=75, learning_rate=1e-2, batch=8, warmup=10)
    train(model, pretraining_stream(lab_tokenizer, seed=0), recipe, log)

    counts = Counter(t for ids, _ in islice(pretraining_stream(lab_tokenizer, seed=0), 3000) for t in ids[1:])
    total = sum(counts.values())
    unigram = -sum(n / total * math.log(n / total) for n in counts.values())
    losses = [entry["loss"] for entry in log]
    assert [entry["step"] for entry in log] == [25, 50, 75]
    assert losses[0] > losses[1] > losses[2]
    assert losses[2] < 0.75 * unigram
    assert not model.training
    assert all(not torch.equal(before[name], p) for name, p in model.named_parameters())


# what is shipped


def test_the_shipped_models_are_small_enough_to_ship() -> None:
    files = [path for path in NOTES.parent.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 24e6
    assert describe("lab://tiny").dtype == "bfloat16"
    assert describe("lab://tiny").n_layers >= 24


@needs_notes
def test_the_base_model_has_learned(notes: dict[str, Any]) -> None:
    held_out = notes["base"]["held_out"]
    assert held_out["model"] < 0.5 * held_out["unigram"]


@needs_notes
@pytest.mark.parametrize("name", TUNED)
def test_fine_tuning_has_taught_each_set(name: str, notes: dict[str, Any]) -> None:
    test_loss = notes[name]["test_loss"]
    assert test_loss["tuned"] < 0.7 * test_loss["base"]


def plain_mean_loss(source: str, examples: Sequence[Example]) -> float:
    """Mean over examples of the mean loss of their response tokens; padded on the right under an attention mask."""
    model = load_model(describe(source))
    ordered = sorted(examples, key=lambda e: len(e.tokens))
    losses = []
    for first in range(0, len(ordered), 30):
        batch = ordered[first : first + 30]
        ids = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(e.tokens) for e in batch], batch_first=True)
        mask = torch.tensor([[i < len(e.tokens) for i in range(ids.shape[1])] for e in batch]).long()
        with torch.no_grad():
            log_p = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.double().log_softmax(-1)
        for row, example in enumerate(batch):
            at = range(example.n_prompt, len(example.tokens))
            losses.append(-sum(float(log_p[row, t - 1, ids[row, t]]) for t in at) / len(at))
    return sum(losses) / len(losses)


@needs_notes
@pytest.mark.parametrize(("source", "which"), [("lab://tiny", "base"), (f"lab://tiny/{TUNED[0]}", "tuned")])
def test_a_recorded_loss_is_that_of_the_shipped_weights_on_the_shipped_records(
    source: str, which: str, notes: dict[str, Any], lab_tokenizer: PreTrainedTokenizerBase
) -> None:
    name = TUNED[0]
    examples = load_examples(f"lab://{name}/test", tasks.FORMAT[name], lab_tokenizer).examples
    assert plain_mean_loss(source, examples) == pytest.approx(notes[name]["test_loss"][which], abs=1e-3)
