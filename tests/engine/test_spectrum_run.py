"""Spectra in a run: from the stored states, captured once with similarity's, planned, resumed and refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from raysweep.config import parse_config
from raysweep.engine import events
from raysweep.engine.calls import CaptureCall, SubstituteCall
from raysweep.engine.driver import drive
from raysweep.engine.inspection import inspect
from raysweep.engine.pending import model_calls
from raysweep.engine.plan import plan
from raysweep.errors import InputError
from raysweep.report.tables import write_tables
from raysweep.store.activations import open_activations
from raysweep.studies.spectrum import spectrum

ALONE = ("studies.substitution=null", "studies.similarity=null", "studies.correlation=null")
ASKED = "studies.spectrum={components: [1, 2]}"


def computed(events_of, done):
    return [e["call"] for e in events_of(done, events.CALL_DONE)]


def test_spectra_alone_are_made_from_captured_states(make_config, tmp_path, tables_of, events_of):
    done = drive(make_config(tmp_path / "run", *ALONE, ASKED))
    assert not done.failed
    assert [task.name for task in done.graph.tasks] == ["spectrum m/first", "spectrum m/second"]
    assert sorted(computed(events_of, done)) == [
        *(f"capture m/first chunk {index}" for index in range(3)),
        *(f"capture m/second chunk {index}" for index in range(2)),
        "spectrum m/first",
        "spectrum m/second",
    ]
    tables = tables_of(done)
    assert list(tables) == ["spectrum"]
    for name in ("first", "second"):
        rows = tables["spectrum"].query("dataset == @name").drop(columns=["model", "dataset"])
        expected = spectrum(open_activations(done.folder.activations("m", name)).states(), (1, 2))
        pd.testing.assert_frame_equal(rows.reset_index(drop=True), expected, check_dtype=False)
    write_tables(done.folder, tables)
    stored = pq.read_table(done.folder.results / "spectrum.parquet")
    assert stored.column_names == ["model", "dataset", "layer", "components", "measure", "value", "reason"]
    assert str(stored.schema.field("components").type) in ("int64", "double")


def test_added_to_a_run_they_capture_nothing_anew_and_leave_the_other_tables_as_they_were(
    make_config, tmp_path, tables_of, events_of, finished, same_tables
):
    storage = tmp_path / "run"
    drive(make_config(storage))
    done = drive(make_config(storage, ASKED))
    log = events_of(done)
    at = max(i for i, e in enumerate(log) if e["event"] == events.RUN_STARTED)
    assert [e["call"] for e in log[at:] if e["event"] == events.CALL_DONE] == ["spectrum m/first", "spectrum m/second"]
    tables = tables_of(done)
    spectra = tables.pop("spectrum")
    same_tables(tables_of(finished), tables)
    assert set(spectra["components"].dropna()) == {1, 2}
    again = drive(make_config(storage, "studies.spectrum={components: [3]}"))
    assert again.n_calls == 2
    assert set(tables_of(again)["spectrum"]["components"].dropna()) == {3}


@pytest.mark.parametrize("residency", ["resident", "stream"])
def test_with_similarity_every_chunk_is_captured_once_for_both(make_config, residency):
    config = make_config("nowhere", ASKED, f"execution.residency={residency}")
    facts = inspect(config)
    graph = plan(config, facts)
    similarity, spectra = graph.captured("m", "first")
    assert (similarity.kind, spectra.kind) == ("similarity", "spectrum")
    assert similarity.parts == spectra.parts
    calls = list(model_calls(config, facts, graph, set()))
    keys = [part.key for call in calls if isinstance(call, (CaptureCall, SubstituteCall)) for part in call.captures]
    assert len(keys) == len(set(keys)) == 5
    for call in calls:
        if isinstance(call, (CaptureCall, SubstituteCall)) and call.captures:
            both = {f"similarity m/{call.dataset}", f"spectrum m/{call.dataset}"}
            assert both <= set(call.tasks), "a capture that fails fails both"


def test_the_key_is_of_components_and_states_and_of_nothing_else(make_config):
    def key(*overrides):
        config = make_config("nowhere", *overrides)
        return next(plan(config, inspect(config)).of_kind("spectrum")).results["spectrum"]

    same = key(ASKED)
    assert key(ASKED, *ALONE) == same, "with and without similarity"
    assert key(ASKED, "studies.similarity.metrics=[cka_rbf]", "execution.batch_tokens=64") == same
    assert key(ASKED, "studies.similarity.pooling=mean") != same
    assert key("studies.spectrum={components: [2, 1]}") != same


def test_streamed_states_give_the_same(make_config, tmp_path, tables_of):
    found = [
        tables_of(drive(make_config(tmp_path / how, *ALONE, ASKED, f"execution.residency={how}")))["spectrum"]
        for how in ("resident", "stream")
    ]
    np.testing.assert_allclose(found[0]["value"], found[1]["value"], rtol=0, atol=1e-4)


def test_one_example_cannot_be_decomposed(make_config):
    config = make_config("nowhere", *ALONE, ASKED, "datasets.0.limit=1")
    with pytest.raises(
        InputError, match=r"and spectrum compares examples; give 2 or more, or remove studies\.spectrum"
    ):
        inspect(config)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("{components: []}", "studies.spectrum.components"),
        ("{components: [1, 0]}", "studies.spectrum.components"),
        ("{components: [3, 1, 3]}", "3 is listed twice; list each number of components once"),
        ("{component: [1]}", "components"),
        (
            "{pooling: mean}",
            "spectrum.pooling is mean and similarity.pooling is last, and both use the same stored states; remove "
            "spectrum.pooling, or make them equal",
        ),
    ],
)
def test_configs_that_are_refused(make_config, asked, said):
    with pytest.raises(InputError) as caught:
        make_config("nowhere", f"studies.spectrum={asked}")
    assert said in str(caught.value)


def test_pooling_is_similarity_s_unless_there_is_none(make_config):
    assert make_config("nowhere", "studies.similarity.pooling=mean", ASKED).studies.pooling == "mean"
    assert make_config("nowhere", *ALONE, ASKED).studies.pooling == "last"
    assert make_config("nowhere", *ALONE, "studies.spectrum={pooling: first}").studies.pooling == "first"
    plain = make_config("nowhere", "studies.similarity=null", "studies.correlation=null")
    assert (plain.studies.spectrum, plain.studies.pooling) == (None, None)
    written = make_config("nowhere", ASKED).to_yaml()
    assert parse_config(yaml.safe_load(written)).studies.spectrum.components == [1, 2]
