"""Records from where they lie: JSONL, JSON, CSV, Parquet, a folder of Hugging Face `datasets`, or its hub.

Every record knows its place, so that what is wrong with it can be named. Which fields it should have is formats.py's.
Text files are read here and not by `datasets`, which would guess types (an answer `007` becomes 7) and lose line numbers.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import json
import logging
import re
import tempfile
import warnings
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from raysweep import lab
from raysweep.data.conversations import ArrowRecord
from raysweep.data.exclusion import taken
from raysweep.data.formats import Record
from raysweep.errors import InputError, nearest, shortened

# The line a record begins on (None where its source has none), and the record.
Numbered = Generator[tuple[int | None, Record], None, None]

# What `save_to_disk` leaves at a folder's top: of one data set, of several splits.
_SAVED = ("state.json", "dataset_dict.json")
# Byte-order marks; that of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_HUB_NAME = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<config>[\w.-]+))?")
_LONGEST_FIELD = 2**31 - 1  # of CSV, in place of 128 kB: as much as a C long holds everywhere


@dataclass(frozen=True)
class Records:
    """Records in their source's order; `lines` are those they begin on (from 1), None for sources without lines.

    `numbers` are their places among the source's records (from 0), and `n_excluded` how many were left out on the way.
    """

    source: str
    records: list[Record]
    lines: list[int] | None
    numbers: list[int]
    n_excluded: int

    def place(self, number: int) -> str:
        """Where the record with that number (from 0, of the source's) stands, for messages."""
        line = None if self.lines is None else self.lines[self.numbers.index(number)]
        return _place(self.source, number, line)


def _place(source: str, number: int, line: int | None) -> str:
    return f"{source}, record {number} (counted from 0)" if line is None else f"{source}, line {line}"


def read_records(
    source: str,
    *,
    split: str | None = None,
    limit: int | None = None,
    leaves_out: Callable[[Record], bool] | None = None,
    last: int | None = None,
    all_but_last: int | None = None,
) -> Records:
    """The first `limit` (all by default) records of `source`, once some are left out.

    Those are the records that `leaves_out` is true of; then, of the others, all before the `last` so many, or those that
    `all_but_last` holds back. What `leaves_out` raises is told with the record's place.

    `source` is a laboratory name (`lab://<set>/test`), a file (.jsonl, .json with one list of objects, .csv with a header, .parquet), a folder that
    `datasets` wrote (`save_to_disk`) or can load, or a hub data set: `name`, `owner/name` or, where it has several
    configurations, `owner/name:configuration`. `split` is for folders and the hub; one of a single split needs none.
    Hub data are streamed and not kept (its client keeps the data set's card); reading stops at the limit.

    Raises InputError for a source that is missing, empty, not readable as its kind, or without that split, for both of
    `last` and `all_but_last`, and where no record is left.
    """
    if last is not None and all_but_last is not None:
        raise InputError(f"last is {last} and all_but_last is {all_but_last}: give one of them")
    path = Path(lab.resolve(source)).expanduser()
    where = str(path)
    if path.is_dir():
        numbered = _read_datasets(where, None, split)
    elif path.suffix.lower() in KINDS or path.is_file():
        numbered = _read_file(path, split)
    else:
        numbered = _read_datasets(*_hub_name(where), split)
    try:
        with contextlib.closing(numbered):
            kept = _Kept(where, numbered, leaves_out)
            rows = list(islice(taken(kept, last, all_but_last), limit))
    except OSError as error:
        raise InputError(f"{where} cannot be read: {error.strerror or error}") from error
    if not kept.n_read:
        raise InputError(f"{where} is empty: it holds no record")
    if not rows:
        held = "" if all_but_last is None else f", and all_but_last holds back {all_but_last}"
        raise InputError(
            f"{where} has no record left: of its {kept.n_read}, exclude leaves out {kept.n_excluded}{held}; ask for fewer"
        )
    lines = [line for _, line, _ in rows if line is not None]
    records, numbers = [record for _, _, record in rows], [number for number, _, _ in rows]
    return Records(where, records, lines or None, numbers, kept.n_excluded)


def are_here(source: str) -> bool:
    """Whether the records of `source` are on this machine: the laboratory's, a file or a folder. What the hub has is not kept."""
    return Path(lab.resolve(source)).expanduser().exists()


class _Kept:
    """The records that are not left out, each with its number and line; counts as it goes."""

    def __init__(self, source: str, numbered: Numbered, leaves_out: Callable[[Record], bool] | None) -> None:
        self.n_read = self.n_excluded = 0
        self._source, self._numbered, self._leaves_out = source, numbered, leaves_out

    def __iter__(self) -> Iterator[tuple[int, int | None, Record]]:
        for number, (line, record) in enumerate(self._numbered):
            self.n_read += 1
            try:
                excluded = self._leaves_out is not None and self._leaves_out(record)
            except InputError as error:
                raise InputError(f"{_place(self._source, number, line)}: {error}") from error
            if excluded:
                self.n_excluded += 1
            else:
                yield number, line, record


def _read_file(path: Path, split: str | None) -> Numbered:
    if not path.exists():
        raise InputError(f"there is no file {path}: check the path")
    if path.suffix.lower() not in KINDS:
        raise InputError(f"{path} is of no known kind: give a {', '.join(KINDS)} file, or a folder of `datasets`")
    if split is not None:
        raise InputError(f"{path} is one file, without splits: leave out split '{split}'")
    return _READERS[path.suffix.lower()](path)


def _text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines (from 1), decoded one by one so that a wrong byte's line is known; UTF-8's byte-order mark is skipped."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if number == 1 and (encoding := next((name for mark, name in _MARKS if raw.startswith(mark)), None)):
                raise InputError(
                    f"{path} is {encoding} (its first bytes are that one's mark), where UTF-8 is needed: convert the file"
                )
            if b"\0" in raw:
                raise InputError(
                    f"{path}, line {number} holds a null byte, which no text has (is it UTF-16, or binary?): convert the file"
                )
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                byte = raw[error.start]
                raise InputError(f"{path}, line {number} is not UTF-8 (byte 0x{byte:02x}): convert the file") from error


def _read_jsonl(path: Path) -> Numbered:
    for number, text in _text_lines(path):
        if not text.strip():
            continue
        try:
            record = json.loads(text.rstrip("\r\n"))  # else a torn line's column is the next one's
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path}, line {number} is no whole JSON object ({error.msg}, column {error.colno}): "
                "mend the line; JSONL has one object a line"
            ) from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number} {_beyond(error)}: mend the line, or leave it out") from error
        if not isinstance(record, dict):
            raise InputError(f"{path}, line {number} is {_json_kind(record)}, where JSONL has one object a line")
        yield number, record


