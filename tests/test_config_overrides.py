"""Single keys beside a config: where they reach, and what is said of those that cannot be followed."""

from __future__ import annotations

import pytest
import yaml
from plain_config import PLAIN, refusal

from raysweep.config import parse_config
from raysweep.config_overrides import parse_options
from raysweep.errors import InputError


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
        ("models.1.name=x", "--set models.1.name=x: '1' is not an index of a list of 1 items; count from 0"),
        (
            "models.first.name=x",
            "--set models.first.name=x: 'first' is not an index of a list of 1 items; count from 0",
        ),
        ("models.².name=x", "--set models.².name=x: '²' is not an index of a list of 1 items; count from 0"),
        ("name.first=x", "--set name.first=x: 'first' is inside a plain value, not a mapping"),
    ],
)
def test_overrides_that_cannot_be_followed(override, told):
    assert refusal(override) == told


def test_an_override_whose_value_is_no_yaml():
    assert refusal("name=[").startswith("--set name=[: the value is not YAML: while parsing")


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
