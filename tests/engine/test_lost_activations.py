"""Activations that vanish while a run goes on: told by model, data set, chunk and file, and captured anew by the next run."""

from __future__ import annotations

import pytest

from raysweep.engine.driver import drive
from raysweep.engine.folder import RunFolder

ASKED = ("studies={similarity: {}}", "models.0.tuned={}", "datasets.1.limit=4")


@pytest.fixture
def losing(make_config, tmp_path):
    """losing(lose) runs the plain config's similarity, and lets `lose(folder)` take something away before `first` is compared."""

    def run(lose):
        config = make_config(tmp_path / "run", *ASKED)

        def listener(event):
            if event["event"] == "call_started" and event["call"] == "similarity m/first":
                lose(RunFolder(tmp_path / "run"))

        return config, drive(config, listener=listener)

    return run


def test_a_file_that_vanished_is_named_and_captured_anew(losing, events_of, tables_of, same_tables, finished):
    def lose(folder):
        for path in sorted(folder.activations("m", "first").glob("layer=002/part-*.arrow"))[1:]:
            path.unlink()

    config, done = losing(lose)
    part = "part-00001-"
    (name, error), *_ = done.failed.items()
    assert name == "similarity m/first"
    where = done.folder.activations("m", "first") / "layer=002"
    head = (
        "2 of the 3 chunks of activations that were captured of model 'm' on data set 'first' are gone; the first is chunk 1: "
        f"{where}/{part}"
    )
    assert error.startswith(head)
    assert error.endswith(" bytes, found no file. Run again: what is missing is captured anew")
    assert set(done.failed) == {name}
    assert [event["attempt"] for event in events_of(done, "call_failed")] == [1], (
        "trying again at once would find no more"
    )
    again = drive(config)
    assert (again.failed, again.n_calls) == ({}, 3), "two captures and the similarity"
    tables = (tables_of(done)["similarity"] for done in (again, finished))
    found, whole = ({"similarity": rows[rows["dataset"] == "first"]} for rows in tables)
    same_tables(found, whole)


def test_a_commit_that_vanished_is_named_by_its_folder(losing):
    def lose(folder):
        for manifest in folder.chunks.manifests():
            if "activations/m/first" in manifest.extra.get("folder", "") and manifest.extra["part"].startswith("00002"):
                folder.chunks.forget(manifest)

    _, done = losing(lose)
    assert done.failed["similarity m/first"] == (
        "1 of the 3 chunks of activations that were captured of model 'm' on data set 'first' are gone; the first is chunk 2: no chunk "
        f"in '{done.folder.chunks.folder}' has it. Run again: what is missing is captured anew"
    )