def _read_json(path: Path) -> Numbered:
    text = "".join(line for _, line in _text_lines(path))
    if not text.strip():
        return
    try:
        records = json.loads(text)
    except json.JSONDecodeError as error:
        mend = "name it .jsonl if it has one object a line" if error.msg == "Extra data" else "mend the file"
        raise InputError(
            f"{path}, line {error.lineno} is no JSON ({error.msg}, column {error.colno}): {mend}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} {_beyond(error)}: mend the file") from error
    if not isinstance(records, list):
        raise InputError(f"{path} is {_json_kind(records)}, where a .json file has one list of objects")
    for index, record in enumerate(records):
        if not isinstance(record, dict):
            raise InputError(
                f"{path}, record {index} (counted from 0) is {_json_kind(record)}, where an object is needed"
            )
        yield None, record


def _beyond(error: ValueError | RecursionError) -> str:
    """What JSON allows and Python cannot read."""
    return "is nested too deeply" if isinstance(error, RecursionError) else f"holds a number too long to read ({error})"


def _json_kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return kinds.get(type(value), "a number")


def _read_csv(path: Path) -> Numbered:
    """Every value is text, as written: CSV has no types."""
    rows = csv.reader((line for _, line in _text_lines(path)), strict=True)
    line, limit = 1, csv.field_size_limit(_LONGEST_FIELD)
    try:
        header = next(rows, [])
        if len(set(header)) < len(header):
            raise InputError(f"{path}, line 1 names a column twice: {shortened(', '.join(header), 400)}")
        line = rows.line_num + 1
        for row in rows:
            if row and len(row) != len(header):
                raise InputError(f"{path}, line {line} has {len(row)} values, where the header has {len(header)}")
            if row:
                yield line, dict(zip(header, row, strict=True))
            line = rows.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, line {line} is no CSV ({error}): mend the file, or give JSONL") from error
    finally:
        csv.field_size_limit(limit)


def _read_parquet(path: Path) -> Numbered:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for record in batch.to_pylist():
                    yield None, ArrowRecord(record)
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:  # text that is no UTF-8, a date out of range
        raise InputError(f"{path} is no whole Parquet file: {error}") from error


_READERS: dict[str, Callable[[Path], Numbered]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
KINDS = tuple(_READERS)  # endings of files of records


def _hub_name(source: str) -> tuple[str, str | None]:
    """(name, configuration) of a hub data set; InputError where the source can only mean a path, for nothing is there."""
    match = _HUB_NAME.fullmatch(source)
    parent = Path(source).parent
    if match is None or (str(parent) != "." and parent.is_dir()):
        raise InputError(f"there is no file or folder {source}: check the path")
    return match["name"], match["config"]


def _read_datasets(name: str, config: str | None, split: str | None) -> Numbered:
    """Records of a folder or of the hub's data set `name`, streamed."""
    import datasets

    with _quiet(), tempfile.TemporaryDirectory() as cache:
        try:
            if any((Path(name) / mark).is_file() for mark in _SAVED):
                data = datasets.load_from_disk(name)
            else:
                data = datasets.load_dataset(name, config, streaming=True, cache_dir=cache)
            for record in _one_split(name, data, split).with_format(None):
                yield None, ArrowRecord(record)
        except InputError:
            raise
        except Exception as error:  # `datasets` raises whatever its readers and the network raise
            told = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(
                f"'{name}' is no data set that `datasets` can load ({told}): check the name, its configuration "
                "(owner/name:configuration) and the network, or give a file or a folder"
            ) from error


def _one_split(where: str, data: Any, split: str | None) -> Any:
    if not isinstance(data, dict):
        if split is not None:
            raise InputError(f"{where} is one data set, without splits: leave out split '{split}'")
        return data
    if split is None and len(data) == 1:
        return next(iter(data.values()))
    if split is None:
        raise InputError(f"{where} has several splits: name one of {', '.join(data)}")
    if split not in data:
        raise InputError(f"{where} has no split '{split}': {nearest(split, data)}")
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
