import csv
import itertools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from raysweep.data.records import read_records
from raysweep.errors import InputError

Record = dict[str, Any]

TEXTS: list[Record] = [
    {"the question": 'Naïve "quotes", and\ntwo lines', "answer": "007"},
    {"the question": "", "answer": "NA"},
    {"the question": "🍒\u2028", "answer": "1e3"},
]
NESTED: list[Record] = [
    {
        "n": 7,
        "x": 0.1,
        "yes": True,
        "none": None,
        "choices": {"label": ["A"], "text": ["red"]},
        "turns": [{"role": "user"}],
    },
    {"n": 8, "x": 2.0, "yes": False, "none": None, "choices": {"label": [], "text": []}, "turns": []},
]


def write_jsonl(path: Path, records: list[Record]) -> None:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")


def write_csv(path: Path, records: list[Record]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)


def write_saved(path: Path, records: list[Record]) -> None:
    datasets.Dataset.from_list(records).save_to_disk(str(path))


def write_splits(path: Path, records: list[Record]) -> None:
    datasets.DatasetDict(test=datasets.Dataset.from_list(records)).save_to_disk(str(path))


def write_folder(path: Path, records: list[Record]) -> None:
    path.mkdir()
    parquet.write_table(pa.Table.from_pylist(records), path / "test.parquet")


WRITERS: dict[str, Callable[[Path, list[Record]], None]] = {
    "my.jsonl": write_jsonl,
    "my.json": lambda path, records: path.write_text(json.dumps(records, indent=1), encoding="utf-8") and None,
    "my.csv": write_csv,
    "my.parquet": lambda path, records: parquet.write_table(pa.Table.from_pylist(records), path),
    "saved": write_saved,
    "splits": write_splits,
    "folder": write_folder,
}


@pytest.fixture(autouse=True)
def no_bars() -> Any:
    """The writers above are not to draw progress bars; the readers are on their own (see the test of quietness)."""
    datasets.utils.disable_progress_bars()
    yield
    datasets.utils.enable_progress_bars()


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_gives_the_same_texts(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name, TEXTS)
    found = read_records(str(tmp_path / name))
    assert found.records == TEXTS
    assert found.source == str(tmp_path / name)
    assert read_records(str(tmp_path / name), limit=2).records == TEXTS[:2]


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "my.csv"])
def test_every_kind_with_types_keeps_them(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name, NESTED)
    assert repr(read_records(str(tmp_path / name)).records) == repr(NESTED)


def test_places(tmp_path: Path) -> None:
    places = {}
    for name, write in WRITERS.items():
        write(tmp_path / name, TEXTS)
        found = read_records(str(tmp_path / name))
        file = tmp_path / name / "test.parquet" if name == "folder" else tmp_path / name
        places[name] = [found.place(i).removeprefix(f"{file}, ") for i in range(3)]
    counted = [f"record {i} (counted from 0)" for i in range(3)]
    assert places.pop("my.jsonl") == ["line 1", "line 2", "line 3"]
    assert places.pop("my.csv") == ["line 2", "line 4", "line 5"]  # the first record has a line break in it
    assert places == dict.fromkeys(["my.json", "my.parquet", "saved", "splits", "folder"], counted)


def test_blank_lines_and_a_byte_order_mark_are_no_records(tmp_path: Path) -> None:
    path = tmp_path / "my.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": 2}')
    found = read_records(str(path))
    assert found.records == [{"a": 1}, {"a": 2}]
    assert [found.place(0), found.place(1)] == [f"{path}, line 1", f"{path}, line 4"]
    path = tmp_path / "my.csv"
    path.write_bytes(b"\xef\xbb\xbfa,b\r\n\r\n1,2\r\n")
    assert read_records(str(path)).records == [{"a": "1", "b": "2"}]
    assert read_records(str(path)).place(0) == f"{path}, line 3"


def test_nothing_is_read_behind_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "my.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{torn', encoding="utf-8")
    assert read_records(str(path), limit=2).records == [{"a": 1}, {"a": 2}]
    with pytest.raises(InputError, match="line 3"):
        read_records(str(path), limit=3)


