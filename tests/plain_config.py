"""A plain config as values, and what is said of one that is refused."""

from __future__ import annotations

import pytest

from raysweep.config import parse_config
from raysweep.errors import InputError

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
