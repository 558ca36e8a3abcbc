"""What a config asks of substitution, in the studies' own values. Pure."""

from __future__ import annotations

from raysweep.config_substitution import SubstitutionConfig
from raysweep.studies.interventions import Change, check_changes
from raysweep.studies.stopping import Rule


def asked_changes(asked: SubstitutionConfig, n_layers: int, where: str = "") -> list[Change]:
    """Every change that the config asks for in a model of `n_layers`, windows first. Raises InputError for one that does not fit."""
    return check_changes(
        n_layers,
        asked.widths,
        sets=asked.sets,
        modules=asked.modules,
        coefficients=asked.coefficients,
        reverse=asked.reverse,
        where=where,
    )


def stop_rule(asked: SubstitutionConfig) -> Rule | None:
    """When a sweep stops early, if it may; `top` is about the first of the widths, which is 1 for `all`."""
    stop, width = asked.stop, 1 if asked.widths == "all" else asked.widths[0]
    return Rule(stop.half_width, stop.top, stop.confidence, width) if stop else None