def test_records_are_left_out_and_then_counted_from_the_end(tmp_path: Path) -> None:
    path = tmp_path / "my.jsonl"
    write_jsonl(path, [{"a": a} for a in range(10)])
    rest = [a for a in range(10) if a % 3]  # 1 2 4 5 7 8
    for last, all_but_last, limit in itertools.product([None, 1, 4, 6, 9], [None, 1, 4, 5], [None, 2, 20]):
        if last and all_but_last:
            continue
        plain = rest[-last:] if last else rest[:-all_but_last] if all_but_last else rest
        found = read_records(
            str(path), limit=limit, leaves_out=lambda r: r["a"] % 3 == 0, last=last, all_but_last=all_but_last
        )
        assert found.numbers == plain[:limit]
        assert found.records == [{"a": a} for a in plain[:limit]]
        assert [found.place(a) for a in found.numbers] == [f"{path}, line {a + 1}" for a in plain[:limit]]
        if limit != 2 or last:  # else reading stops early
            assert found.n_excluded == 4


def test_what_is_left_out_shifts_no_place_without_lines_either(tmp_path: Path) -> None:
    path = tmp_path / "my.parquet"
    WRITERS["my.parquet"](path, [{"a": a} for a in range(5)])
    found = read_records(str(path), leaves_out=lambda r: r["a"] == 1, last=2)
    assert [found.place(n) for n in found.numbers] == [f"{path}, record {n} (counted from 0)" for n in (3, 4)]


