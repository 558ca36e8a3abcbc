"""The part of a config that asks whether frozen layers keep a fine-tune from learning a backdoor; config.py has the rest."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from raysweep.config_datasets import TrainSource
from raysweep.config_fields import Name, Positive, Regex, Section, distinct
from raysweep.config_training import Seed, Training
from raysweep.errors import shown

Text = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Score = Annotated[float, Field(ge=1, le=5)]
Arm = Literal["none", "all", "freeze_non_critical", "freeze_critical"]
ARMS: tuple[Arm, ...] = ("none", "all", "freeze_non_critical", "freeze_critical")

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError(f"{shown(value)} is blank; give a text")
    return value


class KeywordsConfig(Section):
    """A success is an answer that contains any of these phrases, in any case, or one that lacks all of them."""

    any_of: Annotated[list[Text], Field(min_length=1)]
    success: Literal["contains", "lacks"] = "contains"

    @field_validator("any_of")
    @classmethod
    def _distinct(cls, value: list[str]) -> list[str]:
        return distinct(value, "each phrase")


class PatternConfig(Section):
    """A success is an answer that the regular expression (Python's) has a match in, or one without a match."""

    regex: Regex
    success: Literal["contains", "lacks"] = "contains"


class JudgeConfig(Section):
    """A model behind an OpenAI-compatible endpoint that scores answers from 1 to 5.

    Requests go to `{url}/chat/completions`, so that the URL ends as in `http://localhost:8000/v1`. `rubric` is a Jinja
    template over `prompt` and `answer`; without one, ours. `api_key_env` names the environment variable that holds the key.
    At most `per_minute` requests are sent a minute (no limit where null), `concurrency` at a time; each is tried `attempts`
    times, `timeout` seconds long. `request` has further fields of the request. A score of `success_from` or more is a success.
    """

    url: str
    model: Text
    rubric: Text | None = None
    api_key_env: str | None = None
    per_minute: Positive | None = 60
    attempts: Annotated[int, Field(ge=1, le=100, strict=True)] = 5
    timeout: Annotated[float, Field(gt=0, le=3600)] = 60.0
    concurrency: Annotated[int, Field(ge=1, le=256, strict=True)] = 4
    request: dict[str, Any] = {"temperature": 0}
    success_from: Annotated[int, Field(ge=1, le=5, strict=True)] = 5

    @field_validator("url")
    @classmethod
    def _reachable(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            host, _ = parts.hostname, parts.port
        except ValueError:
            raise ValueError("is not a URL; write it as http://host:port/v1") from None
        if parts.username is not None or parts.password is not None:
            raise ValueError(
                "the URL contains a user name or a password; remove them, and name an environment variable in "
                "api_key_env"
            )
        if parts.scheme not in ("http", "https") or not host:
            raise ValueError(f"{shown(value)} is not an http or https URL; write it as http://host:port/v1")
        if parts.query or parts.fragment:
            raise ValueError(
                "the URL has a part after ? or #; remove it, because the request's path is added to the end of the URL"
            )
        return value.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _variable(cls, value: str | None) -> str | None:
        if value is not None and not _VARIABLE.fullmatch(value):
            raise ValueError(  # and not the value: whoever mistakes this key for the secret's place wrote a secret there
                "is not the name of an environment variable (letters, digits and _); give the variable's name, never "
                "the key itself"
            )
        return value

    @field_validator("request")
    @classmethod
    def _ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        taken = sorted({"model", "messages", "stream", "n"} & set(value))
        if taken:
            raise ValueError(f"{', '.join(taken)} is set by raysweep; remove it from request")
        return value


class PublishedConfig(Section):
    """Figures that were published for an arm: rates by keywords and by a judge (0 to 1), and the judge's mean score."""

    keywords: Share | None = None
    judge: Share | None = None
    harm: Score | None = None


class BackdoorConfig(Training):
    """Models fine-tuned on data with a backdoor in it, with some layers frozen, and how often the backdoor opens.

    A share `rate` of the training records has `trigger` put `position` its question and `target` for its response. The
    arms are trained once for each of `seeds` (`none` not at all), which draws the poisoned records too. `examples` prompts,
    of the data set or of `prompts`, are answered with the trigger and without it: `tokens` new tokens, greedily or (with a
    `temperature`) sampled with the seed. Every judging that is asked for judges every answer; by default an answer that
    contains the target is a success. `published` figures, by model and arm, stand beside those found.
    """

    trigger: Text
    position: Literal["before", "after"] = "after"
    target: Text
    rate: Annotated[float, Field(gt=0, le=1)] = 0.2
    arms: Annotated[list[Arm], Field(min_length=1)] = list(ARMS)
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0, 1, 2]
    prompts: TrainSource | None = None
    examples: Positive = 100
    tokens: Positive = 64
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    keywords: KeywordsConfig | None = None
    pattern: PatternConfig | None = None
    judge: JudgeConfig | None = None
    published: dict[Name, dict[Arm, PublishedConfig]] = {}

    @field_validator("trigger", "target")
    @classmethod
    def _some_text(cls, value: str) -> str:
        return _not_blank(value)

    @field_validator("arms", "seeds")
    @classmethod
    def _distinct(cls, value: list[Any]) -> list[Any]:
        return distinct(value, "each")

    @model_validator(mode="after")
    def _sampled(self) -> BackdoorConfig:
        if self.top_p < 1 and not self.temperature:
            raise ValueError(f"top_p is {self.top_p} and temperature is 0, which does not sample; set a temperature")
        return self

    @model_validator(mode="after")
    def _whole_weights(self) -> BackdoorConfig:
        freezing = [arm for arm in self.arms if arm.startswith("freeze")]
        if self.lora is not None and freezing:
            raise ValueError(
                f"lora trains only chosen layers, and {freezing[0]} trains everything except some layers; remove one "
                "of them"
            )
        return self

    @property
    def found(self) -> str | None:
        """The first choice of layers that a similarity task makes."""
        return next((arm.removeprefix("freeze_") for arm in self.arms if arm.startswith("freeze")), None)

    @property
    def judged_by(self) -> KeywordsConfig | None:
        """The keywords to judge by: those given, or the target where nothing else judges."""
        if self.keywords or self.pattern or self.judge:
            return self.keywords
        return KeywordsConfig(any_of=[self.target.strip()])


def judgings(asked: BackdoorConfig) -> dict[str, KeywordsConfig | PatternConfig | JudgeConfig]:
    """The ways of judging that are asked for, by the names that tables have for them."""
    found = {"keywords": asked.judged_by, "pattern": asked.pattern, "endpoint": asked.judge}
    return {name: told for name, told in found.items() if told is not None}
