"""Trainings that fail, stay alone and are told; what they leave behind, and how far they are said to have come."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from small_trainings import TRAINER, finetuned

from raysweep import api
from raysweep.engine import events
from raysweep.engine.driver import Done, drive
from raysweep.engine.folder import RunFolder


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
        "the test loss is nan at step 1, learning rate 1e+30; the last finite one was 6.167 at step 0: lower "
        "learning_rate, warm up longer, or train in float32 or bf16"
    )
    assert result.err.count("failed: ") == 1, "what needed it is not told again"
    assert f"tracebacks are in {tmp_path / 'run' / 'events.jsonl'}" in result.err.splitlines()[-1]
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
        "finetune "
        "m/first": "'finetune m/first' runs out of memory on cpu (MemoryError: all gone); lower trainer's per_device_train_batch_size and raise gradient_accumulation_steps, set gradient_checkpointing to true, lower max_tokens of its data set's train, or use more processes"
    }


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
    assert f"\nfinetune m/first: step 2 of 3, test loss {told['loss']:.4g}\n" in text
    assert json.dumps(standing.to_json())
    after = api.status(tmp_path / "run")
    assert after.trainings == {}
    assert "step" not in after.to_text()
    assert np.isfinite([e["loss"] for e in events_of(done, events.CALL_GOES_ON)]).all()