def test_reading_stops_at_the_limit_of_what_is_not_left_out(tmp_path: Path) -> None:
    path = tmp_path / "my.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": 3}\n{torn', encoding="utf-8")
    found = read_records(str(path), limit=2, leaves_out=lambda r: r["a"] == 1)
    assert (found.numbers, found.n_excluded) == ([1, 2], 1)
    with pytest.raises(InputError, match="line 4"):
        read_records(str(path), limit=2, leaves_out=lambda r: r["a"] == 1, all_but_last=1)


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my.jsonl").write_text('{"a": 1}\n')
    assert read_records("~/my.jsonl").place(0) == f"{tmp_path}/my.jsonl, line 1"


def refusal(source: object, **arguments: Any) -> str:
    with pytest.raises(InputError) as error:
        read_records(str(source), **arguments)
    return str(error.value)


def test_no_record_left(tmp_path: Path) -> None:
    path = tmp_path / "my.jsonl"
    write_jsonl(path, [{"a": a} for a in range(3)])
    assert refusal(path, leaves_out=lambda r: r["a"] >= 0) == (
        f"{path} has no records left: of its 3, exclude removes 3; remove fewer"
    )
    assert refusal(path, all_but_last=3) == (
        f"{path} has no records left: of its 3, exclude removes 0, and all_but_last removes 3; remove fewer"
    )
    assert refusal(path, last=2, all_but_last=1) == "last is 2 and all_but_last is 1; give only one of them"
    path.write_text("")
    assert refusal(path, all_but_last=3) == f"{path} is empty: it has no records"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("my.jsonl", b"", " is empty: it has no records"),
        ("my.jsonl", b"\n \n", " is empty: it has no records"),
        (
            "my.jsonl",
            b'{"a": 1}\n{"a": \n',
            ", line 2 is not a complete JSON object (Expecting value, column 7); correct the line: JSONL has one "
            "object per line",
        ),
        ("my.jsonl", b'{"a": 1}\n[1]\n', ", line 2 is a list, but JSONL has one object per line"),
        ("my.jsonl", b"null\n", ", line 1 is null, but JSONL has one object per line"),
        ("my.jsonl", b'{"a": 1}\n{"a": "\xe9"}\n', ", line 2 is not UTF-8 (byte 0xe9); convert the file"),
        (
            "my.jsonl",
            '{"a": 1}\n'.encode("utf-16"),
            " is UTF-16 (by its first bytes), but UTF-8 is needed; convert the file",
        ),
        ("my.json", b"", " is empty: it has no records"),
        ("my.json", b"[]", " is empty: it has no records"),
        (
            "my.json",
            b'[\n{"a": 1},\n{"a"]',
            ", line 3 is not valid JSON (Expecting ':' delimiter, column 5); correct the file",
        ),
        ("my.json", b'[{"a": 1}]\n\n{"a": 2}\n', ", line 3 is not valid JSON (Extra data, column 1); correct the file"),
        (
            "my.json",
            b'{"a": 1}\n{"a": \n',
            ", line 2 is not a complete JSON object (Expecting value, column 7); correct the line: JSONL has one "
            "object per line",
        ),
        ("my.json", b'{"data": []}', " is an object, but a .json file has one list of objects, or one object per line"),
        (
            "my.json",
            b'{\n"data": []\n}',
            " is an object, but a .json file has one list of objects, or one object per line",
        ),
        ("my.json", b'[{"a": 1}, "b"]', ", record 1 (counted from 0) is a string, but an object is needed"),
        ("my.json", b'[\n{"a": "\xe9"}]', ", line 2 is not UTF-8 (byte 0xe9); convert the file"),
        (
            "my.json",
            '[{"a": 1}]'.encode("utf-32"),
            " is UTF-32 (by its first bytes), but UTF-8 is needed; convert the file",
        ),
        (
            "my.csv",
            "a,b\n".encode("utf-16-be"),
            ", line 1 contains a null byte (is it UTF-16, or binary?); convert the file to UTF-8",
        ),
        (
            "my.jsonl",
            b'{"a": 1}\n{"a": "\0"}\n',
            ", line 2 contains a null byte (is it UTF-16, or binary?); convert the file to UTF-8",
        ),
        (
            "my.jsonl",
            b'{"a": 1}\n{"a": ' + b"[" * 100_000 + b"}\n",
            ", line 2 is nested too deeply; correct the line, or remove it",
        ),
        ("my.json", b"[" * 100_000, " is nested too deeply; correct the file"),
        ("my.csv", b"", " is empty: it has no records"),
        ("my.csv", b"a,b\n", " is empty: it has no records"),
        ("my.csv", b"a,b\n1,2\n1,2,3\n", ", line 3 has 3 values, but the header has 2"),
        ("my.csv", b"a,b\n1,2\n1\n", ", line 3 has 1 values, but the header has 2"),
        ("my.csv", b"a,a\n1,2\n", ", line 1 names a column twice: a, a"),
        (
            "my.csv",
            b'a,b\n1,2\n1,"torn\n',
            ", line 3 is not valid CSV (unexpected end of data); correct the file, or use JSONL",
        ),
        ("my.csv", b"a,b\n1,\xe9\n", ", line 2 is not UTF-8 (byte 0xe9); convert the file"),
        ("my.tsv", b"a\tb\n1\t2\t3\n", ", line 2 has 3 values, but the header has 2"),
        (
            "my.txt",
            b"a\n",
            " is not a supported type of file; give .jsonl, .ndjson, .json, .csv, .tsv (also with .gz, .bz2, .xz, .zst "
            "after it), .parquet or .arrow, or a folder of such files",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_told(name: str, content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert refusal(path) == f"{path}{told}"


@pytest.mark.parametrize("content", ['\n\n[\n\n{"a": 1}\n\n', '[{"a": 1}\n', '[{"a": 1},\n\n{"a"', "\n \n[1\n,}"])
def test_the_line_of_a_json_error_counts_blank_lines(content: str, tmp_path: Path) -> None:
    path = tmp_path / "my.json"
    path.write_text(content)
    with pytest.raises(json.JSONDecodeError) as error:
        json.loads(content)
    assert refusal(path).startswith(f"{path}, line {error.value.lineno} is not valid JSON (")
    assert f"column {error.value.colno});" in refusal(path)


def test_a_torn_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "my.parquet"
    parquet.write_table(pa.Table.from_pylist(TEXTS), path)
    path.write_bytes(path.read_bytes()[:-20])
    assert refusal(path).startswith(f"{path} is not a complete Parquet file: ")


def test_what_is_not_there(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no.jsonl") == f"there is no file {tmp_path}/no.jsonl: check the path"
    assert refusal("no/such/file.csv") == "there is no file no/such/file.csv: check the path"
    assert refusal(tmp_path / "no") == f"there is no file or folder {tmp_path}/no: check the path"


def test_a_misspelt_folder_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sets").mkdir()
    monkeypatch.chdir(tmp_path)
    assert refusal("sets/mine") == "there is no file or folder sets/mine: check the path"


def test_a_folder_without_data(tmp_path: Path) -> None:
    known = "Give a folder with .jsonl, .ndjson, .json, .csv, .tsv (also with .gz, .bz2, .xz, .zst after it), .parquet or .arrow"
    assert refusal(tmp_path) == f"{tmp_path} has no file of records: it is empty. {known}"
    (tmp_path / "README.md").write_text("# Mine")
    (tmp_path / "load.py").write_text("")
    assert refusal(tmp_path) == f"{tmp_path} has no file of records: it holds README.md, load.py. {known}"


def test_a_file_named_as_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert refusal(tmp_path / "file" / "my.jsonl") == f"there is no file {tmp_path}/file/my.jsonl: check the path"


def test_splits(tmp_path: Path) -> None:
    one, two = (datasets.Dataset.from_list(records) for records in (TEXTS, TEXTS[:1]))
    one.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=one, test=two).save_to_disk(str(tmp_path / "both"))
    write_jsonl(tmp_path / "my.jsonl", TEXTS)
    assert read_records(str(tmp_path / "both"), split="test").records == TEXTS[:1]
    assert read_records(str(tmp_path / "both"), split="train").records == TEXTS
    assert refusal(tmp_path / "both") == f"{tmp_path}/both has several splits; name one of train, test"
    assert refusal(tmp_path / "both", split="tst") == f"{tmp_path}/both has no split 'tst'; did you mean 'test'?"
    assert refusal(tmp_path / "one", split="test") == (
        f"{tmp_path}/one is one data set without splits; remove split 'test'"
    )
    assert refusal(tmp_path / "my.jsonl", split="test") == (
        f"{tmp_path}/my.jsonl is one file without splits; remove split 'test'"
    )


def test_a_saved_torch_format_does_not_reach_the_records(tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"n": 7}]).with_format("numpy").save_to_disk(str(tmp_path / "saved"))
    assert repr(read_records(str(tmp_path / "saved")).records) == "[{'n': 7}]"


def test_the_hub_is_asked_by_name_and_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*names: str | None, streaming: bool, cache_dir: str) -> datasets.IterableDatasetDict:
        asked.append((names, streaming, Path(cache_dir)))
        rows = datasets.Dataset.from_list(TEXTS).to_iterable_dataset()
        return datasets.IterableDatasetDict(train=rows, test=rows.take(1))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_records("openai/gsm8k:main", split="train", limit=2).records == TEXTS[:2]
    found = read_records("squad", split="test")
    assert found.records == TEXTS[:1]
    assert found.place(0) == "squad, record 0 (counted from 0)"
    assert [(names, streaming) for names, streaming, _ in asked] == [
        (("openai/gsm8k", "main"), True),
        (("squad", None), True),
    ]
    assert not any(cache.exists() for *_, cache in asked)


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'openai/gsm8k'\non the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert refusal("openai/gsm8k", split="test") == (
        "'openai/gsm8k' is not a data set that `datasets` can load (ConnectionError: Couldn't reach 'openai/gsm8k' on "
        "the "
        "Hub): check the name, its configuration (owner/name:configuration) and the network, or give a file or a folder"
    )


