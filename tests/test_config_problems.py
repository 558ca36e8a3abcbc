"""Every mistake in a config is told with its key, in words that say what belongs there."""

from __future__ import annotations

import pytest
from plain_config import PLAIN, refusal

from raysweep.config import parse_config
from raysweep.errors import InputError
from raysweep.numerics.measures.registry import MEASURES


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("nmae=x", "unknown key 'nmae'; did you mean 'name'?"),
        ("zzz=1", "unknown key 'zzz'; known: datasets, execution, models, name, storage, storage_mode, storage_options, studies"),
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
        ("name=3", "key 'name': expected text, not 3"),
        ("name=a/b", "key 'name': 'a/b' is not a valid name; use letters, digits and . _ -, starting with a letter or digit"),
        ("models=3", "key 'models': expected a list, not 3"),
        ("models=[]", "key 'models': give at least one item"),
        ("models=[x]", "key 'models[0]': expected a mapping of keys, not 'x'"),
        ("models.0.dtype=float8", "key 'models[0].dtype': 'float8' is not 'auto', 'float32', 'bfloat16' or 'float16'"),
        ("models.0.tuned=x", "key 'models[0].tuned': expected a mapping of keys, not 'x'"),
        ("models.0.tuned={first: 3}", "key 'models[0].tuned.first': expected text, not 3"),
        (
            "models.0.tuned={a b: x}",
            "key 'models[0].tuned.a b': 'a b' is not a valid name; use letters, digits and . _ -, starting with a "
            "letter or digit",
        ),
        ("datasets.0.limit=0", "key 'datasets[0].limit': give 1 or more, not 0"),
        ("datasets.0.limit=1.5", "key 'datasets[0].limit': expected a whole number, not 1.5"),
        ("datasets.0.limit=true", "key 'datasets[0].limit': expected a whole number, not True"),
        ("datasets.0.limit='8'", "key 'datasets[0].limit': expected a whole number, not '8'"),
        ("studies=", "key 'studies': expected a mapping of keys, not nothing"),
        ("studies.substitution.widths=5", "key 'studies.substitution.widths': expected a list, not 5"),
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
            "key 'studies.similarity.metrics': 'cka_rbf' is listed twice; list each metric once",
        ),
        (
            "studies.similarity.neighbourhood=4",
            "key 'studies.similarity.neighbourhood': the neighbourhood must be odd, because it is centred on a layer; "
            "4 is even",
        ),
        (
            "studies.substitution.stop={}",
            "studies.substitution.stop: has neither half_width nor top; give one: {half_width: 0.02} in nats, or {top: 3}, a "
            "number of windows",
        ),
        (
            "studies.substitution.stop={half_width: 0.02, top: 3}",
            "studies.substitution.stop: half_width is 0.02 and top is 3; give only one of them",
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
            "execution.call_deadline=soon",
            "key 'execution.call_deadline': give a number of seconds, 1 or more, or never, not 'soon'",
        ),
        (
            "execution.address=10.0.0.1:6379",
            "execution: address '10.0.0.1:6379' needs executor ray, and executor is local",
        ),
        (
            "execution={executor: ray, device: cuda:1}",
            "execution: device cuda:1 names one GPU, and Ray gives each worker its own; give cuda or auto",
        ),
        ("execution.device=tpu", "key 'execution.device': 'tpu' is not a device; give auto, cpu, mps, cuda or cuda:N"),
        (
            "execution.batch_tokens=many",
            "key 'execution.batch_tokens': give auto or a number of tokens, 1 or more, not 'many'",
        ),
        ("execution.batch_tokens=0", "key 'execution.batch_tokens': give auto or a number of tokens, 1 or more, not 0"),
        ("execution.device_map=3", "key 'execution.device_map': give auto, or a mapping of modules to devices, not 3"),
        (
            "storage=ftp://host/run",
            "key 'storage': 'ftp://host/run' cannot store a run: files there must never appear half-written, as in "
            "a folder or an object store; known: abfs, abfss, az, gcs, gs, memory, s3, s3a",
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
            "model 'm' has a checkpoint tuned on 'frist', which is not a data set of this config; did you mean "
            "'first'?",
        ),
        (["datasets.1.name=first"], "two datasets are named 'first'; give each its own name"),
        (
            ["models=[{name: m, base: b}, {name: m, base: c}]"],
            "two models are named 'm'; give each its own name",
        ),
        (
            ["studies={}"],
            "studies: has no study; give substitution, similarity, spectrum, removal, finetune, adaptation, backdoor "
            "or several (an empty one is written {})",
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


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ('storage="a\\0b"', r"config: the text 'a\\x00b' contains '\\x00', which is not a valid character; remove it"),
        ('datasets.0.prompt="\\ud83d"', r"config: the text '\\ud83d' contains '\\ud83d', which is not a valid character; remove it"),
        ("storage=~nobody-here/x", r"key 'storage': '~nobody-here/x' starts with the home folder of a user that does not exist"),
        ("models.0.base=~nobody-here/x", r"key 'models\[0\]\.base': '~nobody-here/x' starts with the home folder"),
        ("studies.correlation.seed=-1", r"key 'studies\.correlation\.seed': give 0 or more, not -1"),
        ("studies.correlation.resamples=1000001", r"\.resamples': give 1000000 or less, not 1000001"),
        (f"datasets.0.limit={10**30}", rf"key 'datasets\[0\]\.limit': give 1000000000 or less, not {10**30}"),
        (f"models.{'1' * 5000}.base=x", r"is not an index of a list of 1 items; count from 0"),
        (f"execution.device=cuda:{'9' * 5000}", r"is not a device; give auto, cpu, mps, cuda or cuda:N"),
        ("datasets.0.exclude={}", r"datasets\[0\]\.exclude: excludes nothing; give phrases, a pattern, or"),
        ("datasets.0.exclude={phrase: [a]}", r"unknown key 'datasets\[0\]\.exclude\.phrase'; did you mean 'phrases'\?"),
        ("datasets.0.exclude={phrases: ['']}", r"key 'datasets\[0\]\.exclude\.phrases\[0\]': .* at least 1 character"),
        ("datasets.0.exclude={pattern: '(a'}", r"\.pattern': '\(a' is not a regular expression \(missing \), unterminated"),
        ("datasets.0.exclude={values: [a]}", r"datasets\[0\]\.exclude: has values but no column; name the column"),
        ("datasets.0.exclude={column: a, values: [1]}", r"\.exclude\.values\[0\]': expected text, not 1"),
        ("datasets.0.last=0", r"key 'datasets\[0\]\.last': give 1 or more, not 0"),
        ("datasets.0.too_long=drop", r"key 'datasets\[0\]\.too_long': 'drop' is not 'refuse' or 'cut'"),
        ("name=2001-13-45", r"--set name=2001-13-45: the value is not YAML: month must be"),
        (f"datasets.0.format={'[' * 60}{']' * 60}", r"key 'datasets\[0\]\.format': expected text, not \[\[\["),
    ],
)  # fmt: skip
def test_values_at_their_worst(override, told):
    with pytest.raises(InputError, match=told):
        parse_config(PLAIN, overrides=[override])


