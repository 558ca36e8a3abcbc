"""The configuration reference has every key of a config, and no other."""

from __future__ import annotations

import re

import config_reference
import pytest
import yaml
from config_examples import EXAMPLES
from pydantic import BaseModel, Field

from raysweep.config import Config, parse_config

PAGE = config_reference.markdown()
SECTIONS = dict(re.findall(r"^## [^\n]* \{ #(\S+) \}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
SCHEMA = Config.model_json_schema()
DEFINED = {"Config": SCHEMA, **SCHEMA["$defs"]}  # every section that JSON schemas for editors have
CLASSES = {section.__name__: section for section, _ in config_reference.sections()}


def described(section):
    """The keys that a section of the page shows: in headings, or as links to where they are described."""
    text = SECTIONS[config_reference.anchor_of(section)]
    headings = re.findall(r"^### `(\w+)` ", text, re.MULTILINE)
    links = [
        key for line in re.findall(r"^More keys, .*$", text, re.MULTILINE) for key in re.findall(r"\[`(\w+)`\]", line)
    ]
    return headings + links


@pytest.mark.parametrize("name", DEFINED)
def test_a_section_shows_its_keys_and_no_others(name):
    assert sorted(described(CLASSES[name])) == sorted(DEFINED[name]["properties"])


def test_every_section_of_the_page_is_one_of_the_config():
    known = {config_reference.anchor_of(CLASSES[name]) for name in DEFINED}
    assert set(SECTIONS) - known == {"training"}, "the keys that every training has"


def test_every_key_is_described_in_sentences():
    for name, section in DEFINED.items():
        for key, shape in section["properties"].items():
            text = shape.get("description", "")
            assert re.search(r"[.!]$", text), f"{name}.{key}: {text!r}"
            assert text[0] in "`δρ" or text[0].isupper(), f"{name}.{key}: {text!r}"


def test_every_link_of_the_page_leads_to_a_heading():
    anchors = set(re.findall(r"\{ #(\S+)[ }]", PAGE))
    assert len(anchors) == len(re.findall(r"\{ #(\S+)[ }]", PAGE)), "an anchor that two headings have"
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= anchors


@pytest.mark.parametrize("place", EXAMPLES)
def test_an_example_is_part_of_a_config(place):
    whole = yaml.safe_load(EXAMPLES[""])
    given = yaml.safe_load(EXAMPLES[place])
    values = {**whole, **given}
    names = [dataset["name"] for dataset in values["datasets"]]
    values["models"] = [{**model, "tuned": {names[0]: "./tuned"}} for model in values["models"]]
    if {"finetune", "adaptation", "backdoor"} & set(values["studies"]):
        values["models"] = [{"name": "llama", "base": "./base"}]
        values["datasets"] = [{**dataset, "train": {"path": "train.jsonl"}} for dataset in values["datasets"]]
    if published := values["studies"].get("correlation", {}).get("published"):
        assert published == {"llama": {names[0]: -0.47}}
    parse_config(values)
    assert not place or place.split("[")[0].split(".")[0] in given


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"type": "integer", "minimum": 1, "maximum": 10**9}, "integer ≥ 1"),
        ({"type": "integer", "minimum": 1, "maximum": 64}, "integer from 1 to 64"),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, "number > 0 and ≤ 1"),
        ({"enum": ["resident", "stream", "auto"]}, "`resident`, `stream` or `auto`"),
        ({"anyOf": [{"type": "integer", "minimum": 1}, {"const": "auto"}]}, "integer ≥ 1 or `auto`"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "text"),
        ({"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}, "list of lists of integers"),
        ({"type": "string", "pattern": "^a$", "examples": ["a"]}, "text such as `a`"),
        ({"type": "object", "additionalProperties": {"type": "boolean"}}, "mapping of names to `true` or `false`"),
        ({"type": "object", "additionalProperties": True}, "mapping"),
    ],
)
def test_a_schema_in_words(shape, words):
    assert config_reference.readable(shape) == words


def test_a_key_says_its_type_default_and_meaning():
    class Some(BaseModel):
        width: int = Field(default=5, ge=1, description="How wide.")

    lines = list(config_reference.key_lines(Some, "width", Some.model_fields["width"], anchor="some.width"))
    assert [line for line in lines if line] == [
        "### `width` { #some.width .key }",
        "integer ≥ 1 · default: `5`",
        "{ .type }",
        "How wide.",
    ]
