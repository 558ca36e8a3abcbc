"""Where records come from, as the command line and Python name it: a path, a name, or records that are in memory already.

Records in memory are dicts, a pandas data frame or a data set of Hugging Face's `datasets`. Reading files is records.py's.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

from raysweep import lab
from raysweep.data.conversations import ArrowRecord
from raysweep.data.exclusion import taken
from raysweep.data.files import Place
from raysweep.data.formats import Record, detect_format
from raysweep.data.record_sizes import check_depth, within_memory
from raysweep.data.records import Records, read_records
from raysweep.errors import InputError, nearest

if TYPE_CHECKING:
    import pandas as pd

Source: TypeAlias = "str | os.PathLike[str] | Iterable[Mapping[str, Any]] | pd.DataFrame"

ACCEPTED = "a list of records (dicts), a pandas data frame, a data set of `datasets`, or the path or name of a data set"


def read_source(
    source: Source,
    *,
    split: str | None = None,
    limit: int | None = None,
    leaves_out: Callable[[Record], bool] | None = None,
    last: int | None = None,
    all_but_last: int | None = None,
) -> Records:
    """The records of a source: what `read_records` reads, or those that are in memory, taken in the same way.

    Raises InputError as `read_records` does, and for what holds no records.
    """
    if is_named(source):
        return read_records(
            lab.as_text(source), split=split, limit=limit, leaves_out=leaves_out, last=last, all_but_last=all_but_last
        )
    if last is not None and all_but_last is not None:
        raise InputError(f"last is {last} and all_but_last is {all_but_last}; give only one of them")
    name = _name(source)
    numbered = enumerate(_in_memory(source, split, name))
    n_read = n_excluded = 0

    def kept() -> Iterator[tuple[int, Record]]:
        nonlocal n_read, n_excluded
        for number, record in numbered:
            n_read += 1
            check_depth(record, f"{name}, record {number} (counted from 0)")
            try:
                excluded = leaves_out is not None and leaves_out(record)
            except InputError as error:
                raise InputError(f"{name}, record {number} (counted from 0): {error}") from error
            n_excluded += excluded
            if not excluded:
                yield number, record

    rows = within_memory(islice(taken(kept(), last, all_but_last), limit), name)
    if not n_read:
        raise InputError(f"{name} is empty: it has no records")
    if not rows:
        raise InputError(f"{name} has no records left: of its {n_read}, exclude removes {n_excluded}; remove fewer")
    numbers = [number for number, _ in rows]
    return Records(name, [record for _, record in rows], [Place(name, n) for n in numbers], numbers, n_excluded)


def is_named(source: object) -> TypeGuard[str | os.PathLike[str]]:
    """Whether a source is a path or a name, and not in memory."""
    return isinstance(source, str | os.PathLike)


def _name(source: object) -> str:
    """What a source in memory is called in messages."""
    if hasattr(source, "columns") and hasattr(source, "to_dict"):
        return "the data frame"
    return "the list of records" if isinstance(source, list | tuple) else f"the {type(source).__name__} of records"


def found_format(source: Source, *, split: str | None = None) -> str:
    """The format that the first record of a source has. Raises InputError if none or several fit it."""
    found = read_source(source, split=split, limit=1)
    try:
        return detect_format(found.records[0])
    except InputError as error:
        raise InputError(f"{found.source}: {error}") from error


def _in_memory(source: object, split: str | None, name: str) -> Iterator[Record]:
    kind: type[dict[str, Any]] = dict
    if (found := _of_datasets(source, split, name)) is not None:
        source, kind = found, ArrowRecord
    elif split is not None:
        raise InputError(f"{name} is in memory and has no splits; remove split '{split}'")
    if hasattr(source, "columns") and hasattr(source, "to_dict"):
        source, kind = _rows_of_frame(source, name), ArrowRecord
    if isinstance(source, Mapping):
        raise InputError(f"one record was given (a {type(source).__name__}); give a list of records")
    if not isinstance(source, Iterable) or isinstance(source, bytes):
        raise InputError(f"records of type {type(source).__name__} were given; give {ACCEPTED}")
    for number, record in enumerate(source):
        if not isinstance(record, Mapping):
            raise InputError(
                f"{name}, record {number} (counted from 0), is of type {type(record).__name__}, and not a dict; give {ACCEPTED}"
            )
        odd = next((key for key in record if not isinstance(key, str)), None)
        if odd is not None:
            raise InputError(
                f"{name}, record {number} (counted from 0), has the key {odd!r}, which is not text; use text for field names"
            )
        yield kind({key: _plain(value) for key, value in record.items()})


def _of_datasets(source: object, split: str | None, name: str) -> Iterable[Any] | None:
    """The rows of an object of `datasets`, without conversion to arrays; None for anything else."""
    library = sys.modules.get("datasets")
    if library is None:
        return None
    if isinstance(source, library.DatasetDict | library.IterableDatasetDict):
        if split is None and len(source) > 1:
            raise InputError(f"{name} has several splits; name one of {', '.join(map(str, source))}")
        if split is not None and split not in source:
            raise InputError(f"{name} has no split '{split}'; {nearest(split, map(str, source))}")
        source = source[split] if split is not None else next(iter(source.values()))
    elif isinstance(source, library.Dataset | library.IterableDataset) and split is not None:
        raise InputError(f"{name} is one data set without splits; remove split '{split}'")
    if isinstance(source, library.Dataset | library.IterableDataset):
        rows: Iterable[Any] = source.with_format(None)
        return rows
    return None


def _rows_of_frame(frame: Any, name: str) -> Iterator[dict[str, Any]]:
    """A data frame's rows; a missing value is null."""
    if len(set(frame.columns)) < len(frame.columns):
        raise InputError(f"{name} names a column twice: {', '.join(map(str, frame.columns))}")
    for row in frame.itertuples(index=False, name=None):
        yield {column: _without_nan(value) for column, value in zip(frame.columns, row, strict=True)}


def _without_nan(value: Any) -> Any:
    """None for what pandas writes where a value is missing: NaN, NaT, NA."""
    missing = type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and math.isnan(value))
    return None if missing else value


def _plain(value: Any) -> Any:
    """A value as JSON would have it: arrays and numbers of numpy's as Python's, in lists and dicts, too."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
