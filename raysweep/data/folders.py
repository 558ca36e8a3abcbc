"""Which files of a local folder hold the records of which split, as the Hugging Face hub infers it.

The folder's README.md decides if its header has `configs`; otherwise the names of files and folders do. Patterns are
matched here against the folder's own files, so that no character of the folder's path has a meaning.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from raysweep.data.card import Configuration, read_configuration
from raysweep.data.files import KNOWN, is_unreadable_data, kind_of, stem_of
from raysweep.errors import InputError, nearest, shortened

# Files that describe a data set and hold none of its records.
_DESCRIPTIONS = {"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
# Words in the names of files and folders, by split.
_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_APART = "[-._ 0-9]"  # what stands between such a word and the rest of a name
_SHARD = re.compile(r"(?P<name>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<rest>.*)")
_MOST_NAMED = 8  # files, in a message

Splits = Mapping[str, list[PurePosixPath]]


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split in the order in which they are read, and what may be wrong with them, in words."""

    files: list[Path]
    warnings: tuple[str, ...] = ()


def find_files(folder: Path, *, configuration: str | None = None, split: str | None = None) -> SplitFiles:
    """Find the files of a folder that hold the records of a split, in the natural order of their names.

    A folder of one split needs no `split`, one of a single configuration no `configuration`. Raises InputError if the
    folder has no file of records or not that split, if files of the split are of several kinds, in an unknown
    compression, or of one name, and for a README.md whose header asks for what is not supported.
    """
    asked = read_configuration(folder, configuration)
    base = folder / asked.data_dir if asked.data_dir else folder
    if not base.is_dir():
        raise InputError(f"{asked.card}: there is no folder {base}, which it names as data_dir. Correct its header")
    found = _files_below(base)
    data = [path for path in found if _is_data(path)]
    warnings: list[str] = []
    splits: Splits
    absent: dict[str, str] = {}
    if asked.patterns is not None:
        splits, absent = _matching(base, found, asked)
    elif data:
        splits = infer_splits(data)
        warnings += _outside(base, data, splits)
    else:
        holds = f"it holds {_named(found)}" if found else "it is empty"
        raise InputError(f"{base} has no file of records: {holds}. Give a folder with {KNOWN}")
    name = _choose(folder, splits, split)
    if name in absent:
        raise InputError(
            f"{asked.card}: data_files of split '{name}' names '{absent[name]}', and {base} has no such file. Fetch the missing "
            "files, or correct the pattern"
        )
    chosen = splits[name]
    _check_kinds(base, chosen)
    _check_names(base, chosen)
    return SplitFiles([base / path for path in chosen], (*warnings, *_missing_shards(base, chosen)))


def infer_splits(files: Iterable[PurePosixPath]) -> dict[str, list[PurePosixPath]]:
    """Split files, given relative to their folder, by name; each split in natural order.

    The first of these that fits some file decides, as on the Hugging Face hub: shards `data/SPLIT-00000-of-00002…`, then
    words for train, validation, and test in the names of folders, then in the names of files. Else all files are `train`.
    """
    ordered = sorted(files, key=_natural)
    sharded = defaultdict(list)
    for path in ordered:
        shard = _SHARD.fullmatch(path.name)
        if path.parent == PurePosixPath("data") and shard and "." in shard["rest"]:
            sharded[shard["name"]].append(path)
    if sharded:
        return {split: sharded[split] for split in sorted(sharded, key=_hub_order)}
    for is_in in (_is_in_folders, _is_in_name):
        found = {split: [path for path in ordered if is_in(path, words)] for split, words in _WORDS.items()}
        if any(found.values()):
            return {split: paths for split, paths in found.items() if paths}
    return {"train": ordered} if ordered else {}


def _hub_order(split: str) -> tuple[int, str]:
    known = list(_WORDS)
    return (known.index(split) if split in known else len(known)), split


def _is_in_folders(path: PurePosixPath, words: Iterable[str]) -> bool:
    pattern = rf"(.*{_APART})?({'|'.join(words)})({_APART}.*)?"
    return any(re.fullmatch(pattern, part, re.DOTALL) for part in path.parent.parts)


def _is_in_name(path: PurePosixPath, words: Iterable[str]) -> bool:
    pattern = rf"(.*{_APART})?({'|'.join(words)}){_APART}.*"
    return re.fullmatch(pattern, path.name, re.DOTALL) is not None


def _natural(path: PurePosixPath) -> tuple[list[list[str | int]], str]:
    """A key that puts shard 2 before shard 10; `re.split` gives text and digits in turn, so like is compared with like."""
    parts = [re.split(r"(\d+)", name) for name in path.parts]
    return [[int(text) if at % 2 else text for at, text in enumerate(part)] for part in parts], path.as_posix()


