"""The config: every file and template loads, defaults are spelled out, and every mistake is told with its key."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_args

import pytest
import yaml

import raysweep
from raysweep.config import Config, load_config, parse_config
from raysweep.config_overrides import parse_options
from raysweep.config_similarity import Metric, SimilarityConfig
from raysweep.errors import InputError
from raysweep.numerics.measures.registry import DEFAULTS, MEASURES
from raysweep.recipes import TEMPLATE

CONFIGS = sorted((Path(raysweep.__file__).parents[1] / "configs").glob("*.yaml"))

PLAIN = {
    "name": "mine",
    "models": [{"name": "m", "base": "b", "tuned": {"first": "t"}}],
    "datasets": [
        {"name": "first", "path": "a.jsonl", "format": "dolly"},
        {"name": "second", "path": "c.jsonl", "format": "boolq"},
    ],
    "studies": {"substitution": {}, "similarity": {}, "correlation": {}},
    "storage": "runs/mine",
}


def refusal(*overrides: str, values: object = PLAIN) -> str:
    """What is said of the plain config with these overrides, without the place it came from."""
    with pytest.raises(InputError) as caught:
        parse_config(values, overrides=overrides)
    return str(caught.value).replace("config: ", "")


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
    assert config.models[0].wording == "chat"
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


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("nmae=x", "unknown key 'nmae'; did you mean 'name'?"),
        ("zzz=1", "unknown key 'zzz'; known: datasets, execution, models, name, storage, storage_options, studies"),
        ("models.0.tunned={}", "unknown key 'models[0].tunned'; did you mean 'tuned'?"),
        ("datasets.1.fromat=x", "unknown key 'datasets[1].fromat'; did you mean 'format'?"),
        ("studies.similarty={}", "unknown key 'studies.similarty'; did you mean 'similarity'?"),
        ("studies.substitution.width=5", "unknown key 'studies.substitution.width'; did you mean 'widths'?"),
        (
            "studies.substitution.generate={example: 1}",
            "unknown key 'studies.substitution.generate.example'; did you mean 'examples'?",
        ),
        (
            "studies.substitution.stop={top: 3, confidance: 0.9}",
            "unknown key 'studies.substitution.stop.confidance'; did you mean 'confidence'?",
        ),
        ("studies.similarity.neighborhood=3", "unknown key 'studies.similarity.neighborhood'; did you mean 'neighbourhood'?"),
        ("studies.correlation.resample=9", "unknown key 'studies.correlation.resample'; did you mean 'resamples'?"),
        ("execution.batch=9", "unknown key 'execution.batch'; did you mean 'batch_tokens'?"),
    ],
)  # fmt: skip
def test_a_misspelt_key_names_the_nearest(override, told):
    assert refusal(override) == told


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("name=3", "key 'name': text belongs here, not 3"),
        ("name=a/b", "key 'name': 'a/b' is no name; use letters, digits and . _ -, a letter or digit first"),
        ("models=3", "key 'models': a list belongs here, not 3"),
        ("models=[]", "key 'models': give at least one item"),
        ("models=[x]", "key 'models[0]': a mapping of keys belongs here, not 'x'"),
        ("models.0.dtype=float8", "key 'models[0].dtype': 'float8' is not 'auto', 'float32', 'bfloat16' or 'float16'"),
        ("models.0.tuned=x", "key 'models[0].tuned': a mapping of keys belongs here, not 'x'"),
        ("models.0.tuned={first: 3}", "key 'models[0].tuned.first': text belongs here, not 3"),
        (
            "models.0.tuned={a b: x}",
            "key 'models[0].tuned.a b': 'a b' is no name; use letters, digits and . _ -, a letter or digit first",
        ),
        ("datasets.0.limit=0", "key 'datasets[0].limit': give 1 or more, not 0"),
        ("datasets.0.limit=1.5", "key 'datasets[0].limit': a whole number belongs here, not 1.5"),
        ("datasets.0.limit=true", "key 'datasets[0].limit': a whole number belongs here, not True"),
        ("datasets.0.limit='8'", "key 'datasets[0].limit': a whole number belongs here, not '8'"),
        ("studies=", "key 'studies': a mapping of keys belongs here, not nothing"),
        ("studies.substitution.widths=5", "key 'studies.substitution.widths': a list belongs here, not 5"),
        ("studies.substitution.widths=[]", "key 'studies.substitution.widths': give at least one item"),
        ("studies.substitution.widths=[2, 0]", "key 'studies.substitution.widths[1]': give 1 or more, not 0"),
        (
            "studies.similarity.metrics=[cka]",
            f"key 'studies.similarity.metrics[0]': 'cka' is not {', '.join(map(repr, list(MEASURES)[:-1]))} or 'cosine'",
        ),
        ("studies.similarity.components=0", "key 'studies.similarity.components': give 1 or more, not 0"),
        ("studies.similarity.neighbours=0", "key 'studies.similarity.neighbours': give 1 or more, not 0"),
        (
            "studies.similarity.variance=0",
            "key 'studies.similarity.variance': input should be greater than 0, not 0",
        ),
        ("studies.similarity.pooling=max", "key 'studies.similarity.pooling': 'max' is not 'first', 'last' or 'mean'"),
        (
            "studies.similarity.metrics=[cka_rbf, cka_linear, cka_rbf]",
            "key 'studies.similarity.metrics': 'cka_rbf' is named twice; name each metric once",
        ),
        (
            "studies.similarity.neighbourhood=4",
            "key 'studies.similarity.neighbourhood': a neighbourhood has a layer in its middle, so it is odd; 4 is even",
        ),
        (
            "studies.substitution.stop={}",
            "studies.substitution.stop: has neither half_width nor top; give one: {half_width: 0.02} in nats, or {top: 3}, a "
            "number of windows",
        ),
        (
            "studies.substitution.stop={half_width: 0.02, top: 3}",
            "studies.substitution.stop: half_width is 0.02 and top is 3; give one of them",
        ),
        ("studies.substitution.stop={top: 0}", "key 'studies.substitution.stop.top': give 1 or more, not 0"),
        (
            "studies.substitution.stop={half_width: 0}",
            "key 'studies.substitution.stop.half_width': give a number of nats above 0, such as 0.02, not 0",
        ),
        (
            "studies.substitution.stop={half_width: narrow}",
            "key 'studies.substitution.stop.half_width': give a number of nats above 0, such as 0.02, not 'narrow'",
        ),
        (
            "studies.substitution.stop={half_width: .inf}",
            "key 'studies.substitution.stop.half_width': give a number of nats above 0, such as 0.02, not inf",
        ),
        (
            "studies.substitution.stop={top: 3, confidence: 95}",
            "key 'studies.substitution.stop.confidence': give a confidence from 0.5 to below 1, such as 0.95, not 95",
        ),
        (
            "studies.substitution.stop={top: 3, confidence: true}",
            "key 'studies.substitution.stop.confidence': give a confidence from 0.5 to below 1, such as 0.95, not True",
        ),
        ("studies.substitution.stop={top: 3, seed: -1}", "key 'studies.substitution.stop.seed': give 0 or more, not -1"),
        ("studies.correlation.drop_ends=-1", "key 'studies.correlation.drop_ends': give 0 or more, not -1"),
        ("execution.executor=dask", "key 'execution.executor': 'dask' is not 'local' or 'ray'"),
        ("execution.workers=0", "key 'execution.workers': give auto or a number of workers, 1 or more, not 0"),
        ("execution.workers=some", "key 'execution.workers': give auto or a number of workers, 1 or more, not 'some'"),
        (
            "execution.gpus_per_worker=1.5",
            "key 'execution.gpus_per_worker': give auto, a share of a GPU between 0 and 1, or a whole number of them, not 1.5",
        ),
        ("execution.attempts=0", "key 'execution.attempts': give 1 or more, not 0"),
        (
            "execution.address=10.0.0.1:6379",
            "execution: address '10.0.0.1:6379' needs executor ray, and executor is local",
        ),
        (
            "execution={executor: ray, device: cuda:1}",
            "execution: device cuda:1 names one GPU, and Ray gives each worker its own; give cuda or auto",
        ),
        ("execution.device=tpu", "key 'execution.device': 'tpu' is no device; give auto, cpu, mps, cuda or cuda:N"),
        (
            "execution.batch_tokens=many",
            "key 'execution.batch_tokens': give auto or a number of tokens, 1 or more, not 'many'",
        ),
        ("execution.batch_tokens=0", "key 'execution.batch_tokens': give auto or a number of tokens, 1 or more, not 0"),
        ("execution.device_map=3", "key 'execution.device_map': give auto, or a mapping of modules to devices, not 3"),
        (
            "storage=ftp://host/run",
            "key 'storage': 'ftp://host/run' is no place for a run: a file must appear there whole or not at all, as in a folder or "
            "an object store; known: abfs, abfss, az, gcs, gs, memory, s3, s3a",
        ),
        ("storage=''", "key 'storage': give a folder, or the URL of a place in an object store"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_told_with_its_key(override, told):
    assert refusal(override) == told


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["models.0.tuned={frist: t}"],
            "model 'm' has a checkpoint tuned on 'frist', which is no data set here; did you mean 'first'?",
        ),
        (["datasets.1.name=first"], "two datasets are named 'first'; give each its own name"),
        (
            ["models=[{name: m, base: b}, {name: m, base: c}]"],
            "two models are named 'm'; give each its own name",
        ),
        (
            ["studies={}"],
            "studies: asks for no study; give substitution, similarity, spectrum, removal, finetune, adaptation, backdoor or several (an empty one is written {})",
        ),
        (
            ["studies={correlation: {}, similarity: {}}"],
            "studies: correlation needs both substitution and similarity; add the missing one",
        ),
        (
            ["studies.substitution="],
            "studies: correlation needs both substitution and similarity; add the missing one",
        ),
        (
            ["models.0.tuned={}"],
            "substitution needs a tuned checkpoint; give models[].tuned: {data set: checkpoint}, or studies.finetune",
        ),
    ],
)  # fmt: skip
def test_keys_that_do_not_fit_together(overrides, told):
    assert refusal(*overrides) == told


def test_every_problem_is_told_at_once():
    told = refusal("nmae=x", "datasets.0.limit=0").splitlines()
    assert told == ["key 'datasets[0].limit': give 1 or more, not 0", "unknown key 'nmae'; did you mean 'name'?"]


def test_missing_keys():
    assert refusal(values={}).splitlines() == [
        f"key '{key}' is missing" for key in ("name", "models", "datasets", "studies", "storage")
    ]
    assert refusal("models=[{name: m}]") == "key 'models[0].base' is missing"


@pytest.mark.parametrize("values", [None, 3, [], "text"])
def test_a_config_is_a_mapping(values):
    assert refusal(values=values) == f"a config is a mapping of keys, not {type(values).__name__}"


# --- overrides ----------------------------------------------------------------------------------------------------


def test_overrides_reach_nested_keys_and_lists():
    config = parse_config(
        PLAIN,
        overrides=[
            "execution.chunk=16",
            "models.0.tuned.second=u=v",
            "datasets.1.limit=7",
            "studies.substitution.widths=[1, 3]",
            "studies.correlation=null",
            "execution.device=cuda:1",
            "execution.chunk=8",
        ],
    )
    assert config.execution.chunk == 8, "the last one counts"
    assert config.models[0].tuned == {"first": "t", "second": "u=v"}
    assert [dataset.limit for dataset in config.datasets] == [None, 7]
    assert config.studies.substitution.widths == [1, 3]
    assert config.studies.correlation is None
    assert config.execution.device == "cuda:1"


def test_an_override_makes_the_sections_it_needs():
    assert (
        parse_config(PLAIN, overrides=["studies.substitution.generate.tokens=5"]).studies.substitution.generate.tokens
        == 5
    )


def test_overrides_leave_the_values_they_are_given_as_they_were():
    values = yaml.safe_load(yaml.safe_dump(PLAIN))
    parse_config(values, overrides=["models.0.tuned.second=u", "name=other"])
    assert values == PLAIN


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("execution.chunk", "--set execution.chunk: write it as key=value, for example execution.chunk=16"),
        ("=3", "--set =3: write it as key=value, for example execution.chunk=16"),
        ("models.1.name=x", "--set models.1.name=x: '1' is no place in a list of 1; count from 0"),
        ("models.first.name=x", "--set models.first.name=x: 'first' is no place in a list of 1; count from 0"),
        ("models.².name=x", "--set models.².name=x: '²' is no place in a list of 1; count from 0"),
        ("name.first=x", "--set name.first=x: 'first' lies under a plain value"),
    ],
)
def test_overrides_that_cannot_be_followed(override, told):
    assert refusal(override) == told


def test_an_override_whose_value_is_no_yaml():
    assert refusal("name=[").startswith("--set name=[: the value is not YAML: while parsing")


# --- files --------------------------------------------------------------------------------------------------------


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
        str(caught.value)
        == f"config '{path}' is not YAML: key 'd' is given twice, in line 4 and in line 4; leave one out"
    )
    told = (
        "--set name={a: 1, a: 2}: the value is not YAML: key 'a' is given twice, in line 1 and in line 1; leave one out"
    )
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
        ("name: &a [*a]", r": key 'name': text belongs here, not \[\[\.\.\.\]\]"),
        ("&a {name: x, models: *a}", r": key 'models': a list belongs here"),
    ],
)
def test_yaml_at_its_worst(text, told, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match=rf"c\.yaml'? ?{told}|c\.yaml: .*\n.*{told}"):
        load_config(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ('storage="a\\0b"', r"config: the text 'a\\x00b' holds '\\x00', which is no character; mend it"),
        ('datasets.0.prompt="\\ud83d"', r"config: the text '\\ud83d' holds '\\ud83d', which is no character; mend it"),
        ("storage=~nobody-here/x", r"key 'storage': '~nobody-here/x' begins with the home folder of a user that this machine"),
        ("models.0.base=~nobody-here/x", r"key 'models\[0\]\.base': '~nobody-here/x' begins with the home folder"),
        ("studies.correlation.seed=-1", r"key 'studies\.correlation\.seed': give 0 or more, not -1"),
        ("studies.correlation.resamples=1000001", r"\.resamples': give 1000000 or less, not 1000001"),
        (f"datasets.0.limit={10**30}", rf"key 'datasets\[0\]\.limit': give 1000000000 or less, not {10**30}"),
        (f"models.{'1' * 5000}.base=x", r"is no place in a list of 1; count from 0"),
        (f"execution.device=cuda:{'9' * 5000}", r"is no device; give auto, cpu, mps, cuda or cuda:N"),
        ("datasets.0.exclude={}", r"datasets\[0\]\.exclude: names nothing to leave out; give phrases, a pattern, or"),
        ("datasets.0.exclude={phrase: [a]}", r"unknown key 'datasets\[0\]\.exclude\.phrase'; did you mean 'phrases'\?"),
        ("datasets.0.exclude={phrases: ['']}", r"key 'datasets\[0\]\.exclude\.phrases\[0\]': .* at least 1 character"),
        ("datasets.0.exclude={pattern: '(a'}", r"\.pattern': '\(a' is no regular expression \(missing \), unterminated"),
        ("datasets.0.exclude={values: [a]}", r"datasets\[0\]\.exclude: has values and no column; name the column"),
        ("datasets.0.exclude={column: a, values: [1]}", r"\.exclude\.values\[0\]': text belongs here, not 1"),
        ("datasets.0.last=0", r"key 'datasets\[0\]\.last': give 1 or more, not 0"),
        ("datasets.0.too_long=drop", r"key 'datasets\[0\]\.too_long': 'drop' is not 'refuse' or 'cut'"),
        ("name=2001-13-45", r"--set name=2001-13-45: the value is not YAML: month must be"),
        (f"datasets.0.format={'[' * 60}{']' * 60}", r"key 'datasets\[0\]\.format': text belongs here, not \[\[\["),
    ],
)  # fmt: skip
def test_values_at_their_worst(override, told):
    with pytest.raises(InputError, match=told):
        parse_config(PLAIN, overrides=[override])


def test_a_data_set_is_taken_from_one_end():
    with pytest.raises(InputError, match=r"datasets\[0\]: last is 2 and all_but_last is 3; give one of them"):
        parse_config(PLAIN, overrides=["datasets.0.last=2", "datasets.0.all_but_last=3"])


def test_a_wrong_value_of_100_kb_makes_a_short_message():
    with pytest.raises(InputError) as caught:
        parse_config(PLAIN, overrides=[f"name={'x y' * 30_000}"])
    assert "key 'name': string should have at most 100 characters, not 'x yx y" in str(caught.value)
    assert len(str(caught.value)) < 300


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
    ("overrides", "told"),
    [
        (["storage=s3://AKIA:hush@bucket/run"], "key 'storage': the URL has a name or password in it; give credentials in"),
        (["storage=s3://b/r", "storage_options.secret=hush"], "storage_options: 'secret' may be a secret, and options are"),
        (["storage=s3://b/r", "storage_options.client_kwargs.aws_session_token=hush"], "'aws_session_token' may be a secret"),
        (["storage=s3://b/r", "storage_options.endpoint_url='http://a:hush@b'"], "the URL of 'endpoint_url' has a name or"),
        (["storage_options.anon=true"], "storage_options are for a URL, and storage is the folder 'runs/mine'; leave them out"),
        (["storage=memory://b/r", "execution.executor=ray"], "is in this process's memory, which workers on Ray do not share"),
    ],
)  # fmt: skip
def test_a_secret_in_the_storage_is_refused_and_not_shown(overrides, told):
    with pytest.raises(InputError) as caught:
        parse_config(PLAIN, overrides=overrides)
    assert told in str(caught.value)
    assert "hush" not in str(caught.value)


def test_options_on_the_command_line_are_yaml():
    assert parse_options(["endpoint_url=http://h:1", "use_ssl=false", "client_kwargs.region_name=eu-north-1"]) == {
        "endpoint_url": "http://h:1",
        "use_ssl": False,
        "client_kwargs": {"region_name": "eu-north-1"},
    }
    with pytest.raises(InputError, match="--option: write it as key=value"):
        parse_options(["hush"])
    with pytest.raises(InputError, match="--option a: the value is not YAML"):
        parse_options(["a=[hush"])


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


@pytest.mark.parametrize("resident", [1, 0, 2.5, "many"])
def test_a_pair_is_resident_at_least(resident):
    with pytest.raises(InputError, match=r"execution\.resident"):
        parse_config({**PLAIN, "execution": {"resident": resident}})
