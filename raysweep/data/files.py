"""Readers of one file of records: JSON Lines, JSON, CSV, TSV, Parquet and Arrow.

Text stays as written. `datasets` would guess types (an answer `007` becomes 7) and does not know on which line a record
begins, so it reads none of these files.
"""

from __future__ import annotations

import codecs
import csv
import itertools
import json
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from raysweep.data.arrow_sizes import group_batches, parquet_dictionaries, rows_of
from raysweep.data.compressed import COMPRESSIONS, LineTooLongError, byte_lines, compression_of
from raysweep.data.conversations import ArrowRecord
from raysweep.data.formats import Record
from raysweep.data.json_lists import TopLevel, read_elements
from raysweep.errors import InputError, shortened
from raysweep.limits import COLUMNS, RECORD_BYTES


class Place(NamedTuple):
    """Where a record begins: in `file` on `line` (from 1), or as its `number`-th record (from 0) if it has no lines."""

    file: str
    number: int
    line: int | None = None

    def __str__(self) -> str:
        if self.line is not None:
            return f"{self.file}, line {self.line}"
        return f"{self.file}, record {self.number} (counted from 0)"


Rows = Generator[tuple[Place, Record], None, None]

# Byte-order marks; that of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_NOT_READ = {".lz4", ".br", ".z", ".zip", ".7z", ".lzma", ".snappy", ".sz"}  # compressions

Numbered = Iterable[tuple[int, str]]  # lines of text, from 1


@dataclass(frozen=True)
class Kind:
    """A kind of file. Files of one `family` give records of the same types; `is_text` files may be compressed."""

    family: str
    read: Callable[[Path], Rows]
    is_text: bool = True


def kind_of(path: PurePath) -> Kind | None:
    """Find the kind of a file by its ending, and by the one before if the last stands for a compression."""
    kind = KINDS.get(_data_ending(path))
    return None if kind is None or (compression_of(path) and not kind.is_text) else kind


def stem_of(name: str) -> str:
    """Strip a file name of the endings of a kind of records and of a compression; leave other names as they are."""
    path = PurePath(name)
    if kind_of(path) is None:
        return name
    return PurePath(path.stem).stem if compression_of(path) else path.stem


def is_unreadable_data(path: PurePath) -> bool:
    """Say whether a file holds records, by its name, in a compression that is not read."""
    inner = _data_ending(path) if compression_of(path) else PurePath(path.stem).suffix.lower()
    return kind_of(path) is None and inner in KINDS and (path.suffix.lower() in _NOT_READ or bool(compression_of(path)))


def _data_ending(path: PurePath) -> str:
    return (PurePath(path.stem) if compression_of(path) else path).suffix.lower()


def read_file(path: Path) -> Rows:
    """Read the records of one file, one by one. Raises InputError for a file of another kind, and for a damaged one."""
    kind = kind_of(path)
    if kind is None:
        raise InputError(f"{path} is not a supported type of file; give {KNOWN}, or a folder of such files")
    return kind.read(path)


def _text_lines(path: Path) -> Generator[tuple[int, str], None, None]:
    """Numbered lines (from 1), decoded one by one so that a wrong byte's line is known; UTF-8's byte-order mark is skipped."""
    for number, raw in enumerate(byte_lines(path), start=1):
        if number == 1 and (encoding := next((name for mark, name in _MARKS if raw.startswith(mark)), None)):
            raise InputError(f"{path} is {encoding} (by its first bytes), but UTF-8 is needed; convert the file")
        if b"\0" in raw:
            raise InputError(
                f"{path}, line {number} contains a null byte (is it UTF-16, or binary?); convert the file to UTF-8"
            )
        try:
            yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            byte = raw[error.start]
            raise InputError(f"{path}, line {number} is not UTF-8 (byte 0x{byte:02x}); convert the file") from error


def _read_jsonl(path: Path, lines: Numbered | None = None) -> Rows:
    place = str(path)
    filled = ((number, text) for number, text in lines or _text_lines(path) if text.strip())
    for index, (number, text) in enumerate(filled):
        try:
            record = json.loads(text.rstrip("\r\n"))  # else a torn line's column is the next one's
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path}, line {number} is not a complete JSON object ({error.msg}, column {error.colno}); "
                "correct the line: JSONL has one object per line"
            ) from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number} {_beyond(error)}; correct the line, or remove it") from error
        if not isinstance(record, dict):
            raise InputError(f"{path}, line {number} is {_json_kind(record)}, but JSONL has one object per line")
        yield Place(place, index, number), record


def _read_json(path: Path) -> Rows:
    """A list of objects, or an object a line under the name that many hub data sets give to JSON Lines."""
    lines = _text_lines(path)
    filled = (numbered for numbered in lines if numbered[1].strip())
    try:
        first = list(itertools.islice(filled, 2))
    except LineTooLongError:  # a list may stand in one line
        first = []
    if len(first) == 2 and _is_object(first[0][1]):
        yield from _read_jsonl(path, itertools.chain(first, filled))
        return
    lines.close()
    yield from _read_json_list(path)


