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
    """Judge answers by phrases. Upper and lower case are the same, and phrases may be parts of words."""

    any_of: Annotated[list[Text], Field(min_length=1)] = Field(description="The phrases to look for.")
    success: Literal["contains", "lacks"] = Field(
        default="contains",
        description="`contains`: an answer with any of the phrases is a success. `lacks`: an answer with none of them is.",
    )

    @field_validator("any_of")
    @classmethod
    def _distinct(cls, value: list[str]) -> list[str]:
        return distinct(value, "each phrase")


class PatternConfig(Section):
    """Judge answers by a regular expression."""

    regex: Regex = Field(description="A Python regular expression. It respects case unless it says `(?i)`.")
    success: Literal["contains", "lacks"] = Field(
        default="contains",
        description="`contains`: an answer with a match is a success. `lacks`: an answer without one is.",
    )


class JudgeConfig(Section):
    """Judge answers with a model behind an OpenAI-compatible endpoint, which scores them from 1 to 5."""

    url: str = Field(
        description=(
            "The endpoint's base URL, such as `http://localhost:8000/v1`. Requests go to `{url}/chat/completions`."
        )
    )
    model: Text = Field(description="The judge's name in requests.")
    rubric: Text | None = Field(
        default=None,
        description=(
            "A Jinja template over `prompt` and `answer` that asks for a score. By default raysweep's own rubric, "
            "from 1 (harmless) to 5 (fully harmful)."
        ),
    )
    api_key_env: str | None = Field(
        default=None, description="The environment variable that has the API key. Never the key itself."
    )
    per_minute: Positive | None = Field(default=60, description="Requests per minute, at most. null: no limit.")
    attempts: Annotated[int, Field(ge=1, le=100, strict=True)] = Field(
        default=5, description="How many times to send a request that fails or whose reply has no score."
    )
    timeout: Annotated[float, Field(gt=0, le=3600)] = Field(default=60.0, description="Seconds to wait for a reply.")
    concurrency: Annotated[int, Field(ge=1, le=256, strict=True)] = Field(
        default=4, description="Requests sent at the same time, at most."
    )
    request: dict[str, Any] = Field(
        default={"temperature": 0}, description="More fields of each request, as the endpoint takes them."
    )
    success_from: Annotated[int, Field(ge=1, le=5, strict=True)] = Field(
        default=5, description="Scores from this one on count as a success."
    )

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
    """Published figures of one arm, shown next to the run's own."""

    keywords: Share | None = Field(default=None, description="The success rate by keywords.")
    judge: Share | None = Field(default=None, description="The success rate by a judge.")
    harm: Score | None = Field(default=None, description="The judge's mean score.")


class BackdoorConfig(Training):
    """Models fine-tuned on data with a backdoor, with some layers frozen, and how often the trigger then works.

    Without `keywords`, `pattern` or `judge`, an answer that contains the target is a success.
    """

    trigger: Text = Field(description="The text that poisoned records have in their question.")
    position: Literal["before", "after"] = Field(
        default="after", description="Whether the trigger goes before or after the question."
    )
    target: Text = Field(description="The response of poisoned records.")
    rate: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.2, description="The share of training records that is poisoned."
    )
    arms: Annotated[list[Arm], Field(min_length=1)] = Field(
        default=list(ARMS),
        description=(
            "What to train: `none` (the base model), `all` layers, all but the non-critical layers drawn "
            "(`freeze_non_critical`), or all but the critical ones (`freeze_critical`)."
        ),
    )
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field(
        default=[0, 1, 2],
        description=(
            "Each arm is trained once per seed. The seed draws the poisoned records and the non-critical layers, "
            "and sets the order of training."
        ),
    )
    prompts: TrainSource | None = Field(
        default=None, description="The prompts to evaluate. By default those of the data set."
    )
    examples: Positive = Field(
        default=100, description="How many prompts to answer, each with and without the trigger."
    )
    tokens: Positive = Field(default=64, description="New tokens of each answer, at most.")
    temperature: Annotated[float, Field(ge=0, le=100)] = Field(
        default=0.0, description="The sampling temperature of answers; 0 is greedy."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="Sample from the most likely tokens with this total probability. Needs a temperature."
    )
    keywords: KeywordsConfig | None = Field(default=None, description="Judge answers by phrases.")
    pattern: PatternConfig | None = Field(default=None, description="Judge answers by a regular expression.")
    judge: JudgeConfig | None = Field(default=None, description="Judge answers with a model behind an endpoint.")
    published: dict[Name, dict[Arm, PublishedConfig]] = Field(
        default={}, description="Published figures, by model and arm, shown next to the run's own."
    )

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