def test_a_data_set_is_taken_from_one_end():
    with pytest.raises(InputError, match=r"datasets\[0\]: last is 2 and all_but_last is 3; give only one of them"):
        parse_config(PLAIN, overrides=["datasets.0.last=2", "datasets.0.all_but_last=3"])


def test_a_wrong_value_of_100_kb_makes_a_short_message():
    with pytest.raises(InputError) as caught:
        parse_config(PLAIN, overrides=[f"name={'x y' * 30_000}"])
    assert "key 'name': string should have at most 100 characters, not 'x yx y" in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["storage=s3://AKIA:hush@bucket/run"], "key 'storage': the URL has a name or password in it; give credentials in"),
        (["storage=s3://b/r", "storage_options.secret=hush"], "storage_options: 'secret' may be a secret, and options are"),
        (["storage=s3://b/r", "storage_options.client_kwargs.aws_session_token=hush"], "'aws_session_token' may be a secret"),
        (["storage=s3://b/r", "storage_options.endpoint_url='http://a:hush@b'"], "the URL of 'endpoint_url' has a name or"),
        (["storage_options.anon=true"], "storage_options apply only to a URL, and storage is the folder 'runs/mine'; remove them"),
        (["storage=memory://b/r", "execution.executor=ray"], "is this process's memory, which workers on Ray do not share; give a folder or a URL, or use executor local"),
    ],
)  # fmt: skip
def test_a_secret_in_the_storage_is_refused_and_not_shown(overrides, told):
    with pytest.raises(InputError) as caught:
        parse_config(PLAIN, overrides=overrides)
    assert told in str(caught.value)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("resident", [1, 0, 2.5, "many"])
def test_a_pair_is_resident_at_least(resident):
    with pytest.raises(InputError, match=r"execution\.resident"):
        parse_config({**PLAIN, "execution": {"resident": resident}})
