"""The config: every file and template loads, defaults are spelled out, and a file is named in its errors."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_args

import pytest
import yaml
from plain_config import PLAIN, refusal

import raysweep
from raysweep.config import Config, load_config, parse_config
from raysweep.config_similarity import Metric, SimilarityConfig
from raysweep.errors import InputError, RenamedWarning
from raysweep.numerics.measures.registry import DEFAULTS, MEASURES
from raysweep.recipes import TEMPLATE

CONFIGS = sorted((Path(raysweep.__file__).parents[1] / "configs").glob("*.yaml"))


def test_the_template_is_a_config():
    config = parse_config(yaml.safe_load(TEMPLATE))
    assert config.models[0].base == "lab://tiny"
    assert config.studies.substitution.widths == [5]


def test_the_commented_lines_of_the_template_are_right_too():
    uncommented = TEMPLATE.replace("# - {name: mine", "- {name: mine")
    for key in ("generate", "stop", "components", "neighbours", "variance"):
        uncommented = uncommented.replace(f"# {key}:", f"{key}:")
    config = parse_config(yaml.safe_load(uncommented))
    assert config.datasets[1].format == "columns"
    assert (config.studies.substitution.generate.examples, config.studies.substitution.generate.tokens) == (3, 32)
    assert config.studies.substitution.stop.top == 3
    assert config.studies.similarity == SimilarityConfig(), "the commented lines show the defaults"


@pytest.mark.parametrize("path", CONFIGS, ids=[path.name for path in CONFIGS])
def test_every_shipped_config_is_valid(path):
    config = load_config(path)
    assert config.name == path.stem
    assert config.storage == f"runs/{path.stem}"


def test_there_are_shipped_configs():
    assert CONFIGS


def test_yaml_comes_back_the_same():
    config = parse_config(PLAIN, overrides=["studies.substitution.generate={}", "execution.device_map={a: 0}"])
    written = config.to_yaml()
    assert parse_config(yaml.safe_load(written)) == config
    assert yaml.safe_load(written)["execution"]["chunk"] == 32, "defaults are spelled out"


def test_defaults():
    config = parse_config(PLAIN)
    assert config.models[0].template == "chat"
    assert config.models[0].dtype == "auto"
    assert config.studies.similarity.metrics == ["cka_linear"]
    assert (config.studies.similarity.pooling, config.studies.similarity.neighbourhood) == ("last", 3)
    assert (config.studies.correlation.resamples, config.studies.correlation.seed) == (1000, 0)
    assert config.execution.model_dump() == {
        "executor": "local",
        "address": None,
        "dashboard_host": "127.0.0.1",
        "workers": "auto",
        "cpus_per_worker": 1,
        "gpus_per_worker": "auto",
        "attempts": 3,
        "call_deadline": 1800.0,
        "resident": 2,
        "device": "auto",
        "device_map": None,
        "batch_tokens": "auto",
        "chunk": 32,
        "fuse": True,
        "residency": "auto",
        "memory": "auto",
        "spill": None,
        "report_to": [],
    }


def test_the_old_name_of_the_prompt_template_still_works():
    """With one warning for all models; the config is written with the new name."""
    models = [{**PLAIN["models"][0], "name": name, "wording": "plain"} for name in ("a", "b")]
    with pytest.warns(RenamedWarning, match=r"^config key `wording` is now called `template`; both work$") as warned:
        config = parse_config(PLAIN | {"models": models})
    assert len(warned) == 1
    assert [model.template for model in config.models] == ["plain", "plain"]
    assert "wording" not in config.to_yaml()


def test_both_names_of_the_prompt_template_are_refused():
    model = {**PLAIN["models"][0], "wording": "plain", "template": "chat"}
    assert refusal(values=PLAIN | {"models": [model]}) == (
        "models[0] has template: 'chat' and wording: 'plain'; wording is the old name of template, so keep only template"
    )


def test_when_to_stop():
    config = parse_config(PLAIN)
    assert config.studies.substitution.stop is None
    stop = parse_config(PLAIN, overrides=["studies.substitution.stop.top=3"]).studies.substitution.stop
    assert stop.model_dump() == {"half_width": None, "top": 3, "confidence": 0.95, "seed": 0}
    stop = parse_config(PLAIN, overrides=["studies.substitution.stop={half_width: 1e-3}"]).studies.substitution.stop
    assert (stop.half_width, stop.top) == (0.001, None)


def test_a_study_that_is_left_out_is_not_run():
    config = parse_config({**PLAIN, "studies": {"similarity": {}}})
    assert config.studies.substitution is None
    assert config.studies.correlation is None


def test_a_file_is_named_in_its_errors(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump({**PLAIN, "storge": 1}))
    with pytest.raises(InputError) as caught:
        load_config(path)
    assert str(caught.value) == f"{path}: unknown key 'storge'; did you mean 'storage'?"
    path.write_text(yaml.safe_dump(PLAIN))
    assert load_config(str(path), ["name=other"]) == parse_config({**PLAIN, "name": "other"})


def test_a_file_that_is_missing_or_no_yaml(tmp_path):
    path = tmp_path / "my.yaml"
    with pytest.raises(InputError) as caught:
        load_config(path)
    assert str(caught.value) == f"config '{path}' does not exist; `raysweep init` writes one to start from"
    for content in (b"a: [1", b"\xff\xfe\x00"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="is not YAML: "):
            load_config(path)


def test_a_key_that_is_given_twice_is_not_lost(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("name: a\ndatasets: []\nmodels:\n  - {tuned: {d: one, d: two}}\n")
    with pytest.raises(InputError) as caught:
        load_config(path)
    assert (
        str(caught.value) == f"config '{path}' is not YAML: key 'd' is given twice, in line 4 and in line 4; remove one"
    )
    told = "--set name={a: 1, a: 2}: the value is not YAML: key 'a' is given twice, in line 1 and in line 1; remove one"
    assert refusal("name={a: 1, a: 2}") == told
    merged = yaml.safe_dump(PLAIN) + "storage_options: {<<: &one {a: 1}, <<: {b: 2}, a: 3}\n"
    path.write_text(merged.replace("runs/mine", "s3://b/r"))
    assert load_config(path).storage_options == {"a": 3, "b": 2}, "what is merged may be given again"


def test_a_config_cannot_be_changed():
    config = parse_config(PLAIN)
    with pytest.raises(ValueError, match="frozen"):
        config.name = "other"
    assert isinstance(config, Config)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: 2001-13-45", r"is not YAML: month must be in 1\.\.12"),
        (f"name: {'1' * 5000}", r"is not YAML: Exceeds the limit"),
        ("[" * 3000, r"is not YAML: maximum recursion depth exceeded"),
        ("name: &a [*a]", r": key 'name': expected text, not \[\[\.\.\.\]\]"),
        ("&a {name: x, models: *a}", r": key 'models': expected a list"),
    ],
)
def test_yaml_at_its_worst(text, told, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match=rf"c\.yaml'? ?{told}|c\.yaml: .*\n.*{told}"):
        load_config(tmp_path / "c.yaml")


def test_every_measure_can_be_asked_for_and_has_the_registry_s_defaults():
    similarity = parse_config(PLAIN | {"studies": {"similarity": {"metrics": list(MEASURES)}}}).studies.similarity
    assert get_args(Metric) == tuple(similarity.metrics) == tuple(MEASURES)
    assert (similarity.components, similarity.neighbours, similarity.variance) == dataclasses.astuple(DEFAULTS)


def test_a_run_may_be_stored_at_a_url():
    config = parse_config(
        PLAIN, overrides=["storage=s3://bucket/run", "storage_options.endpoint_url=http://localhost:9000"]
    )
    assert config.storage == "s3://bucket/run"
    assert config.storage_options == {"endpoint_url": "http://localhost:9000"}
    assert parse_config(yaml.safe_load(config.to_yaml())) == config


@pytest.mark.parametrize(
    ("execution", "device", "spread"),
    [
        ({"executor": "ray", "gpus_per_worker": 2}, "cuda", "auto"),
        ({"executor": "ray", "gpus_per_worker": 2, "device_map": "balanced"}, "cuda", "balanced"),
        ({"executor": "ray", "gpus_per_worker": 2}, "cpu", None),
        ({"executor": "ray", "gpus_per_worker": 1}, "cuda", None),
        ({"executor": "ray"}, "cuda", None),
    ],
)
def test_a_worker_of_several_gpus_spreads_its_models_over_them(execution, device, spread):
    assert parse_config({**PLAIN, "execution": execution}).execution.spread_on(device) == spread
