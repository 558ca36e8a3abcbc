"""Hints for paths of a config that exist next to the config, and not in the current folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raysweep.config import Config
from raysweep.errors import InputError


@contextmanager
def beside_told(path: object, config: Config) -> Iterator[None]:
    """Add a hint to an InputError about records or a checkpoint that are next to the config, and not in the current folder.

    `path` is the config's; anything but a path means that it was in no file.
    """
    try:
        yield
    except InputError as error:
        if not isinstance(path, (str, Path)):
            raise
        folder = Path(path).expanduser().parent
        found = next((place for place in _places(config) if _is_beside(place, folder) and _names(error, place)), None)
        if found is None:
            raise
        raise InputError(
            f"{error}; it is next to the config: give {folder / found}, because paths of records and checkpoints are "
            "relative to the current folder"
        ) from error


def _places(config: Config) -> Iterator[str]:
    """Every place of a checkpoint or of records."""
    for model in config.models:
        yield from (model.base, *model.tuned.values())
    backdoor = config.studies.backdoor
    for dataset in config.datasets:
        yield from (source.path for source in (dataset, dataset.train) if source)
    if backdoor and backdoor.prompts:
        yield backdoor.prompts.path


def _is_beside(place: str, folder: Path) -> bool:
    if "://" in place or place.startswith("~") or Path(place).is_absolute():
        return False
    return not Path(place).exists() and (folder / place).exists()


def _names(error: InputError, place: str) -> bool:
    """Whether the error says that this place is not there; of records some do so by the path, some by what is written."""
    words = str(error)
    quoted = any(f"'{name}'" in words for name in (place, Path(place)))
    return quoted or any(f"{what} {Path(place)}: check the path" in words for what in ("file", "folder"))
