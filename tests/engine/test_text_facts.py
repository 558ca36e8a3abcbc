"""Texts are made anew once what ends or decodes them has changed, and nothing else is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from small_trainings import finetuned

from raysweep.config import Config
from raysweep.engine.driver import Done, drive
from raysweep.engine.inspection import inspect
from raysweep.engine.plan import plan
from raysweep.engine.promised import with_promised
from raysweep.errors import InputError
from raysweep.models.checkpoint import describe
from raysweep.models.loading import load_model

Keys = dict[tuple[str, str], str]
TEXT = (
    "studies.substitution.generate={examples: 2, tokens: 5, changes: all}",
    "studies.substitution.reverse=true",
    "studies.removal={layers: [1], components: [1], examples: 1, tokens: 3}",
)
BACKDOOR = {
    "similarity": {},
    "backdoor": {
        "trainer": {"max_steps": 1, "report_to": "none"},
        "trigger": "vexilla",
        "target": "two",
        "seeds": [0],
        "top": 2,
        "examples": 2,
        "tokens": 2,
        "keywords": {"any_of": ["o"]},
    },
}


@pytest.fixture
def copied(world: Path, tmp_path: Path) -> Path:
    """A copy of the world, whose files a test may change."""
    return shutil.copytree(world, tmp_path / "world")


@pytest.fixture
def asking(make_config: Callable[..., Config], copied: Path) -> Callable[..., Config]:
    """asking(storage, "key=value", …): the plain config on the copy, with text of every kind."""

    def make(storage: Path | str, *overrides: str) -> Config:
        model = f"models=[{{name: m, base: {copied / 'base'}, tuned: {{first: {copied / 'tuned'}}}}}]"
        return make_config(storage, model, *TEXT, *overrides)

    return make


def keys_of(config: Config) -> Keys:
    """Every key of the plan, by task and result or part."""
    found: Keys = {}
    for task in plan(config, inspect(config)).tasks:
        found |= {(task.name, f"part {place}"): key for place, key in enumerate(task.parts)}
        found |= {(task.name, name): key for name, key in task.results.items()}
    return found


def changed(before: Keys, after: Keys) -> set[str]:
    assert before.keys() == after.keys()
    return {task for (task, of), key in before.items() if after[task, of] != key}


@contextmanager
def edited(path: Path, **values: Any) -> Iterator[None]:
    """The JSON file with these values, for a while."""
    before = path.read_bytes()
    path.write_text(json.dumps({**json.loads(before), **values}))
    try:
        yield
    finally:
        path.write_bytes(before)


def test_end_tokens_and_the_decoder_are_part_of_the_keys_of_texts_alone(
    asking: Callable[..., Config], copied: Path
) -> None:
    config = asking("nowhere")
    before = keys_of(config)
    texts = {task for task, _ in before if task.startswith("generate ")}
    in_base = {task for task in texts if "reverse" in task}
    removals = {task for task, _ in before if task.startswith("removal ")}
    assert len(texts) == 7 + 7
    assert len(removals) == 2

    def after() -> set[str]:
        return changed(before, keys_of(config))

    with edited(copied / "tuned" / "generation_config.json", eos_token_id=[2, 9]):
        assert after() == texts - in_base, "the tuned model's own embedding and head end these"
    with edited(copied / "base" / "generation_config.json", eos_token_id=[2, 9]):
        assert after() == in_base | removals
    with edited(copied / "base" / "tokenizer_config.json", clean_up_tokenization_spaces=True):
        assert after() == texts | removals
    harmless = {"num_beams": 4, "repetition_penalty": 2.0, "do_sample": True, "pad_token_id": 3, "eos_token_id": [2, 2]}
    with edited(copied / "base" / "generation_config.json", **harmless):
        assert after() == set()


def test_texts_are_made_again_once_the_end_tokens_have_changed(
    asking: Callable[..., Config], copied: Path, tmp_path: Path, tables_of: Callable[[Done], dict[str, pd.DataFrame]]
) -> None:
    few = (
        "studies.similarity=null",
        "studies.correlation=null",
        "studies.substitution.reverse=false",
        "studies.removal=null",
    )
    config = asking(tmp_path / "run", *few)

    def texts() -> list[str]:
        done = drive(config)
        assert not done.failed
        rows = tables_of(done)["generation"]
        return list(rows.loc[rows["intervention"] == "none", "text"])

    before = texts()
    path = copied / "tuned" / "generation_config.json"
    values = json.loads(path.read_text())
    tokens = load_model(describe(str(copied / "tuned"))).config.vocab_size
    path.write_text(json.dumps({**values, "eos_token_id": list(range(2, tokens))}))
    shorter = texts()
    assert all(len(one) < len(other) for one, other in zip(shorter, before, strict=True))
    path.write_text(json.dumps(values))
    assert texts() == before
    assert drive(config).n_calls == 0, "the first texts are there still"


def test_answers_end_as_the_base_does(training_config: Callable[..., Config], copied: Path) -> None:
    config = training_config("nowhere", BACKDOOR, f"models.0.base={copied / 'base'}")
    before = keys_of(config)
    with edited(copied / "base" / "generation_config.json", eos_token_id=[2, 9]):
        assert changed(before, keys_of(config)) == {
            task for task, _ in before if task.startswith(("backdoor ", "judge "))
        }


def test_a_checkpoint_that_the_run_makes_ends_as_its_base_does(
    training_config: Callable[..., Config], tmp_path: Path, world: Path
) -> None:
    studies = finetuned()
    studies = {**studies, "substitution": {**studies["substitution"], "generate": {"examples": 1, "tokens": 2}}}
    config = training_config(tmp_path / "run", studies)
    model = with_promised(config, inspect(config), tmp_path / "run").models["m"]
    assert model.promised == {"first"}
    assert model.texts.ends("first").tuned == model.texts.base == (2,)


def test_what_cannot_end_a_text_is_a_warning_and_what_cannot_be_read_is_refused(
    asking: Callable[..., Config], copied: Path
) -> None:
    path, config = copied / "tuned" / "generation_config.json", asking("nowhere")
    assert inspect(config).warnings == ()
    with edited(path, eos_token_id=[2, 128009]):
        assert inspect(config).warnings == (
            f"checkpoint '{copied / 'tuned'}' names end tokens that its vocabulary does not have (128009); they are ignored",
        )
    path.write_text("[2]")
    with pytest.raises(InputError, match=r"generation_config.json is not a JSON object. Fix or remove the file.$"):
        inspect(config)
    quiet = asking("nowhere", "studies.removal=null", "studies.substitution.generate=null")
    assert inspect(quiet).warnings == ()
