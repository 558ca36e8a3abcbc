"""Records from where they are: a file, a folder of files, a folder that `datasets` saved, or its hub.

Every record knows its place, so that a message about it can name the file and the line. Single files are read by files.py,
the files of a folder are found by folders.py; which fields a record should have is decided in formats.py.
"""

from __future__ import annotations

import contextlib
import logging
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from raysweep import lab
from raysweep.data.conversations import ArrowRecord
from raysweep.data.exclusion import taken
from raysweep.data.files import Place, Rows, kind_of, read_file
from raysweep.data.folders import find_files
from raysweep.data.formats import Record
from raysweep.data.record_sizes import check_depth, within_memory
from raysweep.errors import InputError, nearest
from raysweep.limits import RECORD_DEPTH, RECORDS

# What `save_to_disk` leaves at a folder's top: of one data set, of several splits.
_SAVED = ("state.json", "dataset_dict.json")
_HUB_NAME = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<config>[\w.-]+))?")


@dataclass(frozen=True)
class Records:
    """Records in their source's order, with the places where they begin.

    `numbers` count all records of the source (from 0), over its files if it has several; `n_excluded` of those read were
    left out. `warnings` say what of the source was not read.
    """

    source: str
    records: list[Record]
    places: list[Place]
    numbers: list[int]
    n_excluded: int
    warnings: tuple[str, ...] = ()

    def place(self, number: int) -> str:
        """Name the file and line of the record with that number, for messages."""
        return str(self.places[self.numbers.index(number)])


def read_records(
    source: str,
    *,
    split: str | None = None,
    limit: int | None = None,
    leaves_out: Callable[[Record], bool] | None = None,
    last: int | None = None,
    all_but_last: int | None = None,
) -> Records:
    """Read the first `limit` (all by default) records of `source`, once some are left out.

    Those are the records that `leaves_out` is true of; then, of the others, all before the `last` so many, or those that
    `all_but_last` holds back. What `leaves_out` raises is reported with the record's place.

    `source` is a laboratory name (`lab://<set>/test`), a file (KINDS in files.py, text also compressed), a folder of such
    files (the hub's layout; `folder:configuration` if its README.md has several), a folder that `datasets` saved
    (`save_to_disk`), or a hub data set: `name`, `owner/name` or `owner/name:configuration`. A path is taken as it is: no
    character in it has a meaning. `split` is for folders and the hub; one of a single split needs none. Hub data are
    streamed and not kept (its client keeps the data set's card). Reading stops at the limit.

    Raises InputError for a source that is missing, empty, not readable as its kind, or without that split, for both of
    `last` and `all_but_last`, and if no record is left.
    """
    if last is not None and all_but_last is not None:
        raise InputError(f"last is {last} and all_but_last is {all_but_last}; give only one of them")
    try:
        where, rows_of_source, warned = _open(source, split)
        with contextlib.closing(rows_of_source):
            kept = _Kept(rows_of_source, leaves_out)
            rows = within_memory(islice(taken(kept, last, all_but_last), limit), source)
    except OSError as error:
        raise InputError(f"{error.filename or source} cannot be read: {error.strerror or error}") from error
    if not kept.n_read:
        raise InputError(f"{where} is empty: it has no records")
    if not rows:
        held = "" if all_but_last is None else f", and all_but_last removes {all_but_last}"
        raise InputError(
            f"{where} has no records left: of its {kept.n_read}, exclude removes {kept.n_excluded}{held}; remove fewer"
        )
    numbers, places, records = (list(column) for column in zip(*rows, strict=True))
    return Records(where, records, places, numbers, kept.n_excluded, warned)


def are_here(source: str) -> bool:
    """Say whether the records of `source` are on this machine: the laboratory's, a file or a folder. Hub data are not kept."""
    path, _ = _local(source)
    return path.exists()


class _Kept:
    """The records that are not left out, each with its number and place; counts as it goes."""

    def __init__(self, rows: Rows, leaves_out: Callable[[Record], bool] | None) -> None:
        self.n_read = self.n_excluded = 0
        self._rows, self._leaves_out = rows, leaves_out

    def __iter__(self) -> Iterator[tuple[int, Place, Record]]:
        most, deepest = RECORDS.value(), int(RECORD_DEPTH.value())  # asked for once: there may be millions of records
        for number, (place, record) in enumerate(self._rows):
            self.n_read += 1
            if self.n_read > most:
                raise RECORDS.error(self.n_read, place.file, most)
            check_depth(record, place, deepest)
            try:
                excluded = self._leaves_out is not None and self._leaves_out(record)
            except InputError as error:
                raise InputError(f"{place}: {error}") from error
            if excluded:
                self.n_excluded += 1
            else:
                yield number, place, record


