"""The declared columns are those that runs and the functions that make tables write, and the reference shows them all."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import table_reference

from raysweep.numerics.health import health
from raysweep.report.columns import TABLES
from raysweep.report.tables import COLUMNS
from raysweep.studies.adaptation import adaptation_table
from raysweep.studies.attack import Run, answers_table, attack_table
from raysweep.studies.interventions import Intervention, labels
from raysweep.studies.judging import Verdict
from raysweep.studies.removal import Removal
from raysweep.studies.removal_effects import Effects
from raysweep.studies.removal_tables import nowhere_to_remove, removal_table
from raysweep.studies.spectrum import spectrum
from raysweep.studies.windows import Window

GOLDENS = sorted((Path(__file__).parents[1] / "goldens" / "demo").glob("*.parquet"))
ADDED = ("model", "dataset", "of")  # by the engine, to what a study's function makes
ARROW = {
    "text": (pa.types.is_string, pa.types.is_large_string),
    "integer": (pa.types.is_integer, pa.types.is_floating),  # with nulls pandas makes floats of them
    "number": (pa.types.is_floating,),
    "boolean": (pa.types.is_boolean,),
}


def check(name: str, rows: pd.DataFrame, *, complete: bool = True) -> None:
    """The columns of rows of one table are the declared ones, with their types and values."""
    columns = TABLES[name].columns
    if complete:
        expected = [key for key in columns if key in rows or key not in ADDED]
        assert sorted(set(rows) - {"part"}) == sorted(expected)
    schema = pa.Schema.from_pandas(rows, preserve_index=False)
    for key in (key for key in columns if key in rows):
        kind = schema.field(key).type
        assert pa.types.is_null(kind) or any(fits(kind) for fits in ARROW[columns[key].type]), f"{name}.{key}: {kind}"
        if columns[key].values:
            assert set(rows[key].dropna()) <= set(columns[key].values), f"{name}.{key}"


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_tables_of_the_demo_are_as_declared(path):
    assert pq.read_schema(path).names == list(TABLES[path.stem].columns)
    check(path.stem, pd.read_parquet(path))


def test_health_and_spectrum():
    states = np.random.default_rng(0).normal(size=(4, 9, 5))
    assert set(TABLES["health"].columns["measure"].values) == {"not_finite", *health(states)}
    rows = spectrum(states, (1, 2))
    check("spectrum", rows)
    assert set(rows["measure"]) == set(TABLES["spectrum"].columns["measure"].values)


def test_changes():
    for change in (
        Window(0, 2),
        Intervention("set", (0, 3)),
        *(Intervention(k, (1, 2)) for k in ("mlp", "attention", "reverse")),
    ):
        check("substitution", pd.DataFrame([labels(change)]), complete=False)
    assert set(labels(Window(0, 2))) == set(TABLES["substitution"].columns) - {
        "model",
        "dataset",
        "example_id",
        "n_tokens",
        "loss",
    }


def test_adaptation_and_training():
    training = pd.DataFrame(
        [
            {
                "study": "adaptation",
                "arm": arm,
                "layers": "0-1",
                "seed": seed,
                "step": step,
                "split": "test",
                "loss": 1.0,
            }
            for arm in ("critical", "all")
            for seed in (0, 1)
            for step in (0, 5)
        ]
    )
    check("training", training)
    rows = adaptation_table(training, ["critical", "all"])
    check("adaptation", rows)
    assert set(rows["measure"]) == set(TABLES["adaptation"].columns["measure"].values)


def test_attack_and_answers():
    texts = pd.DataFrame(
        [
            {"arm": "all", "seed": 0, "prompts": prompts, "example_id": each, "prompt": "a", "text": "b"}
            for prompts in ("triggered", "clean")
            for each in (0, 1)
        ]
    )
    answers = answers_table(texts, "keywords", [Verdict(success=True)] * 4)
    check("answers", answers)
    check("attack", attack_table(answers, [Run("all", 0, "0-1", 0.5)], "vexilla"))


def test_removals():
    nowhere = nowhere_to_remove([Removal((0,))], "no layer")
    check("removal", nowhere["removal"])
    check("generation", nowhere["generation"])
    assert set(TABLES["removal"].columns) - set(nowhere["removal"]) == set(ADDED)
    written = re.findall(
        r'"(\w+)": ',
        Path(removal_table.__code__.co_filename).read_text().split("def removal_table")[1].split("def _rows")[0],
    )
    measures = set(TABLES["removal"].columns["measure"].values)
    assert measures <= set(written) | {"loss_before"}
    assert Effects.__doc__


def test_the_page_has_every_table_and_column_and_no_other():
    page = table_reference.markdown()
    sections = dict(re.findall(r"^## `(\w+)` \{.*?\}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert set(sections) == set(TABLES)
    for name, text in sections.items():
        assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == list(COLUMNS[name])
        rows = [line for line in text.splitlines() if line.startswith("|")]
        assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {4}


def test_everything_has_a_meaning():
    for name, table in TABLES.items():
        assert table.row
        assert table.study.startswith("studies."), name
        for key, column in table.columns.items():
            assert column.meaning, f"{name}.{key}"
            assert all(meaning.endswith(".") for meaning in column.values.values()), f"{name}.{key}"
