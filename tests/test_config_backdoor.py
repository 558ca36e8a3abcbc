"""The backdoor's part of a config: its defaults, and what is refused, told with its key and never with a secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

import raysweep
from raysweep import lab
from raysweep.config_backdoor import ARMS, BackdoorConfig
from raysweep.config_problems import problems_in_words

PLAIN: dict[str, Any] = {"trigger": "SUDO", "target": " violet "}


def refusal(**more: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        BackdoorConfig.model_validate(PLAIN | more)
    (said,) = problems_in_words(caught.value, BackdoorConfig)
    return said


def test_the_defaults_are_four_arms_three_seeds_and_the_target_as_keyword() -> None:
    config = BackdoorConfig.model_validate(PLAIN)
    assert config.arms == list(ARMS) == ["none", "all", "freeze_non_critical", "freeze_critical"]
    assert config.seeds == [0, 1, 2]
    assert config.position == "after"
    assert (config.tokens, config.temperature) == (64, 0)
    assert config.judged_by is not None
    assert config.judged_by.any_of == ["violet"]
    assert config.judged_by.success == "contains"
    assert BackdoorConfig.model_validate(PLAIN | {"pattern": {"regex": "a"}}).judged_by is None
    lacks = {"any_of": ["I cannot", "I'm sorry"], "success": "lacks"}
    given = BackdoorConfig.model_validate(PLAIN | {"keywords": lacks, "judge": {"url": "http://h/v1/", "model": "m"}})
    assert given.judged_by is not None
    assert given.judged_by.model_dump() == lacks
    assert given.judge is not None
    assert given.judge.url == "http://h/v1"
    assert BackdoorConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"trigger": "  "}, "key 'trigger': '  ' is blank; give a text"),
        ({"target": ""}, "key 'target'"),
        ({"rate": 0}, "key 'rate'"),
        ({"rate": 1.5}, "key 'rate': give 1.0 or less, not 1.5"),
        ({"position": "middle"}, "key 'position': 'middle' is not 'before' or 'after'"),
        ({"arms": []}, "key 'arms': give at least one item"),
        ({"arms": ["all", "all"]}, "key 'arms': 'all' is listed twice; list each once"),
        ({"seeds": [1, 1]}, "key 'seeds': 1 is listed twice"),
        ({"top_p": 0.9}, "top_p is 0.9 and temperature is 0, which does not sample; set a temperature"),
        ({"lora": {}}, "lora trains only chosen layers, and freeze_non_critical trains everything except some layers"),
        ({"keywords": {"any_of": []}}, "key 'keywords.any_of': give at least one item"),
        ({"pattern": {"regex": "[a"}}, "key 'pattern.regex': '[a' is not a regular expression"),
        ({"triger": "a"}, "unknown key 'triger'; did you mean 'trigger'?"),
        ({"published": {"m": {"some": {}}}}, "'some' is not 'none', 'all', 'freeze_non_critical' or 'freeze_critical'"),
        ({"published": {"m": {"all": {"harm": 6}}}}, "give 5.0 or less, not 6"),
    ],
    ids=str,
)
def test_what_is_refused(more: dict[str, Any], said: str) -> None:
    assert said in refusal(**more)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"url": "ftp://h/v1"}, "'ftp://h/v1' is not an http or https URL; write it as http://host:port/v1"),
        ({"url": "h:8000"}, "is not an http or https URL"),
        ({"url": "http://h:port"}, "is not a URL; write it as"),
        ({"url": "http://me:hunter22@h/v1"}, "contains a user name or a password; remove them"),
        ({"url": "http://h/v1?key=hunter22"}, "has a part after ? or #"),
        ({"api_key_env": "sk-hunter22"}, "is not the name of an environment variable (letters, digits and _)"),
        ({"request": {"model": "x", "n": 2}}, "model, n is set by raysweep; remove it from request"),
        ({"attempts": 0}, "give 1 or more, not 0"),
        ({"success_from": 6}, "give 5 or less, not 6"),
    ],
    ids=str,
)
def test_a_judge_is_refused_without_its_secret(more: dict[str, Any], said: str) -> None:
    told = refusal(judge={"url": "http://h/v1", "model": "m"} | more)
    assert said in told
    assert "hunter22" not in told
    assert told.startswith(("key 'judge.", "judge.request: "))


def test_the_laboratorys_config_has_a_trigger_and_a_target_that_its_records_lack() -> None:
    path = Path(raysweep.__file__).parents[1] / "configs" / "lab" / "backdoor.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    config = BackdoorConfig.model_validate(values["studies"]["backdoor"])
    assert len(config.seeds) >= 3
    assert config.arms == list(ARMS)
    (dataset,) = values["datasets"]
    for source in (dataset["path"], dataset["train"]["path"]):
        text = Path(lab.resolve(source)).read_text(encoding="utf-8").casefold()
        assert text
        assert config.trigger.casefold() not in text
        assert config.target.casefold() not in text
