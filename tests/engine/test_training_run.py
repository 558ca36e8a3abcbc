"""Runs that fine-tune: what is swept is what was made, tables as designed, and nothing done twice."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest
from small_trainings import LAYERS, TRAINER, calls_after, finetuned

from raysweep import api
from raysweep.engine.accuracy import compare
from raysweep.engine.driver import drive
from raysweep.engine.events import read_events
from raysweep.studies.training import drawn_beside

ONE_CHUNK = "execution.chunk=10"
COLUMNS = ["model", "dataset", "study", "arm", "layers", "seed", "step", "split", "loss"]


@pytest.fixture(scope="module")
def tuned(training_config, tmp_path_factory):
    done = drive(training_config(tmp_path_factory.mktemp("tuned") / "run", finetuned()))
    assert done.failed == {}
    return done


def last_test(rows):
    test = rows[rows["split"] == "test"]
    return test.sort_values("step")["loss"].iloc[-1]


def untouched(tables):
    rows = tables["substitution"]
    return rows[rows["width"] == 0]["loss"].mean()


def accuracy(done):
    return compare(done.folder.read_plan()[1]["estimate"], read_events(done.folder.events))


def test_what_is_swept_is_what_was_made(tuned, tables_of, events_of):
    tables = tables_of(tuned)
    assert list(tables) == ["substitution", "similarity", "dynamics", "critical", "health", "correlation", "training"]
    rows = tables["training"]
    assert list(rows.columns) == COLUMNS
    assert set(rows["split"]) == {"train", "test"}
    assert list(rows[rows["split"] == "test"]["step"]) == [0, 1, 2, 3]
    told = ("m", "first", "finetune", "all", "0-5", 42)
    assert set(rows[COLUMNS[:6]].itertuples(index=False, name=None)) == {told}
    assert untouched(tables) == pytest.approx(last_test(rows), abs=1e-5)
    assert last_test(rows) < rows[rows["split"] == "test"]["loss"].iloc[0] - 0.01
    assert tables["substitution"].groupby("layers")["loss"].mean()["0-5"] != pytest.approx(untouched(tables), abs=1e-4)
    assert not list((tuned.folder.root / "training").iterdir())
    assert api.examine(tuned.folder.root).findings == ()
    (made,) = [event for event in events_of(tuned, "call_done") if event["call"] == "finetune m/first"]
    assert made["measured"]["steps"] == 3
    assert made["measured"]["resumed_from"] == 0


def test_the_whole_base_is_the_loss_before_the_first_step(tuned, tables_of):
    """With every layer put back, only what is outside layers is the tuned one's; the first test loss is all the base's."""
    rows = tables_of(tuned)["training"]
    assert rows[(rows["split"] == "test") & (rows["step"] == 0)]["loss"].item() > last_test(rows)


def test_estimated_and_real_are_of_the_same_kinds(tuned):
    found = accuracy(tuned)
    assert found.is_whole
    assert found.ratio("layer_applications") == 1
    assert found.ratio("bytes_read") == pytest.approx(1, abs=0.05)


def test_run_again_nothing_is_done(tuned, training_config):
    again = drive(training_config(tuned.folder.root, finetuned()))
    assert (again.n_calls, again.failed) == (0, {})


@pytest.mark.parametrize(
    ("asked", "arm", "layers"),
    [
        ({"layers": "critical", "top": 2}, "critical", None),
        ({"layers": "non_critical", "top": 2}, "non_critical", None),
        ({"freeze": [0, 5]}, "freeze 0,5", "1-4"),
        ({"layers": [2, 4], "lora": {"r": 2}}, "2,4", "2,4"),
    ],
    ids=["critical", "non_critical", "freeze", "lora"],
)
def test_chosen_layers_are_trained_and_nothing_else(training_config, tmp_path, tables_of, asked, arm, layers, world):
    studies = {
        "finetune": {"trainer": {**TRAINER, "max_steps": 2}, **asked},
        "substitution": {"widths": [1]},
        "similarity": {},
    }
    done = drive(training_config(tmp_path / "run", studies, ONE_CHUNK))
    assert done.failed == {}
    tables = tables_of(done)
    critical = tables["dynamics"].sort_values("rank")["layer"].head(2)
    found = {
        "critical": tuple(sorted(critical)),
        "non_critical": drawn_beside(tuple(critical), LAYERS, 42),
    }
    trained = found.get(arm) or tuple(range(1, 5) if layers == "1-4" else (2, 4))
    rows = tables["training"]
    assert set(rows["arm"]) == {arm}
    words = {layers} if layers else {",".join(map(str, trained)), f"{trained[0]}-{trained[-1]}"}
    assert set(rows["layers"]) < words | {"?"}
    assert untouched(tables) == pytest.approx(last_test(rows), abs=1e-5)
    losses = tables["substitution"].groupby("layers")["loss"].mean()
    moved = {layer for layer in range(LAYERS) if abs(losses[str(layer)] - losses[""]) > 1e-7}
    assert moved == set(trained), "a layer that was not trained is the base's, and putting it back does nothing"


def test_another_seed_makes_another_checkpoint(tuned, training_config, tmp_path, tables_of):
    studies = {"finetune": {"trainer": TRAINER, "seed": 7}, "substitution": {"widths": [2]}}
    other = drive(training_config(tmp_path / "run", studies))
    ours, theirs = ({key for task in done.graph.of_kind("substitute") for key in task.keys} for done in (tuned, other))
    assert not ours & theirs
    assert untouched(tables_of(tuned)) != pytest.approx(untouched(tables_of(other)), abs=1e-6)
    assert set(tables_of(other)["training"]["seed"]) == {7}


@pytest.fixture
def copied(tuned, tmp_path):
    return shutil.copytree(tuned.folder.root, tmp_path / "run")


def test_other_widths_do_not_train_again(training_config, copied, tables_of, events_of, tuned):
    before = len(events_of(tuned))
    done = drive(training_config(copied, finetuned(), "studies.substitution.widths=[3]"))
    assert set(calls_after(done, events_of, before)) == {"substitute m/first 0-5", "correlate m/first"}
    assert set(tables_of(done)["substitution"]["width"]) == {0, 3, 6}
    pd.testing.assert_frame_equal(tables_of(done)["training"], tables_of(tuned)["training"])


def test_other_test_records_are_measured_on_the_checkpoint_that_is_there(
    training_config, copied, tables_of, events_of, tuned
):
    before = len(events_of(tuned))
    made = sorted(path.stat().st_mtime_ns for path in copied.glob("checkpoints/*/*/*"))
    done = drive(training_config(copied, finetuned(), "datasets.0.limit=4"))
    assert done.failed == {}
    assert "finetune m/first" in calls_after(done, events_of, before)
    assert sorted(path.stat().st_mtime_ns for path in copied.glob("checkpoints/*/*/*")) == made
    tables = tables_of(done)
    (row,) = tables["training"].to_dict("records")
    assert (row["step"], row["split"]) == (3, "test")
    assert row["loss"] == pytest.approx(untouched(tables), abs=1e-5)
    assert len(tables["substitution"]["example_id"].unique()) == 4
    found = accuracy(done)
    assert found.is_whole
    assert found.ratio("layer_applications") == 1
    assert drive(training_config(copied, finetuned(), "datasets.0.limit=4")).n_calls == 0


def test_a_checkpoint_that_is_gone_is_made_again(training_config, copied, tables_of, same_tables, tuned):
    (weights,) = copied.glob("checkpoints/*/*/model.safetensors")
    weights.unlink()
    assert "finetune m/first" in api.status(copied).unfinished
    done = drive(training_config(copied, finetuned()))
    assert done.failed == {}
    assert done.n_calls == 1, "the sweep of it is known"
    assert weights.exists()
    same_tables(tables_of(done), tables_of(tuned))


def test_streamed_the_tables_are_the_same(training_config, tmp_path, tables_of, same_tables, tuned):
    streamed = drive(training_config(tmp_path / "run", finetuned(), "execution.residency=stream"))
    assert streamed.failed == {}
    same_tables(tables_of(streamed), tables_of(tuned))


def test_steps_along_the_way_are_kept(training_config, tmp_path, tables_of, tuned):
    done = drive(training_config(tmp_path / "run", {"finetune": {"trainer": TRAINER, "along": [1, 2]}}))
    assert done.failed == {}
    kept = sorted((tmp_path / "run" / "checkpoints" / "m").iterdir())
    assert len(kept) == 3
    assert {path.name for folder in kept for path in folder.iterdir()} >= {"config.json", "model.safetensors"}
    assert len({(folder / "model.safetensors").read_bytes() for folder in kept}) == 3
    assert api.examine(tmp_path / "run").findings == ()
    pd.testing.assert_frame_equal(tables_of(done)["training"], tables_of(tuned)["training"])
