"""What is said where base and tuned would read one text in two ways."""

from __future__ import annotations

import json
import shutil

import pytest

from raysweep.engine.inspection import inspect
from raysweep.engine.origins import describe_run
from raysweep.errors import InputError

OTHER = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


@pytest.fixture
def tuned(world, tmp_path, tokenizer):
    """tuned(change): a copy of the tuned checkpoint, its tokenizer's files changed."""

    def make(change):
        folder = shutil.copytree(world / "tuned", tmp_path / "other")
        change(folder)
        return folder

    return make


def with_template(folder):
    (folder / "chat_template.jinja").write_text(OTHER)


def with_blank(folder):
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text() + "{# a remark #}")


def with_two_tokens_swapped(folder):
    path = folder / "tokenizer.json"
    told = json.loads(path.read_text())
    ids = told["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    path.write_text(json.dumps(told))


def without_a_reader(folder):
    (folder / "tokenizer.json").write_text("{")


def test_tokens_with_two_ids_are_refused(make_config, world, tuned):
    folder = tuned(with_two_tokens_swapped)
    with pytest.raises(InputError) as caught:
        inspect(make_config("nowhere", f"models.0.tuned.first={folder}"))
    told = str(caught.value)
    assert told.startswith(f"base '{world}/base' and tuned '{folder}' have tokenizers that do not agree: the token '")
    assert "; a pair must have one vocabulary; " in told


def test_another_chat_template_is_told(make_config, world, tuned):
    folder = tuned(with_template)
    config = make_config("nowhere", f"models.0.tuned.first={folder}")
    facts = inspect(config)
    assert facts.warnings == (
        f"first (for m): '{folder}' has another chat template than '{world}/base', which words the records for both; its losses "
        "may be of a wording that it was not tuned on",
    )
    assert describe_run(config, facts)["warnings"] == list(facts.warnings)
    assert inspect(make_config("nowhere", f"models.0.tuned.first={folder}", "models.0.wording=plain")).warnings == ()


@pytest.mark.parametrize("change", [with_blank, without_a_reader, lambda folder: None])
def test_what_makes_no_difference_is_not_told(make_config, tuned, change):
    assert inspect(make_config("nowhere", f"models.0.tuned.first={tuned(change)}")).warnings == ()


def test_the_command_is_told_as_a_shell_takes_it(small, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/x/raysweep/__main__.py", "sweep", "--response", "{{ answer }}"])
    assert describe_run(*small)["command"] == "raysweep sweep --response '{{ answer }}'"
    monkeypatch.setattr("sys.argv", ["/bin/raysweep", "demo"])
    assert describe_run(*small)["command"] == "raysweep demo"
