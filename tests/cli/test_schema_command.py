"""`raysweep schema` and what `raysweep init` writes: everything that the config accepts is valid in the schema."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from command_line import Result, content

import raysweep as package
from raysweep.config import parse_config
from raysweep.config_schema import FILE, config_schema
from raysweep.recipes import MINIMAL, TEMPLATE

CONFIGS = sorted((Path(package.__file__).parents[1] / "configs").rglob("*.yaml"))


@pytest.fixture(scope="module")
def schema():
    return jsonschema.Draft202012Validator(config_schema())


def problems(schema, values):
    return [f"{error.json_path}: {error.message[:200]}" for error in schema.iter_errors(values)]


def test_it_is_a_schema_with_a_title(schema):
    schema.check_schema(schema.schema)
    assert schema.schema["$schema"].startswith("https://json-schema.org/")
    assert schema.schema["title"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_of_the_repository_is_valid(schema, path):
    assert problems(schema, yaml.safe_load(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("text", [TEMPLATE, MINIMAL], ids=["template", "minimal"])
def test_what_init_writes_is_valid(schema, text):
    assert problems(schema, yaml.safe_load(text)) == []
    config = parse_config(yaml.safe_load(text))
    assert problems(schema, json.loads(config.model_dump_json())) == [], "as a run folder keeps it"


@pytest.mark.parametrize(
    "change",
    [
        {"studies": {"substitution": {"widths": "all"}}},
        {"execution": {"call_deadline": "never"}},
        {"execution": {"workers": "auto", "memory": "1.5GB", "gpus_per_worker": 0.5}},
        {"storage_mode": "700"},
    ],
)
def test_special_values_are_valid(schema, change):
    values = yaml.safe_load(MINIMAL) | change
    parse_config(values)
    assert problems(schema, values) == []


@pytest.mark.parametrize("name", ["wording", "template"])
def test_the_old_name_of_the_prompt_template_is_valid_too(schema, name):
    values = yaml.safe_load(MINIMAL)
    values["models"][0][name] = "plain"
    assert problems(schema, values) == []
    assert schema.schema["$defs"]["ModelConfig"]["properties"][name].get("deprecated", False) == (name == "wording")


@pytest.mark.parametrize(
    "change",
    [
        {"nmae": "x"},
        {"studies": {"substitution": {"widths": "some"}}},
        {"storage": 3},
        {"execution": {"executor": "slurm"}},
    ],
)
def test_what_the_config_refuses_is_not_valid(schema, change):
    assert problems(schema, yaml.safe_load(MINIMAL) | change) != []


def test_schema_prints_it_or_writes_a_file(tmp_path, raysweep):
    printed = raysweep("schema")
    assert (printed.code, json.loads(printed.out)) == (0, config_schema())
    assert raysweep("schema", "--out", tmp_path / "s.json") == Result(0, f"wrote {tmp_path / 's.json'}\n", "")
    assert (tmp_path / "s.json").read_text(encoding="utf-8") == printed.out
    refused = raysweep("schema", "--out", tmp_path)
    assert refused == Result(2, "", f"error: '{tmp_path}' cannot be written: Is a directory; give another path\n")


@pytest.mark.parametrize(("options", "text"), [([], TEMPLATE), (["--minimal"], MINIMAL)])
def test_init_names_the_schema_in_its_first_line(options, text, tmp_path, raysweep):
    (tmp_path / FILE).write_text("an older release's")
    assert raysweep("init", tmp_path / "my.yaml", *options).code == 0
    first, rest = (tmp_path / "my.yaml").read_text(encoding="utf-8").split("\n", 1)
    assert (first, rest) == (f"# yaml-language-server: $schema={FILE}", text)
    assert json.loads((tmp_path / FILE).read_text(encoding="utf-8")) == config_schema()


def test_init_without_a_schema(tmp_path, raysweep):
    path = tmp_path / "my.yaml"
    assert raysweep("init", path, "--no-schema", "--minimal") == Result(
        0, f"wrote {path}; next: raysweep plan {path}\n", ""
    )
    assert path.read_text(encoding="utf-8") == MINIMAL
    assert content(tmp_path) == ["my.yaml"]