def _files_below(folder: Path) -> list[PurePosixPath]:
    """All files of a folder, relative to it, without those that are hidden or in a hidden or `__special__` folder."""
    found = []
    seen = set()
    for top, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(top)
        if real in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        found += [PurePosixPath((Path(top) / name).relative_to(folder)) for name in names if not name.startswith(".")]
    return found


def _is_data(path: PurePosixPath) -> bool:
    return path.name not in _DESCRIPTIONS and (kind_of(path) is not None or is_unreadable_data(path))


def _named(files: list[PurePosixPath]) -> str:
    named = ", ".join(str(path) for path in sorted(files, key=_natural)[:_MOST_NAMED])
    more = f" and {len(files) - _MOST_NAMED} more" if len(files) > _MOST_NAMED else ""
    return f"{shortened(named, 400)}{more}"


def _outside(base: Path, data: list[PurePosixPath], splits: Splits) -> Iterable[str]:
    """A sentence about files of records that belong to no split by their names."""
    of_splits = {path for files in splits.values() for path in files}
    if others := [path for path in data if path not in of_splits]:
        yield (
            f"{base}: {len(others)} of {len(data)} files of records match no split ({', '.join(splits)}) by name and "
            f"are not read: {_named(others)}"
        )


def _matching(base: Path, files: list[PurePosixPath], asked: Configuration) -> tuple[Splits, dict[str, str]]:
    """The files that the patterns of a README.md name, by split, each file once; and a pattern of a split that no file fits."""
    assert asked.patterns is not None
    ordered = sorted(files, key=_natural)
    splits: dict[str, list[PurePosixPath]] = {}
    absent: dict[str, str] = {}
    for name, patterns in asked.patterns.items():
        named: dict[PurePosixPath, None] = {}
        for pattern in patterns:
            exact = PurePosixPath(pattern)
            found = [exact] if (base / exact).is_file() else [path for path in ordered if asked.matches(pattern, path)]
            found = [path for path in found if _is_data(path)] or found  # `*` fits README.md too
            if not found:
                absent[name] = pattern
            named |= dict.fromkeys(found)
        splits[name] = list(named)
    return splits, absent


def _choose(folder: Path, splits: Splits, split: str | None) -> str:
    if split is None and len(splits) == 1:
        return next(iter(splits))
    if split is None:
        raise InputError(f"{folder} has several splits; name one of {', '.join(splits)}")
    if split not in splits:
        raise InputError(f"{folder} has no split '{split}'; {nearest(split, splits)}")
    return split


def _check_kinds(base: Path, files: list[PurePosixPath]) -> None:
    """Refuse a split that is not wholly read by one reader: which of its files were meant is not ours to guess."""
    first: dict[str, PurePosixPath] = {}
    for path in files:
        kind = kind_of(path)
        if kind is None:
            what = "has a compression" if is_unreadable_data(path) else "is of a type"
            raise InputError(f"{base / path} {what} that raysweep does not read. Convert it to {KNOWN}")
        first.setdefault(kind.family, path)
    if len(first) > 1:
        named = " and ".join(f"{path} ({family})" for family, path in first.items())
        raise InputError(
            f"{base} has files of several types in one split: {named}. Give one of the files, or a folder with one type"
        )


def _check_names(base: Path, files: list[PurePosixPath]) -> None:
    """Refuse two files that differ in their endings alone, as `a.jsonl` and `a.jsonl.gz`: likely the same records twice."""
    known: dict[PurePosixPath, PurePosixPath] = {}
    for path in files:
        other = known.setdefault(path.with_name(stem_of(path.name)), path)
        if other is not path:
            raise InputError(
                f"{base} has {other} and {path} in one split, which may be the same records. Give one of them, or rename it"
            )


def _missing_shards(base: Path, files: list[PurePosixPath]) -> Iterable[str]:
    """Sentences about sets of shards `…-00001-of-00004…` of which some are not there."""
    sets: dict[tuple[PurePosixPath, str, str], list[int]] = defaultdict(list)
    for path in files:
        if shard := _SHARD.fullmatch(path.name):
            name = path.with_name(f"{shard['name']}-*-of-{shard['count']}{shard['rest']}")
            sets[name, shard["name"], shard["count"]].append(int(shard["number"]))
    for (name, _, count), numbers in sets.items():
        if len(numbers) < int(count):
            yield f"{base / name}: only {len(numbers)} of {int(count)} shards are present, and only their records are read"
