"""The part of a config that says what data are expected to be like where they are not here; config.py has the rest."""

from __future__ import annotations

from pydantic import Field

from raysweep.config_fields import Positive, Section


class ExpectedConfig(Section):
    """The number of records and their typical length, for plans without the data.

    `last`, `all_but_last`, `limit` and `max_tokens` apply to them as to real records.
    """

    examples: Positive = Field(description="How many records the source has, after `exclude`.")
    prompt_tokens: Positive = Field(description="Tokens in each prompt.")
    response_tokens: Positive = Field(description="Tokens in each response.")
