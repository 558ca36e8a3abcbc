"""Runs that train: what is swept is what was made, tables as designed, nothing done twice, and failures that stay alone."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest

from raysweep import api
from raysweep.engine import events
from raysweep.engine.accuracy import compare
from raysweep.engine.driver import Done, drive
from raysweep.engine.events import read_events
from raysweep.engine.folder import RunFolder
from raysweep.errors import RunError
from raysweep.studies.training import drawn_beside

TRAINER = {"max_steps": 3, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "report_to": "none"}
SWEPT = {"substitution": {"widths": [2]}, "similarity": {}, "correlation": {"resamples": 10}}
ONE_CHUNK = "execution.chunk=10"
LAYERS = 6
COLUMNS = ["model", "dataset", "study", "arm", "layers", "seed", "step", "split", "loss"]


def finetuned(**asked):
    return {**SWEPT, "finetune": {"trainer": TRAINER, **asked}}


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


def calls_after(done, events_of, before):
    return [event["call"].split(" chunk")[0] for event in events_of(done)[before:] if event["event"] == "call_started"]


# --- fine-tune, then sweep ------------------------------------------------------------------------------------------


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


# --- adaptation -----------------------------------------------------------------------------------------------------

ADAPTATION = {"similarity": {}, "adaptation": {"trainer": {**TRAINER, "max_steps": 2}, "seeds": [0, 1], "top": 2}}


@pytest.fixture(scope="module")
def adapted(training_config, tmp_path_factory):
    done = drive(training_config(tmp_path_factory.mktemp("adapted") / "run", ADAPTATION))
    assert done.failed == {}
    return done


def test_arms_are_trained_for_every_seed_on_as_many_layers(adapted, tables_of):
    tables = tables_of(adapted)
    rows = tables["training"]
    assert set(rows["study"]) == {"adaptation"}
    layers = {key: of["layers"].unique() for key, of in rows.groupby(["arm", "seed"])}
    assert set(layers) == {(arm, seed) for arm in ("critical", "non_critical", "all") for seed in (0, 1)}
    assert all(len(found) == 1 for found in layers.values())

    def numbers(arm, seed):
        first, *rest = (int(n) for n in layers[arm, seed][0].replace("-", ",").split(","))
        return {first, *rest}

    critical = set(tables["dynamics"].sort_values("rank")["layer"].head(2))
    for seed in (0, 1):
        assert numbers("critical", seed) == critical
        assert numbers("non_critical", seed) == set(drawn_beside(tuple(critical), LAYERS, seed))
        assert not numbers("non_critical", seed) & critical
        assert layers["all", seed][0] == "0-5"
    assert not (adapted.folder.root / "checkpoints").exists()
    assert not list((adapted.folder.root / "training").iterdir())


def test_differences_are_those_of_the_curves(adapted, tables_of):
    tables = tables_of(adapted)
    test = tables["training"][tables["training"]["split"] == "test"]
    losses = test.pivot_table(index=["arm", "seed"], columns="step", values="loss")
    found = tables["adaptation"].set_index(["arm", "versus", "measure"])
    assert len(found) == 6
    for (arm, versus, measure), row in found.iterrows():
        curves = losses.loc[arm] - losses.loc[versus]
        by_seed = curves[2] if measure == "final" else (curves[0] / 2 + curves[1] + curves[2] / 2) / 2
        assert row["value"] == pytest.approx(by_seed.mean(), abs=1e-9)
        assert (row["seeds"], row["steps"]) == (2, 2)
        assert row["ci_low"] <= row["value"] <= row["ci_high"]


def test_one_seed_more_trains_only_that(adapted, training_config, tmp_path, events_of):
    before, root = len(events_of(adapted)), shutil.copytree(adapted.folder.root, tmp_path / "run")
    done = drive(
        training_config(
            root, ADAPTATION, "studies.adaptation.seeds=[0, 1, 2]", "studies.adaptation.arms=[critical, all]"
        )
    )
    assert done.failed == {}
    assert sorted(calls_after(done, events_of, before)) == [
        "adapt m/first all seed 2",
        "adapt m/first critical seed 2",
        "adaptation m/first",
    ]


@pytest.fixture
def failing(monkeypatch):
    """failing(wrong) lets trainings fail whose recipe is `wrong`, until it is called again."""
    from raysweep.studies import finetune

    train, chosen = finetune.finetune, []

    def may_fail(*arguments, **more):
        if chosen[-1](arguments[4]):
            raise RunError("the test loss is nan at step 1")
        return train(*arguments, **more)

    monkeypatch.setattr(finetune, "finetune", may_fail)
    return chosen.append


def test_arms_that_are_trained_are_compared_where_another_failed(
    training_config, tmp_path, tables_of, same_tables, adapted, failing
):
    failing(lambda recipe: recipe.trained.mode == "all" and recipe.seed == 1)
    done = drive(training_config(tmp_path / "run", ADAPTATION))
    assert done.failed == {
        "adapt m/first all seed 1": "the test loss is nan at step 1",
        "adaptation m/first": "compared in part only, for 'adapt m/first all seed 1' failed",
    }
    whole, part = tables_of(adapted)["adaptation"], tables_of(done)["adaptation"]
    same_tables({"adaptation": part[:2]}, {"adaptation": whole[:2]})
    assert part["seeds"].tolist() == [2, 2, 1, 1, 1, 1]
    assert part["value"].notna().all()
    assert part["reason"].tolist()[2] == (
        "one seed: no interval; left out, for only one of critical and all has test losses: seed 1; "
        "all with seed 1: training failed (the test loss is nan at step 1)"
    )
    failing(lambda recipe: False)
    again = drive(training_config(tmp_path / "run", ADAPTATION))
    assert (again.n_calls, again.failed) == (2, {}), "the training and the comparison"
    same_tables(tables_of(again), tables_of(adapted))


def test_an_arm_that_failed_has_its_reason_on_the_page(training_config, tmp_path, failing):
    failing(lambda recipe: recipe.trained.mode == "all")
    run = api.run(training_config(tmp_path / "run", ADAPTATION))
    assert run.adaptation["value"].notna().tolist() == [True, True, False, False, False, False]
    told = (
        "Training critical layers cannot be compared with training all layers: no seed has test losses of both critical and all; "
        "all with seed 0, 1: training failed (the test loss is nan at step 1)."
    )
    assert told in run.report.read_text(encoding="utf-8")
    assert told in api.open_run(tmp_path / "run").report.read_text(encoding="utf-8")


def test_with_no_arm_trained_there_is_nothing_to_compare(training_config, tmp_path, tables_of, failing):
    failing(lambda recipe: True)
    done = drive(training_config(tmp_path / "run", ADAPTATION))
    assert done.failed["adaptation m/first"].startswith("not made, for 'adapt m/first critical seed 0' failed")
    assert "adaptation" not in tables_of(done)


# --- what fails, fails alone ----------------------------------------------------------------------------------------


def test_a_loss_that_is_nan_ends_its_own_cell_and_no_other(training_config, world, tmp_path, tables_of, raysweep):
    values = training_config(tmp_path / "run", finetuned()).model_dump()
    values["datasets"] = [
        *values["datasets"],
        {**values["datasets"][0], "name": "second", "path": str(world / "second.jsonl")},
    ]
    values["studies"]["finetune"]["trainer"]["learning_rate"] = 1e30
    values["models"] = [{**values["models"][0], "tuned": {"second": str(world / "tuned")}}]
    config = tmp_path / "config.json"
    config.write_text(json.dumps(values))
    result = raysweep("run", config)
    assert result.code == 1, result.err
    told = api.status(tmp_path / "run")
    assert list(told.failures) == ["finetune m/first"]
    why = told.failures["finetune m/first"]
    assert why == (
        "the test loss is nan at step 1, learning rate 1e+30; the last finite one was 6.167 at step 0: lower learning_rate, warm up "
        "longer, or train in float32 or bf16"
    )
    assert "not made, for 'finetune m/first' failed" in result.err
    folder = RunFolder(tmp_path / "run")
    tables = tables_of(Done(folder, folder.read_plan()[0]))
    assert set(tables["substitution"]["dataset"]) == {"second"}
    assert set(tables["correlation"]["dataset"]) == {"second"}
    assert set(tables["similarity"]["dataset"]) == {"first", "second"}


def test_out_of_memory_a_training_is_not_tried_with_smaller_batches(training_config, tmp_path, monkeypatch, events_of):
    tried = []

    def too_much(*arguments, **more):
        tried.append(1)
        raise MemoryError("all gone")

    monkeypatch.setattr("raysweep.studies.finetune.finetune", too_much)
    done = drive(training_config(tmp_path / "run", {"finetune": {"trainer": TRAINER}}))
    assert len(tried) == 1
    assert done.failed == {
        "finetune m/first": "'finetune m/first' runs out of memory on cpu (MemoryError: all gone); set trainer's "
        "per_device_train_batch_size to less and gradient_accumulation_steps to more, gradient_checkpointing to true, max_tokens of "
        "its data set's train to fewer, or spread it over more processes"
    }


# --- what is left behind --------------------------------------------------------------------------------------------


def test_what_the_trainers_trackers_wrote_is_kept(training_config, tmp_path, monkeypatch):
    from raysweep.studies import finetune

    train = finetune.finetune

    def tracked(*arguments, **more):
        tuned = train(*arguments, **more)
        (arguments[5] / "tensorboard").mkdir()
        (arguments[5] / "tensorboard" / "events").write_text("losses")
        return tuned

    monkeypatch.setattr(finetune, "finetune", tracked)
    drive(training_config(tmp_path, {"finetune": {"trainer": TRAINER}}))
    (events_file,) = tmp_path.glob("trackers/trainings/finetune-m-first-*/tensorboard/events")
    assert events_file.read_text() == "losses"
    assert not list((tmp_path / "training").iterdir())


def test_a_training_that_nothing_asks_for_any_more_is_found_and_removed(training_config, tmp_path, monkeypatch):
    class KilledError(BaseException):
        pass

    def dying(event):
        if event["event"] == events.CALL_GOES_ON and event["step"] == 2:
            raise KilledError

    studies = {"finetune": {"trainer": {**TRAINER, "save_steps": 1}}}
    with pytest.raises(KilledError):
        drive(training_config(tmp_path, studies), listener=dying)
    assert list(tmp_path.glob("training/*/checkpoint-1"))
    assert api.examine(tmp_path).findings == (), "the next run goes on from it"
    drive(training_config(tmp_path, studies, "studies.finetune.seed=1"))
    (found,) = api.examine(tmp_path, remove=True).findings
    assert (found.kind, found.path.partition("/")[0], found.removed) == ("orphan", "training", True)
    assert found.bytes > 100_000
    assert not list((tmp_path / "training").iterdir())


# --- how far it has come --------------------------------------------------------------------------------------------


def test_the_status_tells_how_far_a_training_has_come(training_config, tmp_path, raysweep, events_of):
    seen = []

    def listener(event):
        if event["event"] == events.CALL_GOES_ON and event["split"] == "test" and event["step"] == 2:
            seen.append((raysweep("status", tmp_path / "run").out, api.status(tmp_path / "run")))

    done = drive(training_config(tmp_path / "run", {"finetune": {"trainer": TRAINER}}), listener=listener)
    ((text, standing),) = seen
    told = standing.to_json()["trainings"]["finetune m/first"]
    assert (told["step"], told["of"], told["split"]) == (2, 3, "test")
    assert math.isfinite(told["loss"])
    assert f"  finetune m/first: step 2 of 3, test loss {told['loss']:.4g}\n" in text
    assert json.dumps(standing.to_json())
    after = api.status(tmp_path / "run")
    assert after.trainings == {}
    assert "step" not in after.to_text()
    assert np.isfinite([e["loss"] for e in events_of(done, events.CALL_GOES_ON)]).all()
