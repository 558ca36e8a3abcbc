"""Dates as configs and arguments write them."""

from __future__ import annotations

import datetime

from raysweep.errors import shown


def parse_date(text: str) -> str:
    """Return a date written as YYYY-MM-DD. Raises ValueError for any other text."""
    try:
        date = datetime.date.fromisoformat(text)
    except ValueError:
        date = None
    if date is None or date.isoformat() != text:
        raise ValueError(f"{shown(text)} is not a date; write it as YYYY-MM-DD")
    return text
