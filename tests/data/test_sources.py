"""Records in memory are read as records of a file are: the same numbers, places, exclusions and limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest

from raysweep.data.examples import load_examples
from raysweep.data.records import read_records
from raysweep.data.sources import found_format, read_source
from raysweep.errors import InputError
from raysweep.lab import resolve

ROWS: list[dict[str, Any]] = [{"question": f"What is {n}?", "answer": f"It is {n:03}"} for n in range(9)]


def forms(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One list of records in every form that is taken."""
    data = datasets.Dataset.from_list(rows)
    return {
        "list": rows,
        "tuple": tuple(rows),
        "generator": (row for row in rows),
        "frame": pd.DataFrame(rows),
        "dataset": data,
        "as arrays": data.with_format("numpy"),
        "iterable": data.to_iterable_dataset(),
        "one split": datasets.DatasetDict(test=data),
    }


@pytest.mark.parametrize("form", forms(ROWS))
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"limit": 3},
        {"last": 4, "limit": 2},
        {"all_but_last": 4},
        {"leaves_out": lambda record: record["answer"].endswith("2"), "limit": 4},
    ],
    ids=["all", "limit", "last", "all_but_last", "leaves_out"],
)
def test_records_in_memory_are_those_of_a_file(tmp_path: Path, form: str, options: dict[str, Any]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    expected = read_records(str(path), **options)
    found = read_source(forms(ROWS)[form], **options)
    assert found.records == expected.records
    assert (found.numbers, found.n_excluded) == (expected.numbers, expected.n_excluded)
    assert read_source(path, **options).records == expected.records


def test_nested_values_are_pythons_own() -> None:
    choices = {"label": np.array(["A", "B"]), "text": np.array(["x", "y"])}
    frame = pd.DataFrame(
        {"choices": [choices], "n": [np.int64(3)], "turns": [np.array([{"role": "user"}], dtype=object)]}
    )
    (record,) = read_source(frame).records
    assert record == {"choices": {"label": ["A", "B"], "text": ["x", "y"]}, "n": 3, "turns": [{"role": "user"}]}
    assert type(record["n"]) is int


def test_text_stays_as_written_and_missing_values_are_null() -> None:
    frame = pd.DataFrame(
        {"a": ["007", None], "b": [1.5, np.nan], "c": pd.array([1, None], "Int64"), "d": ["NA", "nan"]}
    )
    assert read_source(frame).records == [
        {"a": "007", "b": 1.5, "c": 1, "d": "NA"},
        {"a": None, "b": None, "c": None, "d": "nan"},
    ]


@pytest.mark.parametrize(
    ("source", "options", "told"),
    [
        ([], {}, "the list of records is empty: it has no records"),
        (pd.DataFrame(), {}, "the data frame is empty: it has no records"),
        ({"question": "a"}, {}, r"one record was given \(a dict\); give a list of records"),
        (5, {}, "records of type int were given; give a list of records"),
        (b"abc", {}, "records of type bytes were given"),
        ([ROWS[0], "text"], {}, r"the list of records, record 1 \(counted from 0\), is of type str, and not a dict"),
        ([{1: "a"}], {}, r"record 0 \(counted from 0\), has the key 1, which is not text"),
        (pd.DataFrame([["a", "b"]], columns=["x", "x"]), {}, "the data frame names a column twice: x, x"),
        (ROWS, {"split": "test"}, "the list of records is in memory and has no splits; remove split 'test'"),
        (datasets.Dataset.from_list(ROWS), {"split": "test"}, "is one data set without splits"),
        (datasets.DatasetDict(a=datasets.Dataset.from_list(ROWS)), {"split": "b"}, "has no split 'b'"),
        (
            datasets.DatasetDict(a=datasets.Dataset.from_list(ROWS), b=datasets.Dataset.from_list(ROWS)),
            {},
            "has several splits; name one of a, b",
        ),
        (ROWS, {"last": 1, "all_but_last": 1}, "give only one of them"),
        (ROWS, {"leaves_out": lambda record: True}, "has no records left: of its 9, exclude removes 9"),
    ],
)  # fmt: skip
def test_sources_without_records_are_refused(source: Any, options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        read_source(source, **options)


def test_what_exclusion_refuses_is_told_with_its_place() -> None:
    def refuse(record: Any) -> bool:
        raise InputError("has no field 'x'")

    with pytest.raises(InputError, match=r"^the list of records, record 0 \(counted from 0\): has no field 'x'$"):
        read_source(ROWS, leaves_out=refuse)


def test_the_format_is_that_of_the_first_record() -> None:
    assert found_format(ROWS) == "gsm8k"
    assert found_format(Path(resolve("lab://facts/test"))) == "boolq"
    with pytest.raises(
        InputError, match=r"^the list of records: the first record, with the fields question, fits no known"
    ):
        found_format([{"question": "a"}])


def test_examples_of_records_in_memory_are_those_of_their_file(tokenizer: Any) -> None:
    source = resolve("lab://sums/test")
    rows = [json.loads(line) for line in Path(source).read_text().splitlines()]
    expected = load_examples(source, "gsm8k", tokenizer, limit=4).examples
    for given in (rows, pd.DataFrame(rows), Path(source)):
        found = load_examples(given, "gsm8k", tokenizer, limit=4).examples
        assert [e.tokens.tolist() for e in found] == [e.tokens.tolist() for e in expected]
        assert [(e.id, e.n_prompt, e.prompt, e.response) for e in found] == [
            (e.id, e.n_prompt, e.prompt, e.response) for e in expected
        ]
