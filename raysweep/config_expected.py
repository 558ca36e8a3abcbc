"""The part of a config that says what data are expected to be like where they are not here; config.py has the rest."""

from __future__ import annotations

from raysweep.config_fields import Positive, Section


class ExpectedConfig(Section):
    """How many records a source is taken to have (once `exclude` has left some out), and the tokens of each.

    For plans alone, where the records or the model's tokenizer are not on this machine. `last`, `all_but_last`, `limit` and
    `max_tokens` apply to it as they would to the records.
    """

    examples: Positive
    prompt_tokens: Positive
    response_tokens: Positive
