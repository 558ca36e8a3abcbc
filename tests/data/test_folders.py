"""Folders of files: the splits against those that `datasets` infers, the records against the json and csv modules."""

import csv
import gzip
import json
import random
import string
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
import pyarrow as pa
import pytest
from datasets.data_files import DataFilesPatternsDict, get_data_patterns
from pyarrow import parquet

from raysweep.data.folders import infer_splits
from raysweep.data.records import are_here, read_records
from raysweep.errors import InputError

Record = dict[str, Any]

# Texts that a reader which guesses types would change.
ANSWERS = [
    "007",
    "1.10",
    "2024-03-01",
    "2024-03-01T10:00:00Z",
    "NA",
    "None",
    "null",
    "true",
    "1e5",
    "12345678901234567890",
]
RECORDS: list[Record] = [{"q": f"number {i}", "a": answer} for i, answer in enumerate([*ANSWERS, ""])]


def write(path: Path, records: list[Record]) -> Path:
    """The records in the kind of file that the path's ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(records), path)
    elif path.suffix == ".arrow":
        table = pa.Table.from_pylist(records)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in records).encode()))
    elif path.suffix == ".json":
        path.write_text(json.dumps(records))
    else:
        path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def refusal(source: object, **arguments: Any) -> str:
    with pytest.raises(InputError) as error:
        read_records(str(source), **arguments)
    return str(error.value)


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet", ".arrow", ".jsonl.gz"])
def test_a_folder_is_read_as_its_files_are(ending: str, tmp_path: Path) -> None:
    one, two = (tmp_path / f"data/train-0000{i}-of-00002{ending}" for i in range(2))
    write(one, RECORDS[:4])
    write(two, RECORDS[4:])
    found = read_records(str(tmp_path))
    assert found.records == RECORDS == [*read_records(str(one)).records, *read_records(str(two)).records]
    assert found.numbers == list(range(len(RECORDS)))
    assert found.source == str(tmp_path)
    assert found.warnings == ()
    beside = [read_records(str(file)) for file in (one, two)]
    assert [found.place(n) for n in found.numbers] == [read.place(n) for read in beside for n in read.numbers]
    assert found.place(4).startswith(f"{two}, ")


def test_arrow_in_its_file_format(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(RECORDS)
    with pa.OSFile(str(tmp_path / "my.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    assert read_records(str(tmp_path / "my.arrow")).records == RECORDS


@pytest.mark.parametrize("cut", [10, 100])
def test_a_torn_arrow_file(cut: int, tmp_path: Path) -> None:
    path = write(tmp_path / "my.arrow", RECORDS)
    path.write_bytes(path.read_bytes()[:-cut])
    assert refusal(path).startswith(f"{path} is not a complete Arrow file: ")


# Layouts of real repositories, and names that only look as if they had a split in them.
LAYOUTS = [
    ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/test-00000-of-00001.jsonl"],
    ["data/train_sft-00000-of-00001.jsonl", "data/test_sft-00000-of-00001.jsonl", "data/extra.jsonl"],
    ["data/random-00000-of-00001-0a1b2c.jsonl", "train.jsonl"],
    ["train.jsonl", "test.jsonl", "dev.jsonl"],
    ["valid.jsonl", "val_2.jsonl", "eval.jsonl", "other.jsonl"],
    ["my_train_file.jsonl", "my-test-file.jsonl", "contest.jsonl", "latest.jsonl", "trainer.jsonl"],
    ["train/one.jsonl", "train/deep/two.jsonl", "test/one.jsonl", "notes.jsonl"],
    ["training-set/one.jsonl", "set evaluation/one.jsonl"],
    ["data/train/part.0.jsonl", "data/validation/part.0.jsonl"],
    ["train/test.jsonl", "train/dev.jsonl"],
    ["a.jsonl", "b/c.jsonl"],
    ["one.jsonl", ".hidden/train.jsonl", ".train.jsonl", "__pycache__/test.jsonl", "_train.jsonl"],
    ["Train.jsonl", "TEST.jsonl"],
    ["train-00000-of-00001.jsonl", "test-00000-of-00001.jsonl"],
    ["data/train-0-of-2.jsonl", "data/train-1-of-2.jsonl"],
    ["test0.jsonl", "test1.jsonl", "9train9.jsonl"],
    ["en/train.jsonl", "de/train.jsonl", "de/test.jsonl"],
]


def inferred_by_datasets(folder: Path) -> dict[str, set[str]]:
    found = DataFilesPatternsDict.from_patterns(get_data_patterns(str(folder))).resolve(str(folder))
    return {str(split): {Path(file).relative_to(folder).as_posix() for file in files} for split, files in found.items()}


def inferred(names: list[str]) -> dict[str, set[str]]:
    visible = [n for n in names if not any(part.startswith((".", "__")) for part in PurePosixPath(n).parts)]
    return {split: set(map(str, files)) for split, files in infer_splits(map(PurePosixPath, visible)).items()}


@pytest.mark.parametrize("names", LAYOUTS, ids=lambda names: names[0])
def test_splits_are_those_that_the_hub_infers(names: list[str], tmp_path: Path) -> None:
    for i, name in enumerate(names):
        write(tmp_path / name, [{"q": name, "a": str(i)}])
    expected = inferred_by_datasets(tmp_path)
    assert inferred(names) == expected
    assert list(inferred(names)) == list(expected)
    for split, files in expected.items():
        assert {record["q"] for record in read_records(str(tmp_path), split=split).records} == files


def test_splits_of_names_made_at_random(tmp_path: Path) -> None:
    draw = random.Random(7)
    words = ["train", "test", "dev", "val", "eval", "training", "validation", "data", "x", "9", "of", "00000-of-00001"]
    for trial in range(40):
        folder = tmp_path / str(trial)
        names = set()
        for _ in range(draw.randint(1, 5)):
            parts = [
                "".join(draw.choice(words) + draw.choice("-._ 0z") for _ in range(draw.randint(1, 3)))[:40]
                for _ in range(2)
            ]
            names.add(
                "/".join(part.strip(". ") + draw.choice(string.ascii_letters) for part in parts[: draw.randint(1, 2)])
                + ".jsonl"
            )
        for name in names:
            write(folder / name, [{"q": name}])
        assert inferred(sorted(names)) == inferred_by_datasets(folder), sorted(names)


def test_shards_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    order = list(range(12))
    for i in random.Random(1).sample(order, 12):
        write(tmp_path / f"train-{i}.jsonl", [{"i": i}])
    assert [record["i"] for record in read_records(str(tmp_path)).records] == order
    write(tmp_path / "train-007.jsonl", [{"i": -7}])
    assert [record["i"] for record in read_records(str(tmp_path)).records] == [*range(7), -7, *range(7, 12)]


def test_several_splits_are_listed(tmp_path: Path) -> None:
    for name in ("train.jsonl", "dev.jsonl", "test.jsonl"):
        write(tmp_path / name, [{"q": name}])
    assert refusal(tmp_path) == f"{tmp_path} has several splits; name one of train, validation, test"
    assert refusal(tmp_path, split="tests") == f"{tmp_path} has no split 'tests'; did you mean 'test'?"
    assert read_records(str(tmp_path), split="validation").records == [{"q": "dev.jsonl"}]


def test_what_is_not_data_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "data/train-00000-of-00001.parquet", RECORDS)
    for name in (
        "README.md",
        ".gitattributes",
        "LICENSE",
        "LICENSE.txt",
        "set.py",
        "figures/a.png",
        "dataset_infos.json",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert read_records(str(tmp_path)).records == RECORDS


def test_files_of_no_split_are_reported(tmp_path: Path) -> None:
    for name in ("part-1.jsonl", "part-2.jsonl", "dev.jsonl"):
        write(tmp_path / name, [{"q": name}])
    found = read_records(str(tmp_path))
    assert found.records == [{"q": "dev.jsonl"}]
    assert found.warnings == (
        f"{tmp_path}: 2 of 3 files of records match no split (validation) by name and are not read: part-1.jsonl, "
        "part-2.jsonl",
    )


def test_missing_shards_are_reported(tmp_path: Path) -> None:
    for i in (0, 2, 3):
        write(tmp_path / f"data/train-0000{i}-of-00005.jsonl", [{"i": i}])
    found = read_records(str(tmp_path))
    assert [record["i"] for record in found.records] == [0, 2, 3]
    assert found.warnings == (
        f"{tmp_path}/data/train-*-of-00005.jsonl: only 3 of 5 shards are present, and only their records are read",
    )


def test_several_kinds_in_one_split(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", RECORDS)
    write(tmp_path / "train.jsonl", RECORDS)
    assert refusal(tmp_path) == (
        f"{tmp_path} has files of several types in one split: train.csv (CSV) and train.jsonl (JSON). Give one of the "
        "files, "
        "or a folder with one type"
    )
    (tmp_path / "train.csv").unlink()
    write(tmp_path / "test.csv", RECORDS[:2])
    assert read_records(str(tmp_path), split="train").records == RECORDS
    assert read_records(str(tmp_path), split="test").records == RECORDS[:2]


def test_files_that_may_be_the_same_records(tmp_path: Path) -> None:
    write(tmp_path / "train-1.jsonl", RECORDS)
    write(tmp_path / "train-1.jsonl.gz", RECORDS)
    assert refusal(tmp_path) == (
        f"{tmp_path} has train-1.jsonl and train-1.jsonl.gz in one split, which may be the same records. Give one of them, or "
        "rename it"
    )
    (tmp_path / "train-1.jsonl.gz").rename(tmp_path / "train-2.jsonl.gz")
    assert read_records(str(tmp_path)).records == RECORDS * 2


@pytest.mark.parametrize("name", ["b.jsonl.lz4", "b.csv.zip", "b.parquet.gz"])
def test_records_in_another_compression_are_not_passed_over(name: str, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", RECORDS)
    (tmp_path / name).write_bytes(b"?")
    assert refusal(tmp_path).startswith(
        f"{tmp_path}/{name} has a compression that raysweep does not read. Convert it to "
    )


def test_a_broken_file_is_named_with_its_line(tmp_path: Path) -> None:
    write(tmp_path / "data/train-00000-of-00002.jsonl", RECORDS)
    broken = tmp_path / "data/train-00001-of-00002.jsonl"
    broken.write_text('{"a": 1}\n{"a": ')
    assert refusal(tmp_path).startswith(f"{broken}, line 2 is not a complete JSON object")
    assert len(read_records(str(tmp_path), limit=len(RECORDS) + 1).records) == len(RECORDS) + 1
    with pytest.raises(InputError, match="line 1: too long"):
        read_records(str(tmp_path), leaves_out=refusing)


def refusing(record: Record) -> bool:
    if record.get("a") == 1:
        raise InputError("too long")
    return False


def test_only_the_files_that_are_needed_are_opened(tmp_path: Path) -> None:
    write(tmp_path / "train-1.jsonl", RECORDS)
    (tmp_path / "train-2.jsonl").write_bytes(b"\xff")
    assert read_records(str(tmp_path), limit=1).records == RECORDS[:1]
    assert "train-2.jsonl, line 1 is not UTF-8" in refusal(tmp_path)


def test_empty_files_hold_no_record(tmp_path: Path) -> None:
    (tmp_path / "train-1.jsonl").write_text("")
    (tmp_path / "train-2.jsonl").write_text("\n")
    assert refusal(tmp_path) == f"{tmp_path} is empty: it has no records"
    write(tmp_path / "train-3.jsonl", RECORDS)
    assert read_records(str(tmp_path)).records == RECORDS


def test_links_are_followed_once(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write(tmp_path / "elsewhere/one.jsonl", RECORDS)
    folder.mkdir()
    (folder / "data").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere/up").symlink_to(folder, target_is_directory=True)
    assert read_records(str(folder)).records == RECORDS


NAMES = [
    "[v2] tries",
    "set[1]",
    "a?b",
    "a*b",
    "what#1",
    "100%",
    "a::b",
    ".hidden",
    "ü ñ",
    "a{b,c}",
    "x=1",
    "test",
    "zip:",
    "~",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_the_path_given(name: str, tmp_path: Path) -> None:
    for other in ("set1", "v tries", "axb", "a", "b"):  # what the names could mean as patterns or chains
        write(tmp_path / other / "train.jsonl", [{"q": "other", "a": ""}])
    folder = tmp_path / name / "set"
    write(folder / "data/train-00000-of-00001.jsonl", RECORDS)
    assert read_records(str(folder)).records == RECORDS
    write(tmp_path / name / "my.jsonl", RECORDS[:2])
    assert read_records(str(tmp_path / name / "my.jsonl")).records == RECORDS[:2]
    for kept in ("train.jsonl", "[0].jsonl", "a?.jsonl"):
        write(tmp_path / "files" / name / kept, [{"kept": kept}])
    assert [record["kept"] for record in read_records(str(tmp_path / "files" / name), split="train").records] == [
        "train.jsonl"
    ]
    assert are_here(str(folder))


@pytest.mark.parametrize("name", NAMES)
def test_the_path_of_a_saved_data_set_is_the_path_given(name: str, tmp_path: Path) -> None:
    datasets.utils.disable_progress_bars()
    try:
        datasets.Dataset.from_list(RECORDS).save_to_disk(str(tmp_path / "plain"))
    finally:
        datasets.utils.enable_progress_bars()
    (tmp_path / "plain").rename(tmp_path / name)
    found = read_records(str(tmp_path / name))
    assert found.records == RECORDS
    assert found.place(1) == f"{tmp_path / name}, record 1 (counted from 0)"
    next((tmp_path / name).glob("*.arrow")).unlink()
    assert refusal(tmp_path / name).startswith(f"'{tmp_path / name}' is not a data set that `datasets` can load (")
    assert "/saved" not in refusal(tmp_path / name)


def test_a_pattern_is_not_expanded(tmp_path: Path) -> None:
    write(tmp_path / "train-1.jsonl", RECORDS)
    assert refusal(tmp_path / "train-*.jsonl") == (
        f"there is no file {tmp_path}/train-*.jsonl: check the path (patterns are not expanded; give the folder)"
    )
    assert refusal(tmp_path / "tra[i]n") == f"there is no file or folder {tmp_path}/tra[i]n: check the path"
