"""The header of a folder's README.md as the Hugging Face hub reads it: which files belong to which split.

A header is YAML between two lines of `---`. Of it only `configs` matters here: configurations with their `data_files`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from raysweep.config_yaml import LimitedLoader
from raysweep.errors import InputError, nearest, shown
from raysweep.limits import CONFIG_BYTES, SETTINGS_BYTES, read_limited

# Keys of a configuration that change nothing of what is read.
_HARMLESS = {"config_name", "data_files", "data_dir", "default", "description", "version"}


@dataclass(frozen=True)
class Configuration:
    """What a README.md says of one configuration: patterns of files by split, or else the folder whose file names decide."""

    card: Path
    data_dir: str | None = None
    patterns: Mapping[str, tuple[str, ...]] | None = None

    def matches(self, pattern: str, path: PurePosixPath) -> bool:
        """Say whether a file, relative to the folder, fits a pattern: `**` is any number of folders, `*` part of a name."""
        return _fits(PurePosixPath(pattern).parts, path.parts)


def read_configuration(folder: Path, name: str | None) -> Configuration:
    """Read the configuration of that name, or the default one, from a folder's README.md.

    Raises InputError for a header that is not YAML, for a name that it does not have, for several configurations of which
    none is named, and for keys that ask for another way of reading.
    """
    card = folder / "README.md"
    configs = _configs(card)
    if not configs:
        if name is not None:
            raise InputError(f"{folder} has no configuration '{name}': its README.md lists none. Remove ':{name}'")
        return Configuration(card)
    named = {str(config.get("config_name", "default")): config for config in configs}
    if len(named) < len(configs):
        raise InputError(f"{card}: two of its configurations have the same name. Correct its header")
    chosen = named[_choose(folder, named, name)]
    where = f"{card}: configuration '{chosen.get('config_name', 'default')}'"
    if unknown := sorted(str(key) for key in chosen if key not in _HARMLESS):
        raise InputError(
            f"{where} sets {', '.join(unknown)}, which raysweep does not apply. Give the file itself, or convert the data to "
            "JSON Lines"
        )
    data_dir = chosen.get("data_dir")
    if data_dir and chosen.get("data_files"):
        raise InputError(f"{where} has both data_dir and data_files, which is not supported. Correct its header")
    patterns = _patterns(chosen["data_files"], where) if chosen.get("data_files") else None
    for path in [*([data_dir] if data_dir else []), *(p for of_split in (patterns or {}).values() for p in of_split)]:
        _check_inside(path, where)
    return Configuration(card, data_dir, patterns)


def _configs(card: Path) -> list[Mapping[str, Any]]:
    """The `configs` of a README.md's header; none if there is no such file, header, or key."""
    if not card.is_file():
        return []
    lines = read_limited(card, SETTINGS_BYTES).decode("utf-8-sig", errors="replace").splitlines()
    if not lines or lines[0].rstrip() != "---":
        return []
    end = next((at for at, line in enumerate(lines[1:], start=1) if line.rstrip() == "---"), None)
    if end is None:
        return []
    try:
        text = "\n".join(lines[1:end])
        CONFIG_BYTES.check(len(text), f"{card}, its header")
        header = yaml.load(text, LimitedLoader)
    except InputError as error:
        raise InputError(f"{card}: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(
            f"{card}: its header is not YAML ({' '.join(str(error).split())}). Correct or remove it"
        ) from error
    configs = header.get("configs") if isinstance(header, dict) else None
    if configs is None:
        return []
    if not isinstance(configs, list) or not all(isinstance(config, dict) for config in configs):
        raise InputError(f"{card}: `configs` in its header is not a list of configurations. Correct or remove it")
    return configs


def _choose(folder: Path, named: Mapping[str, Mapping[str, Any]], name: str | None) -> str:
    if name is not None:
        if name not in named:
            raise InputError(f"{folder} has no configuration '{name}': {nearest(name, named)}")
        return name
    default = next((key for key, config in named.items() if config.get("default")), None)
    if default is not None or len(named) == 1:
        return default or next(iter(named))
    if "default" in named:
        return "default"
    raise InputError(
        f"{folder} has several configurations ({', '.join(named)}): name one, as in {folder}:{next(iter(named))}"
    )


def _patterns(data_files: Any, where: str) -> dict[str, tuple[str, ...]]:
    """Patterns by split of a text, a list of texts, or a list of `{split, path}`."""
    if isinstance(data_files, list) and any(isinstance(item, dict) for item in data_files):
        found: dict[str, tuple[str, ...]] = {}
        for item in data_files:
            if not isinstance(item, dict) or item.keys() != {"split", "path"} or str(item["split"]) in found:
                raise InputError(
                    f"{where} has {shown(item)} among its data_files, but each split needs one {{split, path}}. "
                    "Correct it"
                )
            found[str(item["split"])] = _texts(item["path"], where)
        return found
    return {"train": _texts(data_files, where)}


def _texts(paths: Any, where: str) -> tuple[str, ...]:
    listed = paths if isinstance(paths, list) else [paths]
    if not listed or not all(isinstance(path, str) and path for path in listed):
        raise InputError(f"{where} has {shown(paths)} where it needs a path or a list of paths. Correct its data_files")
    return tuple(listed)


def _check_inside(path: Any, where: str) -> None:
    if not isinstance(path, str) or "://" in path or path.startswith("/") or ".." in PurePosixPath(path).parts:
        raise InputError(
            f"{where} names {shown(path)}, which is not inside the folder. Fetch the file and give its path"
        )
    if any("**" in part and part != "**" for part in PurePosixPath(path).parts):
        raise InputError(f"{where} has the pattern {shown(path)}, in which '**' is not a whole folder name. Correct it")


@lru_cache(maxsize=10_000)  # without it, several `**` try the same ends again and again
def _fits(pattern: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] != "**":
        return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _fits(pattern[1:], parts[1:])
    if len(pattern) == 1:
        return bool(parts)
    return any(_fits(pattern[1:], parts[skipped:]) for skipped in range(len(parts) + 1))
