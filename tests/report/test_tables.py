"""The result tables: joined from commits in the graph's order, named as promised, written for any Parquet reader."""

from __future__ import annotations

import random

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysweep.engine.folder import RunFolder
from raysweep.engine.graph import Graph, Task
from raysweep.report.tables import COLUMNS, collect_tables, write_tables
from raysweep.studies.windows import Window

PROMISED = {
    "substitution": "model, dataset, kind, layers, start, stop, width, centre, coefficient, estimator, example_id, n_tokens, loss",
    "verification": "model, dataset, kind, layers, coefficient, example_id, loss, recomputed, difference",
    "stopping": "model, dataset, rule, confidence, examples, of, share, settled, set, reason",
    "similarity": "model, other, dataset, metric, layer_i, layer_j, value, ci_low, ci_high, reason",
    "dynamics": "model, dataset, metric, neighbourhood, layer, delta, ci_low, ci_high, rank, rank_low, rank_high, chosen",
    "critical": "model, dataset, metric, neighbourhood, layers, share, whole",
    "health": "model, dataset, layer, measure, value, warning",
    "spectrum": "model, dataset, layer, components, measure, value, reason",
    "correlation": "model, dataset, metric, width, neighbourhood, n_layers, spearman, ci_low, ci_high, p_shift, "
    "partial_depth, kendall, precision_at_k, p_value, effective_layers, p_permutation, precision_chance, p_precision, reason",
    "removal": "model, dataset, of, layer, components, mode, mean, position, measure, value, ci_low, ci_high, reason",
    "training": "model, dataset, study, arm, layers, seed, step, split, loss",
    "adaptation": "model, dataset, arm, versus, measure, seeds, steps, value, ci_low, ci_high, reason",
    "attack": (
        "model, dataset, arm, layers, seed, trigger, prompts, judge, examples, rate, ci_low, ci_high, "
        "harm_mean, harm_5_share, clean_loss, reason"
    ),
    "answers": "model, dataset, arm, seed, prompts, example_id, prompt, text, judge, success, score, reason",
    "generation": "model, dataset, example_id, intervention, prompt, reference, text",
}
NONE, FIRST, LAST = Window(0, 0), Window(0, 2), Window(1, 3)


def losses(window, ids, part):
    n = len(ids)
    return pd.DataFrame(
        {
            "kind": "window",
            "layers": window.layers,
            "start": window.start,
            "stop": window.stop,
            "width": window.width,
            "centre": np.full(n, np.nan if window.centre is None else window.centre),
            "coefficient": 1.0,
            "estimator": "exact",
            "example_id": ids,
            "n_tokens": 3,
            "loss": [window.start + i / 10 for i in ids],
            "part": part,
        }
    )


def dynamics(part, n_layers=2):
    return pd.DataFrame(
        {
            "metric": "cka_linear",
            "neighbourhood": 3,
            "layer": range(n_layers),
            "delta": 0.5,
            "ci_low": np.nan,
            "ci_high": np.nan,
            "rank": pd.array([1, None], dtype="Int64"),
            "rank_low": np.nan,
            "rank_high": np.nan,
            "chosen": np.nan,
            "part": part,
        }
    )


def substitute(model, dataset, window, *parts):
    return Task("substitute", model, dataset, parts, window)


GRAPH = Graph(
    (
        substitute("m", "d", NONE, "n0", "n1"),
        substitute("m", "d", FIRST, "f0", "f1"),
        Task("similarity", "m", "d", ("c0", "c1"), results={"dynamics": "delta d"}),
        substitute("m", "e", LAST, "l0"),
        Task("similarity", "m", "e", ("c2",), results={"dynamics": "delta e"}),
    )
)
COMMITS = {
    "fused-0": [losses(NONE, [0, 1], "n0"), losses(FIRST, [0, 1], "f0")],
    "fused-1": [losses(NONE, [2], "n1"), losses(FIRST, [2], "f1")],
    "other": [losses(LAST, [0, 1], "l0")],
    "dynamics-d": [dynamics("delta d")],
    "dynamics-e": [dynamics("delta e")],
    "earlier": [losses(Window(0, 3), [0, 1], "kept, and not shown")],
}


def folder_with(root, names):
    folder = RunFolder(root)
    for name in names:
        rows = pd.concat(COMMITS[name], ignore_index=True)
        parts = dict.fromkeys(rows["part"])
        folder.chunks.commit(name, pa.Table.from_pandas(rows, preserve_index=False), parts=parts)
    return folder