def _local(source: str) -> tuple[Path, str | None]:
    """The path that a source names, and the configuration of a folder named as `folder:configuration`."""
    path = Path(lab.resolve(source)).expanduser()
    folder, colon, configuration = str(path).rpartition(":")
    if colon and configuration and not path.exists() and Path(folder).is_dir():
        return Path(folder), configuration
    return path, None


def _open(source: str, split: str | None) -> tuple[str, Rows, tuple[str, ...]]:
    """What messages call the source, its rows, and warnings about it."""
    path, configuration = _local(source)
    where = str(path)
    if path.is_dir():
        if any((path / mark).is_file() for mark in _SAVED):
            return where, _read_saved(path, split), ()
        found = find_files(path, configuration=configuration, split=split)
        return where, _read_files(found.files), found.warnings
    if path.is_file() or kind_of(path) is not None:
        return where, _read_one(path, split), ()
    name, configuration = _hub_name(where)
    return where, _read_datasets(name, _from_hub(name, configuration), split), ()


def _read_one(path: Path, split: str | None) -> Rows:
    if not path.exists():
        hint = " (patterns are not expanded; give the folder)" if "*" in path.name else ""
        raise InputError(f"there is no file {path}: check the path{hint}")
    rows = read_file(path)
    if split is not None:
        raise InputError(f"{path} is one file without splits; remove split '{split}'")
    return rows


def _read_files(files: list[Path]) -> Rows:
    """The records of several files, one file after the other."""
    for file in files:
        with contextlib.closing(read_file(file)) as rows:
            yield from rows


def _hub_name(source: str) -> tuple[str, str | None]:
    """(name, configuration) of a hub data set; InputError where the source can only mean a path, for nothing is there."""
    match = _HUB_NAME.fullmatch(source)
    parent = Path(source).parent
    if match is None or (str(parent) != "." and parent.is_dir()):
        raise InputError(f"there is no file or folder {source}: check the path")
    return match["name"], match["config"]


def _read_saved(path: Path, split: str | None) -> Rows:
    """Records of a folder that `save_to_disk` wrote.

    `datasets` takes some characters of a path for a URL's or a chain's (`::`), so it is given a link with a plain name.
    """
    import datasets

    with tempfile.TemporaryDirectory() as plain:
        link = Path(plain) / "saved"
        link.symlink_to(path.resolve(), target_is_directory=True)
        yield from _read_datasets(str(path), lambda _: datasets.load_from_disk(str(link)), split, known_as=str(link))


def _from_hub(name: str, configuration: str | None) -> Callable[[str], Any]:
    import datasets

    return lambda cache: datasets.load_dataset(name, configuration, streaming=True, cache_dir=cache)


def _read_datasets(name: str, load: Callable[[str], Any], split: str | None, known_as: str | None = None) -> Rows:
    """Records that `datasets` loads, given a folder for its cache; `known_as` is what its messages call the data set."""
    with _quiet(), tempfile.TemporaryDirectory() as cache:
        try:
            for number, record in enumerate(_one_split(name, load(cache), split).with_format(None)):
                yield Place(name, number), ArrowRecord(record)
        except InputError:
            raise
        except Exception as error:  # `datasets` raises whatever its readers and the network raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            reason = reason.replace(known_as, name) if known_as else reason
            raise InputError(
                f"'{name}' is not a data set that `datasets` can load ({reason}): check the name, its configuration "
                "(owner/name:configuration) and the network, or give a file or a folder"
            ) from error


def _one_split(where: str, data: Any, split: str | None) -> Any:
    if not isinstance(data, dict):
        if split is not None:
            raise InputError(f"{where} is one data set without splits; remove split '{split}'")
        return data
    if split is None and len(data) == 1:
        return next(iter(data.values()))
    if split is None:
        raise InputError(f"{where} has several splits; name one of {', '.join(data)}")
    if split not in data:
        raise InputError(f"{where} has no split '{split}'; {nearest(split, data)}")
    return data[split]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing on standard error from `datasets` and the hub's client: what fails is told by an exception."""
    import datasets.utils
    import huggingface_hub.utils

    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    bars = [u for u in (datasets.utils, huggingface_hub.utils) if not u.are_progress_bars_disabled()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            for utils in bars:
                utils.disable_progress_bars()
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            for utils in bars:
                utils.enable_progress_bars()
