"""Compressed files of records, against the compressors of the standard library and pyarrow."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raysweep.data.compressed import byte_lines
from raysweep.data.records import read_records
from raysweep.errors import InputError

RECORDS: list[dict[str, Any]] = [{"q": f"what is {i}?", "a": answer} for i, answer in enumerate(["007", "1e5", "NA"])]


def zstandard(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard,
}
NAMES = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "Zstandard"}


def as_jsonl(records: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def as_csv(records: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue().encode()


WRITE: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    ".jsonl": as_jsonl,
    ".ndjson": as_jsonl,
    ".json": lambda records: json.dumps(records).encode(),
    ".csv": as_csv,
    ".tsv": lambda records: as_csv(records, "\t"),
}


def refusal(path: Path, **arguments: Any) -> str:
    with pytest.raises(InputError) as error:
        read_records(str(path), **arguments)
    return str(error.value)


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("kind", WRITE)
def test_compressed_text_is_read_as_plain_text(kind: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"my{kind}{ending.upper()}"
    path.write_bytes(COMPRESS[ending](WRITE[kind](RECORDS)))
    found = read_records(str(path))
    assert found.records == RECORDS
    plain = tmp_path / f"my{kind}"
    plain.write_bytes(WRITE[kind](RECORDS))
    beside = read_records(str(plain))
    assert [found.place(i) for i in range(3)] == [beside.place(i).replace(str(plain), str(path)) for i in range(3)]


@pytest.mark.parametrize("ending", COMPRESS)
def test_streams_one_after_the_other_are_one_file(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"my.jsonl{ending}"
    path.write_bytes(b"".join(COMPRESS[ending](as_jsonl([record])) for record in RECORDS))
    assert read_records(str(path)).records == RECORDS


@pytest.mark.parametrize("ending", COMPRESS)
def test_long_content_comes_through_in_pieces(ending: str, tmp_path: Path) -> None:
    content = os.urandom(300_000).hex().encode() + b"\n" + b"x" * 1_000_000 + b"\n\nend"
    path = tmp_path / f"my.jsonl{ending}"
    path.write_bytes(COMPRESS[ending](content))
    assert list(byte_lines(path)) == content.splitlines(keepends=True)


@pytest.mark.parametrize("ending", COMPRESS)
def test_no_bytes_are_no_records(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"my.jsonl{ending}"
    for content in (b"", COMPRESS[ending](b"")):
        path.write_bytes(content)
        assert refusal(path) == f"{path} is empty: it has no records"


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("cut", [3, 20, 10_000])
def test_a_file_that_is_cut_short(ending: str, cut: int, tmp_path: Path) -> None:
    path = tmp_path / f"my.jsonl{ending}"
    noisy = [{"a": os.urandom(20).hex()} for _ in range(2000)]
    path.write_bytes(COMPRESS[ending](as_jsonl(noisy))[:-cut])
    assert refusal(path).startswith(f"{path} is damaged: its {NAMES[ending]} data cannot be decompressed to the end (")


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("more", [as_jsonl(RECORDS), b"\x01\x02\x03\x04", b"\n"], ids=["text", "bytes", "a line break"])
def test_something_else_behind_the_compressed_data(ending: str, more: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"my.jsonl{ending}"
    path.write_bytes(COMPRESS[ending](as_jsonl(RECORDS)) + more)
    assert refusal(path).startswith(f"{path} is damaged: its {NAMES[ending]} data cannot be decompressed to the end (")


@pytest.mark.parametrize("ending", [".gz", ".xz"])
def test_null_bytes_between_and_behind_streams_are_padding(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"my.jsonl{ending}"
    padding = b"\0" * 80_000
    path.write_bytes(padding.join(COMPRESS[ending](as_jsonl([record])) for record in RECORDS) + padding)
    assert read_records(str(path)).records == RECORDS


def test_a_skippable_frame_is_skipped(tmp_path: Path) -> None:
    frame = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
    path = tmp_path / "my.jsonl.zst"
    path.write_bytes(frame + zstandard(as_jsonl(RECORDS[:1])) + frame + zstandard(as_jsonl(RECORDS[1:])))
    assert read_records(str(path)).records == RECORDS


@pytest.mark.parametrize(("ending", "other"), [(e, o) for e in COMPRESS for o in (*COMPRESS, "") if e != o])
def test_an_ending_that_the_first_bytes_contradict(ending: str, other: str, tmp_path: Path) -> None:
    path = tmp_path / f"my.jsonl{other}"
    path.write_bytes(COMPRESS[ending](as_jsonl(RECORDS)))
    assert refusal(path) == f"{path} is {NAMES[ending]} data by its first bytes. Rename it to my.jsonl{ending}"
    path = tmp_path / f"plain.jsonl{ending}"
    path.write_bytes(as_jsonl(RECORDS))
    assert refusal(path) == (
        f"{path} is not {NAMES[ending]} data by its first bytes. If it is plain text, rename it to plain.jsonl"
    )


def test_text_may_begin_like_a_signature(tmp_path: Path) -> None:
    path = tmp_path / "my.csv"
    path.write_text("BZh9,a\n1,2\n")
    assert read_records(str(path)).records == [{"BZh9": "1", "a": "2"}]


@pytest.mark.parametrize("ending", COMPRESS)
def test_reading_stops_at_the_limit(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"my.jsonl{ending}"
    torn = COMPRESS[ending](as_jsonl([{"a": os.urandom(200).hex()} for _ in range(3000)]))[:-1000]
    path.write_bytes(torn)
    assert len(read_records(str(path), limit=10).records) == 10


@pytest.mark.parametrize("ending", COMPRESS)
def test_what_is_wrong_with_the_text_is_found_behind_the_compression(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"my.jsonl{ending}"
    path.write_bytes(COMPRESS[ending](b'{"a": 1}\n{"a": "\xe9"}\n'))
    assert refusal(path) == f"{path}, line 2 is not UTF-8 (byte 0xe9); convert the file"
    path.write_bytes(COMPRESS[ending](b'{"a": 1}\n{"a": \n'))
    assert refusal(path).startswith(f"{path}, line 2 is not a complete JSON object")


def test_parquet_is_compressed_inside_alone(tmp_path: Path) -> None:
    path = tmp_path / "my.parquet.gz"
    path.write_bytes(gzip.compress(b"PAR1"))
    assert refusal(path).startswith(f"{path} is not a supported type of file; give ")