def test_reading_is_quiet_leaves_no_cache_and_puts_settings_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    datasets.utils.enable_progress_bars()
    logger = logging.getLogger("datasets")
    level = logger.level
    write_folder(tmp_path / "folder", TEXTS)
    read_records(str(tmp_path / "folder"))
    refusal(tmp_path / "folder", split="no")
    assert capfd.readouterr() == ("", "")
    assert not cache.exists()
    assert not datasets.utils.are_progress_bars_disabled()
    assert logger.level == level


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_a_number_too_long_to_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"my{suffix}"
    path.write_text(f'[{{"a": {"1" * 5000}}}]' if suffix == ".json" else f'{{"a": 1}}\n{{"a": {"1" * 5000}}}\n')
    assert "contains a number that is too long to read (Exceeds the limit (4300 digits)" in refusal(path)
    assert refusal(path).startswith(str(path) if suffix == ".json" else f"{path}, line 2 ")


def test_parquet_text_that_is_no_utf8(tmp_path: Path) -> None:
    raw = pa.array([b"ok", b"\xff"], pa.binary()).cast(pa.large_binary())
    text = pa.LargeStringArray.from_buffers(2, raw.buffers()[1], raw.buffers()[2])
    parquet.write_table(pa.table({"a": text}), tmp_path / "my.parquet")
    assert refusal(tmp_path / "my.parquet").startswith(
        f"{tmp_path}/my.parquet is not a complete Parquet file: 'utf-8' codec"
    )


def test_long_fields_come_through(tmp_path: Path) -> None:
    path = tmp_path / "my.jsonl"
    path.write_text(json.dumps({"a": "x" * 100_000}) + "\n", encoding="utf-8")
    assert read_records(str(path)).records == [{"a": "x" * 100_000}]
    before = csv.field_size_limit()
    (tmp_path / "my.csv").write_text(f"a\n{'x' * 200_000}\n")
    assert read_records(str(tmp_path / "my.csv")).records == [{"a": "x" * 200_000}]
    assert csv.field_size_limit() == before


def test_an_ending_may_be_in_capitals(tmp_path: Path) -> None:
    (tmp_path / "my.CSV").write_text("a\n007\n")
    assert read_records(str(tmp_path / "my.CSV")).records == [{"a": "007"}]
