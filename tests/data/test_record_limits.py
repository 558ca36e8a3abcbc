"""Limits on records, and readers that keep to them: lists, tables, and compressed files."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from raysweep.data import arrow_sizes, compressed
from raysweep.data.files import read_file
from raysweep.data.records import read_records
from raysweep.errors import InputError


def rows(path: Path) -> list:
    return [record for _, record in read_file(path)]


def test_a_list_is_read_as_json_reads_it(tmp_path, monkeypatch):
    rng, path = random.Random(1), tmp_path / "x.json"
    texts = ["a", "é日本", "\n", '"', "\\", "\u2028", "x" * 300, "\U0001f600"]
    for block in (1, 7, 64, 2**20):
        monkeypatch.setattr(compressed, "_LARGE_BLOCK", block)
        for _ in range(12):
            values = [
                {rng.choice("abc"): rng.choice([*texts, -1.5e-7, 10**20, None, True, [{"d": []}]]) for _ in range(3)}
                for _ in range(rng.randrange(5))
            ]
            ascii_, indent = rng.random() < 0.5, rng.choice([None, 2])
            path.write_text(" \n" + json.dumps(values, ensure_ascii=ascii_, indent=indent) + "\n ", encoding="utf-8")
            assert rows(path) == values


@pytest.mark.parametrize(
    "text",
    [
        '[{"a": 1}, ',
        '[{"a": 1} {"b": 2}]',
        "[{}]\n]",
        '[{"a": tru}]',
        "[,]",
        "[{},\n{]\n",
        '[{"a": "b',
        "[",
        '[\n{"a":\n1}\n,]',
    ],
)
def test_what_is_no_json_is_named_with_its_place(text, tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads(text)
    for block in (1, 5, 2**20):
        monkeypatch.setattr(compressed, "_LARGE_BLOCK", block)
        with pytest.raises(InputError) as refused:
            rows(path)
        error = caught.value
        assert (
            str(refused.value)
            == f"{path}, line {error.lineno} is not valid JSON ({error.msg}, column {error.colno}); correct the file"
        )


LIMITED = {
    "a line": (
        "x.jsonl",
        '{"a": "' + "x" * 2000 + '"}',
        "RECORD_BYTES",
        "1000",
        r"line 1: one record has more than 1000 bytes",
    ),
    "an element": ("x.json", '[{"a": "' + "x" * 2000 + '"}]', "RECORD_BYTES", "1000", r"one record has \d+ bytes"),
    "a value of several lines": (
        "x.csv",
        'a\n"' + "x\n" * 1000,
        "RECORD_BYTES",
        "1000",
        r"one record has more than 1000 bytes",
    ),
    "a row of many values": (
        "x.csv",
        "a\n" + '"\n",' * 1000,
        "RECORD_BYTES",
        "1000",
        r"one record has more than 1000 bytes",
    ),
    "columns": ("x.csv", ",".join(map(str, range(50))) + "\n", "COLUMNS", "40", r"a table of records has 50 columns"),
    "depth": ("x.jsonl", '{"a": [[[[1]]]]}', "RECORD_DEPTH", "3", r"line 1: one record has more than 3 nested levels"),
    "records": ("x.jsonl", '{"a": 1}\n' * 9, "RECORDS", "8", r"has 9 records, and at most 8"),
    "elements": ("x.json", "[" + '{"a": 1},' * 9 + "{}]", "RECORDS", "8", r"has 9 records, and at most 8"),
    "memory": ("x.jsonl", '{"a": 1}\n' * 90, "SOURCE_BYTES", "20k", r"need more than 20000 bytes"),
}


@pytest.mark.parametrize("name", LIMITED)
def test_each_limit_is_named_and_can_be_raised(name, tmp_path, monkeypatch):
    file, text, limit, most, message = LIMITED[name]
    path = tmp_path / file
    path.write_text(text)
    monkeypatch.setenv(f"RAYSWEEP_MAX_{limit}", most)
    with pytest.raises(InputError, match=rf"{message}.* RAYSWEEP_MAX_{limit} to a higher number"):
        read_records(str(path))
    monkeypatch.setenv(f"RAYSWEEP_MAX_{limit}", "1M")
    if name in ("a line", "an element", "depth", "records", "elements", "memory"):
        assert read_records(str(path)).records


def test_a_limit_on_records_lets_the_first_ones_through(tmp_path, monkeypatch):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n' * 9)
    monkeypatch.setenv("RAYSWEEP_MAX_RECORDS", "5")
    assert len(read_records(str(path), limit=5).records) == 5


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.json.gz"])
def test_a_compression_bomb_is_refused_on_the_way(name, tmp_path, monkeypatch):
    monkeypatch.setattr(compressed, "_FREE_BYTES", 2**20)
    path = tmp_path / name
    path.write_bytes(gzip.compress(b" \n" * 2**22))
    with pytest.raises(
        InputError, match=r"has more than 200 times its compressed size, .* RAYSWEEP_MAX_COMPRESSION_RATIO"
    ):
        read_records(str(path))


TABLE = {
    "text": ["x", "yy", None] * 700,
    "list": [[1, 2], [], None] * 700,
    "deep": [{"p": "q", "r": [{"s": "t"}]}, None, {"p": None, "r": []}] * 700,
    "bytes": [b"a", None, b"c"] * 700,
    "texts": [["a", "é"], [], None] * 700,
    "truth": [True, None, False] * 700,
}


@pytest.mark.parametrize(
    "options", [{}, {"use_dictionary": False}, {"compression": "zstd", "row_group_size": 500}], ids=str
)
def test_parquet_is_read_as_pyarrow_reads_it(options, tmp_path, monkeypatch):
    monkeypatch.setattr(arrow_sizes, "_SLICE_BYTES", 500)
    table = pa.table(TABLE).append_column(
        "map", pa.array([[("k", "v")], [], None] * 700, pa.map_(pa.string(), pa.string()))
    )
    parquet.write_table(table, tmp_path / "x.parquet", **options)
    assert rows(tmp_path / "x.parquet") == parquet.read_table(tmp_path / "x.parquet").to_pylist()


@pytest.mark.parametrize(
    "column",
    [
        pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), ["a" * 10**6]),
        pa.RunEndEncodedArray.from_arrays(pa.array([5000], pa.int32()), pa.array(["a" * 10**6])),
    ],
    ids=["dictionary", "run-end encoding"],
)
def test_long_values_named_many_times_are_written_out_few_at_a_time(column):
    found = arrow_sizes.rows_of(pa.record_batch({"a": column}), "x")
    assert next(found) == {"a": "a" * 10**6}


@pytest.mark.parametrize(
    "column",
    [
        pa.FixedSizeListArray.from_arrays(pa.nulls(10**9), 10**9),
        pa.ListArray.from_arrays([0, 10**9], pa.nulls(10**9)),
        pa.ListArray.from_arrays(
            [0, 5000], pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), ["a" * 10**6])
        ),
    ],
    ids=["nulls of one size", "nulls", "dictionary"],
)
def test_a_row_too_large_is_refused_before_it_is_made(column):
    with pytest.raises(InputError, match=r"x: one record has \d+ bytes, .* RAYSWEEP_MAX_RECORD_BYTES"):
        list(arrow_sizes.rows_of(pa.record_batch({"a": column}), "x"))


def test_a_parquet_column_that_unfolds_too_far_is_refused_by_its_metadata(tmp_path, monkeypatch):
    monkeypatch.setattr(arrow_sizes, "_FREE_BYTES", 2**20)
    values = pa.ListArray.from_arrays([0, 10**6], pa.array([0] * 10**6, pa.int8()))
    parquet.write_table(pa.table({"a": values}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"column a\.list\.element: the decompressed data has more than 200 times"):
        rows(tmp_path / "x.parquet")
