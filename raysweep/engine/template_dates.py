"""Dates of chat templates that read the clock: recorded in the run folder's config, so that a resumed run words texts alike."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from raysweep.config import Config
from raysweep.config_dates import parse_date
from raysweep.config_yaml import NO_YAML, read_yaml
from raysweep.engine.folder import RunFolder
from raysweep.store.places import read_bytes


def recorded_dates(folder: RunFolder) -> dict[str, str]:
    """Return the dates that the run folder's config has, by model; none if there is no config, or a damaged one."""
    try:
        values = read_yaml(read_bytes(folder.config).decode())
        models = values["models"]
        return {model["name"]: parse_date(model["template_date"]) for model in models if "template_date" in model}
    except (OSError, LookupError, TypeError, *NO_YAML):
        return {}


def with_template_dates(config: Config, dates: Mapping[str, str]) -> Config:
    """Return the config with the date that each model's chat template was given, by model; as it is if there is none."""
    models = [
        model.model_copy(update={"template_date": dates[model.name]}) if model.name in dates else model
        for model in config.models
    ]
    return config.model_copy(update={"models": models}) if dates else config


def unused_dates(config: Config, read: Collection[str], used: Mapping[str, str]) -> list[str]:
    """Warn of dates in the config of models whose texts were `read` and whose chat template did not ask for it.

    `used` are the dates that one did ask for, by model.
    """
    return [
        f"models[].template_date of '{model.name}' is {model.template_date} and has no effect: no chat template reads "
        "the clock"
        for model in config.models
        if model.template_date is not None and model.name in read and model.name not in used
    ]


def date_texts(dates: Mapping[str, str], *, recorded: bool = True) -> list[str]:
    """Say which chat templates read the clock and the dates that they are given, by model; `recorded` in a run folder or not."""
    again = ", now and when this run is resumed (models[].template_date sets another)" if recorded else ""
    return [f"the chat template of {model} reads the clock and gets {date}{again}" for model, date in dates.items()]
