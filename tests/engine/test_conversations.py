"""What is said of conversations that a chat template does not read, or cuts: with counts, and before anything runs."""

from __future__ import annotations

import json
import shutil

import pytest

from raysweep.engine.inspection import inspect
from raysweep.engine.origins import dataset_records
from raysweep.report.records_words import records_warnings

CUTS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content[:12] if m.role == 'assistant' else m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def talk(tmp_path):
    """Four conversations, of which two have a long answer, three a name of the user's, and one tools."""
    path = tmp_path / "talk.jsonl"
    asked = [{"role": "user", "content": "one?"}, *[{"role": "user", "content": "two?", "name": "Ann"}] * 3]
    answers = ["one two three four", "two", "one two three four", "two"]
    records = [
        {"messages": [user, {"role": "assistant", "content": answer}]}
        for user, answer in zip(asked, answers, strict=True)
    ]
    records[0]["tools"] = [{"type": "function", "function": {"name": "sing"}}]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def cutting(world, tmp_path):
    """The base, with a template that cuts answers."""
    folder = shutil.copytree(world / "base", tmp_path / "base")
    (folder / "chat_template.jinja").write_text(CUTS)
    return folder


UNREAD = "first (for m): the prompt template does not use these, so they are ignored: tools (1 record), name of user messages (3 records)"


def test_keys_and_answers_are_counted_per_model_and_data_set(make_config, world, talk, cutting):
    own = ["datasets.0.format=messages", f"datasets.0.path={talk}", "models.0.tuned={}", "studies={similarity: {}}"]
    config = make_config("nowhere", *own)
    facts = inspect(config)
    assert facts.warnings == (UNREAD,)
    assert facts.cells["m", "first"].n_answer_cut == 0
    config = make_config("nowhere", *own, f"models.0.base={cutting}")
    facts = inspect(config)
    assert facts.cells["m", "first"].n_answer_cut == 2
    second = map(json.loads, (world / "second.jsonl").read_text().splitlines())
    longer = sum(len(record["answer"]) > 12 for record in second)
    assert records_warnings(dataset_records(config, facts), facts.warnings) == [
        UNREAD,
        "first (for m): 2 of 4 examples lose a part of their answer, because the chat template drops or rewrites it. "
        "The loss covers only the rest",
        f"second (for m): {longer} of 6 examples lose a part of their answer, because the chat template drops or "
        "rewrites it. The loss covers only the rest",
    ]


def test_answers_to_train_on_are_counted_too(training_config, talk, cutting):
    config = training_config(
        "nowhere",
        {"finetune": {"layers": [0], "trainer": {"max_steps": 1}}},
        f"models.0.base={cutting}",
        f"datasets.0.train={{path: {talk}, format: messages}}",
    )
    said = inspect(config).warnings
    assert said[0] == UNREAD
    assert (
        "first (for m): 2 of 4 training examples lose a part of their answer, which the chat template leaves out or "
        "rewrites" in said
    )
