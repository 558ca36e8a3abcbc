"""Regular expressions in an adapter's config, tried with a time limit before PEFT searches with them.

PEFT takes `target_modules` and others, where they are texts, and the keys of `rank_pattern` and others for regular expressions,
and matches them against the name of every module of the base.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from raysweep.errors import InputError, shown
from raysweep.limits import ADAPTER_NAMES
from raysweep.models.checkpoint import Checkpoint
from raysweep.patterns import LimitedPattern

_NAMES = re.compile(r"(modules|pattern|to_save|parameters|adapters)$")  # settings that name modules
_REPEATS = re.compile(r"[*+?{|]")
_FORMS = ("{}", r"(.*\.)?({})$", r"(^|.*\.){}($|\..*)", r".*\.{}$")  # in which PEFT puts a pattern
_MOST = 50  # patterns that repeat something


def check_patterns(adapter: Checkpoint, names: Callable[[], list[str]]) -> None:
    """Raise InputError for a pattern that takes too long on the `names` of the base's modules, and for too many patterns."""
    path = adapter.folder / "adapter_config.json"
    patterns = list(_patterns(adapter.config))
    ADAPTER_NAMES.check(len(patterns), path)
    slow = [pattern for pattern in dict.fromkeys(patterns) if _REPEATS.search(pattern)]
    if len(slow) > _MOST:
        raise InputError(
            f"{path} has {len(slow)} regular expressions for names of modules, and at most {_MOST} are tried"
        )
    listed = names() if slow else []
    for pattern in slow:
        for form in _FORMS:
            try:
                limited = LimitedPattern(form.replace("{}", pattern), "match")
            except (re.error, OverflowError, RecursionError):
                continue  # PEFT says so where it is used
            if limited.can_be_slow():
                try:
                    limited.found_in_any(listed)
                except InputError as error:
                    raise InputError(f"{path}, {shown(pattern)}: {error}") from error


def _patterns(settings: Mapping[str, Any]) -> Iterator[str]:
    for name, value in settings.items():
        if _NAMES.search(name):
            yield from (
                (value,)
                if isinstance(value, str)
                else filter(_is_text, value if isinstance(value, (list, dict)) else ())
            )


def _is_text(value: object) -> bool:
    return isinstance(value, str)