@pytest.fixture
def tables(tmp_path):
    return collect_tables(folder_with(tmp_path, COMMITS), GRAPH)


def test_the_columns_are_those_that_are_promised(tables):
    assert {name: ", ".join(columns) for name, columns in COLUMNS.items()} == PROMISED
    for name, table in tables.items():
        assert ", ".join(table.columns) == PROMISED[name]


def test_rows_come_in_the_order_of_the_graph(tables):
    rows = tables["substitution"]
    assert list(zip(rows["model"], rows["dataset"], rows["layers"], rows["example_id"], strict=True)) == [
        *(("m", "d", "", i) for i in (0, 1, 2)),
        *(("m", "d", "0-1", i) for i in (0, 1, 2)),
        *(("m", "e", "1-2", i) for i in (0, 1)),
    ]
    assert list(rows["loss"]) == [0.0, 0.1, 0.2, 0.0, 0.1, 0.2, 1.0, 1.1]
    assert list(rows.index) == list(range(8))
    assert list(tables) == ["substitution", "dynamics"], "tables without a row are not there"
    assert list(tables["dynamics"]["dataset"]) == ["d", "d", "e", "e"]


@pytest.mark.parametrize("seed", range(3))
def test_whatever_the_order_of_the_commits(tables, tmp_path, seed):
    names = random.Random(seed).sample(list(COMMITS), len(COMMITS))
    for name, rows in collect_tables(folder_with(tmp_path / "other", names), GRAPH).items():
        pd.testing.assert_frame_equal(rows, tables[name])


def test_what_is_not_committed_is_not_there(tmp_path):
    folder = folder_with(tmp_path, ["fused-1"])
    found = collect_tables(folder, GRAPH)
    assert list(found) == ["substitution"]
    assert list(found["substitution"]["example_id"]) == [2, 2]
    assert collect_tables(RunFolder(tmp_path / "empty"), GRAPH) == {}


def test_tasks_with_the_same_keys_have_the_same_rows(tmp_path):
    twins = Graph((*GRAPH.tasks[:2], substitute("twin", "d", NONE, "n0", "n1"), substitute("m", "x", FIRST, "f0")))
    rows = collect_tables(folder_with(tmp_path, COMMITS), twins)["substitution"]
    assert list(zip(rows["model"], rows["dataset"], rows["layers"], rows["example_id"], strict=True)) == [
        *(("m", "d", "", i) for i in (0, 1, 2)),
        *(("m", "d", "0-1", i) for i in (0, 1, 2)),
        *(("twin", "d", "", i) for i in (0, 1, 2)),
        *(("m", "x", "0-1", i) for i in (0, 1)),
    ]


def test_files_are_plain_parquet(tables, tmp_path):
    folder = RunFolder(tmp_path)
    write_tables(folder, tables)
    written = pq.read_table(folder.results / "substitution.parquet")
    assert written.schema.metadata is None, "nothing only pandas understands"
    kinds = {field.name: str(field.type).removeprefix("large_") for field in written.schema}
    assert kinds == {
        **dict.fromkeys(("model", "dataset", "kind", "layers", "estimator"), "string"),
        **dict.fromkeys(("start", "stop", "width", "example_id", "n_tokens"), "int64"),
        **dict.fromkeys(("centre", "coefficient", "loss"), "double"),
    }
    assert written["centre"].to_pylist() == [None] * 3 + [0.5] * 3 + [1.5] * 2, "no window, no centre"
    delta = pq.read_table(folder.results / "dynamics.parquet")
    assert delta["rank"].to_pylist() == [1, None, 1, None]
    assert delta["ci_low"].null_count == 4
    pd.testing.assert_frame_equal(
        pd.read_parquet(folder.results / "substitution.parquet"), tables["substitution"], check_dtype=False
    )


def test_tables_that_a_run_no_longer_has_are_removed(tables, tmp_path):
    folder = RunFolder(tmp_path)
    write_tables(folder, tables)
    (folder.results / "mine.parquet").write_bytes(b"kept")
    write_tables(folder, {"dynamics": tables["dynamics"]})
    assert sorted(path.name for path in folder.results.glob("[!.]*")) == ["dynamics.parquet", "mine.parquet"]