def _is_object(text: str) -> bool:
    try:
        return text.lstrip().startswith("{") and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _read_json_list(path: Path) -> Rows:
    """The whole file is checked before the first record is given; then it is read again, as far as it is needed."""
    try:
        for element in read_elements(path):
            if isinstance(element, TopLevel):
                raise InputError(
                    f"{path} is {_json_kind(element.value)}, but a .json file has one list of objects, or one object "
                    "per line"
                )
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} {_beyond(error)}; correct the file") from error
    for index, record in enumerate(read_elements(path)):
        place = Place(str(path), index)
        if not isinstance(record, dict):
            raise InputError(f"{place} is {_json_kind(record)}, but an object is needed")
        yield place, record


def _beyond(error: ValueError | RecursionError) -> str:
    """What JSON allows and Python cannot read."""
    return (
        "is nested too deeply"
        if isinstance(error, RecursionError)
        else f"contains a number that is too long to read ({error})"
    )


def _json_kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return kinds.get(type(value), "a number")


def _read_csv(path: Path, delimiter: str = ",") -> Rows:
    """Every value is text, as written: CSV has no types."""
    place, index = str(path), 0
    most, in_row = int(RECORD_BYTES.value()), 0

    def lines() -> Iterator[str]:  # a quoted value may hold any number of them
        nonlocal in_row
        for number, text in _text_lines(path):
            in_row += len(text)
            if in_row > most:
                raise RECORD_BYTES.error(f"more than {most}", f"{path}, line {number}", most)
            yield text

    rows = csv.reader(lines(), delimiter=delimiter, strict=True)
    line, limit = (
        1,
        csv.field_size_limit(min(most + 1, 2**31 - 1)),
    )  # in place of 128 kB; a C long holds that everywhere
    try:
        header = next(rows, [])
        COLUMNS.check(len(header), path)
        if len(set(header)) < len(header):
            raise InputError(f"{path}, line 1 names a column twice: {shortened(', '.join(header), 400)}")
        line, in_row = rows.line_num + 1, 0
        for row in rows:
            in_row = 0
            if row and len(row) != len(header):
                raise InputError(f"{path}, line {line} has {len(row)} values, but the header has {len(header)}")
            if row:
                yield Place(place, index, line), dict(zip(header, row, strict=True))
                index += 1
            line = rows.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, line {line} is not valid CSV ({error}); correct the file, or use JSONL") from error
    finally:
        csv.field_size_limit(limit)


def _read_parquet(path: Path) -> Rows:
    import pyarrow
    from pyarrow import parquet

    def batches() -> Iterator[Any]:
        with pyarrow.OSFile(str(path)) as source:  # a path it might take for a URL
            with parquet.ParquetFile(source) as file:
                as_dictionaries = parquet_dictionaries(file, str(path))
                n_groups = file.num_row_groups
            for group in range(n_groups):
                yield from group_batches(source, group, as_dictionaries)

    return _read_batches(path, "Parquet", batches())


def _read_arrow(path: Path) -> Rows:
    """Arrow's stream format, as `datasets` writes it, or its file format."""
    import pyarrow

    def batches() -> Iterator[Any]:
        with path.open("rb") as source:
            is_file = source.peek(6)[:6] == b"ARROW1"
            opened = pyarrow.ipc.open_file(source) if is_file else pyarrow.ipc.open_stream(source)
            with opened as file:
                yield from (file.get_batch(i) for i in range(file.num_record_batches)) if is_file else file

    return _read_batches(path, "Arrow", batches())


def _read_batches(path: Path, kind: str, batches: Iterator[Any]) -> Rows:
    import pyarrow

    place = str(path)
    rows = (record for batch in batches for record in rows_of(batch, place))
    try:
        for index, record in enumerate(rows):
            yield Place(place, index), ArrowRecord(record)
    except (pyarrow.ArrowException, ValueError, OverflowError, OSError) as error:
        # text that is no UTF-8, a date out of range, a stream that is cut short; but not a disk's own errors
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InputError(f"{path} is not a complete {kind} file: {error}") from error


KINDS: dict[str, Kind] = {
    ".jsonl": Kind("JSON", _read_jsonl),
    ".ndjson": Kind("JSON", _read_jsonl),
    ".json": Kind("JSON", _read_json),
    ".csv": Kind("CSV", _read_csv),
    ".tsv": Kind("CSV", partial(_read_csv, delimiter="\t")),
    ".parquet": Kind("Parquet", _read_parquet, is_text=False),
    ".arrow": Kind("Arrow", _read_arrow, is_text=False),
}
KNOWN = (
    f"{', '.join(ending for ending, kind in KINDS.items() if kind.is_text)} (also with {', '.join(COMPRESSIONS)} after it), "
    f"{' or '.join(ending for ending, kind in KINDS.items() if not kind.is_text)}"
)
