"""Old names of config keys and keyword arguments: they still work, with a warning that names the new one."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from raysweep.errors import RenamedWarning, shown

OLD_NAMES = {"wording": "template"}  # old name: new name


def config_renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config's values with the new names. Warns once for each old name; raises ValueError where both are given."""
    models = values.get("models")
    if not isinstance(models, list):
        return dict(values)
    found = [
        renamed(model, f"models[{place}] has ") if isinstance(model, Mapping) else model
        for place, model in enumerate(models)
    ]
    for old in OLD_NAMES:
        if any(isinstance(model, Mapping) and old in model for model in models):
            warn_of_old_name(old, "config key")
    return {**values, "models": found}


def renamed(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Return the values with the new names, in the order given. Raises ValueError if an old and its new name are given."""
    for old, new in OLD_NAMES.items():
        if old in values and new in values:
            raise ValueError(
                f"{where}{new}: {shown(values[new])} and {old}: {shown(values[old])}; {old} is the old name of {new}, so keep "
                f"only {new}"
            )
    return {OLD_NAMES.get(name, name): value for name, value in values.items()}


def warn_of_old_name(old: str, kind: str, stacklevel: int = 2) -> None:
    """Warn that a config key or a keyword argument has a new name."""
    message = f"{kind} `{old}` is now called `{OLD_NAMES[old]}`; both work"
    warnings.warn(message, RenamedWarning, stacklevel=stacklevel + 1)
