"""Rows of Arrow batches, in slices small enough to be written out.

A few kilobytes of Parquet or Arrow can stand for a great deal: dictionaries and run-end encoding name one long text many
times, and lists of nulls take no bytes at all. So the size of what a slice becomes is found from lengths, before it is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from raysweep.errors import shortened
from raysweep.limits import COLUMNS, COMPRESSION_RATIO, RECORD_BYTES

_SLICE_BYTES = 2**25  # written out at once
_FREE_BYTES = 2**28  # of a column before the ratio counts
_VALUE = 8  # bytes of a number, or of a null in a list


def rows_of(batch: Any, place: str) -> Iterator[dict[str, Any]]:
    """Yield a batch's rows as records. Raises InputError for a row beyond the limit on one record."""
    COLUMNS.check(batch.num_columns, place)
    stack = [batch]
    while stack:
        part = stack.pop()
        size = sum(map(written_size, part.columns))
        if part.num_rows > 1 and (size > _SLICE_BYTES or part.num_rows > 1024):
            half = part.num_rows // 2
            stack += [part.slice(half), part.slice(0, half)]
            continue
        if part.num_rows == 1:
            RECORD_BYTES.check(size, place)
        yield from part.to_pylist()


def written_size(array: Any) -> int:
    """Bytes, at least roughly, of an array's values once each of them is an object of its own."""
    import pyarrow
    import pyarrow.compute as pc

    kind, n = array.type, len(array)
    if isinstance(array, pyarrow.ExtensionArray):
        return written_size(array.storage)
    if pyarrow.types.is_dictionary(kind):
        if not _is_text(array.dictionary.type):
            return n * (_VALUE + written_size(array.dictionary))
        lengths = pc.binary_length(_plain(array.dictionary)).cast(pyarrow.int64()).take(array.indices)
        return _VALUE * n + int(pc.sum(lengths).as_py() or 0)
    if pyarrow.types.is_run_end_encoded(kind):
        return n * max((written_size(array.values.slice(i, 1)) for i in range(len(array.values))), default=_VALUE)
    if pyarrow.types.is_struct(kind):
        return _VALUE * n + sum(written_size(array.field(i).slice(0, n)) for i in range(kind.num_fields))
    if pyarrow.types.is_union(kind):
        return _VALUE * n + sum(written_size(array.field(i)) for i in range(kind.num_fields))
    if pyarrow.types.is_map(kind):
        return _VALUE * n + sum(written_size(part.slice(*_bounds(array))) for part in (array.keys, array.items))
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        return _VALUE * n + written_size(array.values.slice(*_bounds(array)))
    if pyarrow.types.is_fixed_size_list(kind):
        return _VALUE * n + written_size(array.values.slice(array.offset * kind.list_size, n * kind.list_size))
    if pyarrow.types.is_nested(kind):  # list views: any row may name any part
        longest = int(pc.max(array.sizes).as_py() or 0)
        return n * (_VALUE + longest * max(_VALUE, written_size(array.values) // max(1, len(array.values))))
    if _is_text(kind):
        return _VALUE * n + int(pc.sum(pc.binary_length(_plain(array))).as_py() or 0)
    return max(_VALUE * n, (kind.bit_width // 8) * n if _has_width(kind) else 0)


def parquet_dictionaries(file: Any, place: str) -> list[str]:
    """Check a Parquet file's metadata; name the columns of text, which are to be read as dictionaries, without repeating a value.

    Raises InputError for too many columns, and for a column that becomes many times what is stored of it.
    """
    metadata, schema = file.metadata, file.schema
    COLUMNS.check(metadata.num_columns, place)
    most = COMPRESSION_RATIO.value()
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(column)
            values = _VALUE * chunk.num_values if schema.column(column).max_repetition_level else 0
            size = max(values, chunk.total_uncompressed_size)
            if size > _FREE_BYTES and size > most * max(1, chunk.total_compressed_size):
                raise COMPRESSION_RATIO.error(
                    f"{most:.15g}", f"{place}, column {shortened(chunk.path_in_schema)}", most
                )
    return [
        schema.column(i).path for i in range(metadata.num_columns) if schema.column(i).physical_type == "BYTE_ARRAY"
    ]


def group_batches(source: Any, group: int, as_dictionaries: list[str]) -> Iterator[Any]:
    """Yield a row group's rows in batches, columns of text as dictionaries.

    pyarrow cannot do that for text inside lists and objects if a column chunk has several dictionaries: then it is read plainly.
    """
    import pyarrow
    from pyarrow import parquet

    done = 0
    for columns in (as_dictionaries, [path for path in as_dictionaries if "." not in path]):
        skipped = done
        source.seek(0)
        try:
            with parquet.ParquetFile(source, read_dictionary=columns) as file:
                for batch in file.iter_batches(batch_size=1024, row_groups=[group]):
                    if skipped >= batch.num_rows:
                        skipped -= batch.num_rows
                        continue
                    done += batch.num_rows - skipped
                    yield batch.slice(skipped)
                    skipped = 0
                return
        except pyarrow.ArrowNotImplementedError:
            if columns != as_dictionaries or all("." not in path for path in columns):
                raise


def _bounds(array: Any) -> tuple[int, int]:
    """(start, length) of the values that a list array's rows are in."""
    if not len(array):
        return 0, 0
    offsets = array.offsets
    start, stop = offsets[0].as_py() or 0, offsets[len(array)].as_py() or 0
    return start, stop - start


def _is_text(kind: Any) -> bool:
    import pyarrow

    types = pyarrow.types
    checks = (
        types.is_string,
        types.is_large_string,
        types.is_binary,
        types.is_large_binary,
        types.is_string_view,
        types.is_binary_view,
    )
    return any(check(kind) for check in checks)


def _plain(array: Any) -> Any:
    import pyarrow

    if pyarrow.types.is_string_view(array.type):
        return array.cast(pyarrow.large_string())
    return array.cast(pyarrow.large_binary()) if pyarrow.types.is_binary_view(array.type) else array


def _has_width(kind: Any) -> bool:
    try:
        return bool(kind.bit_width)
    except ValueError:
        return False
