"""The judges of a config, as the study has them. Pure."""

from __future__ import annotations

from raysweep.config_backdoor import BackdoorConfig, KeywordsConfig, PatternConfig, judgings
from raysweep.studies.completions import Endpoint
from raysweep.studies.endpoint import RUBRIC, EndpointJudge
from raysweep.studies.judging import Keywords, Pattern


def judge_of(asked: BackdoorConfig, name: str) -> Keywords | Pattern | EndpointJudge:
    """The judge of this name. Raises InputError for a rubric that does not parse."""
    told = judgings(asked)[name]
    if isinstance(told, KeywordsConfig):
        return Keywords(tuple(told.any_of), told.success)
    if isinstance(told, PatternConfig):
        return Pattern(told.regex, told.success)
    endpoint = Endpoint(told.url, told.model, told.api_key_env, told.timeout, told.request)
    return EndpointJudge(
        endpoint, told.rubric or RUBRIC, told.per_minute, told.attempts, told.concurrency, told.success_from
    )
