"""Activations that vanish while a run goes on: told by model, data set, chunk and file, and captured anew by the next run."""

from __future__ import annotations

from raysweep.engine.driver import drive
from raysweep.engine.folder import RunFolder

ASKED = ("studies={similarity: {}}", "models.0.tuned={}", "datasets.1.limit=2")


def test_a_file_that_vanished_is_named_and_captured_anew(make_config, tmp_path, events_of, tables_of):
    config, folder = make_config(tmp_path / "run", *ASKED), RunFolder(tmp_path / "run")
    where = folder.activations("m", "first") / "layer=002"

    def losing(event):
        if event["event"] == "call_started" and event["call"] == "similarity m/first":
            for path in sorted(where.glob("part-*.arrow"))[1:]:
                path.unlink()

    done = drive(config, listener=losing)
    assert set(done.failed) == {"similarity m/first"}
    error = done.failed["similarity m/first"]
    assert error.startswith(
        "2 of the 3 chunks of activations that were captured from model 'm' on data set 'first' are gone; the first is "
        "chunk 1: "
        f"{where}/part-00001-"
    )
    assert error.endswith(" bytes, found no file. Run again to capture what is missing")
    assert [event["attempt"] for event in events_of(done, "call_failed")] == [1], (
        "trying again at once would find no more"
    )
    assert folder.why_lost("nobody's") == f"no chunk in '{folder.chunks.folder}' has it"
    again = drive(config)
    assert (again.failed, again.n_calls) == ({}, 3), "two captures and the similarity"
    rows = tables_of(again)["similarity"]
    assert rows[rows["dataset"] == "first"]["value"].notna().all()
