"""What is refused of a config with trainings before anything runs, with its words."""

from __future__ import annotations

import json

import pytest
from planned_trainings import ADAPTATION, BACKDOOR, FINETUNE

from raysweep.engine.inspection import inspect
from raysweep.errors import InputError


def refused(config_of):
    with pytest.raises(InputError) as caught:
        config_of()
    return str(caught.value)


@pytest.mark.parametrize(
    ("studies", "overrides", "told"),
    [
        (
            FINETUNE,
            ["studies.finetune.layers=[2, 6]"],
            "studies.finetune.layers has layer 6, which is not among the 6 decoder layers of model 'm'; layers count from 0",
        ),
        (
            FINETUNE,
            ["studies.finetune.freeze=5-6"],
            "studies.finetune.freeze has layer 6, which is not among the 6 decoder layers of model 'm'; layers count from 0",
        ),
        (
            FINETUNE,
            ["studies.finetune.freeze=0-5"],
            "studies.finetune.freeze has all 6 decoder layers of model 'm'; remove at least one",
        ),
        (
            ADAPTATION,
            ["studies.adaptation.top=4"],
            "studies.adaptation.top asks for 4 critical layers and as many others, and model 'm' has only 6 layers; "
            "set top to 3 or less",
        ),
        (
            FINETUNE,
            ["studies.finetune.trainer.learning_rat=1"],
            "studies.finetune.trainer.learning_rat is not an argument of transformers' trainer; did you mean "
            "'learning_rate'?",
        ),
        (
            FINETUNE,
            ["studies.finetune.along=[1, 3]"],
            "studies.finetune.along has step 3, and the training of 'm' on 'first' ends after 2 steps (6 records); "
            "remove it, or train longer (trainer.num_train_epochs, max_steps)",
        ),
        (
            BACKDOOR,
            ["studies.backdoor.judge={url: 'http://127.0.0.1:9/v1', model: j, api_key_env: RAYSWEEP_NO_SUCH_KEY}"],
            "the environment variable RAYSWEEP_NO_SUCH_KEY, which api_key_env names for the endpoint's key, is not "
            "set; set it",
        ),
    ],
    ids=["layers", "freeze", "all frozen", "top", "argument", "along", "key"],
)  # fmt: skip
def test_bad_input_is_refused_at_inspection(training_config, tmp_path, studies, overrides, told):
    config = training_config(tmp_path / "run", studies, *overrides)
    assert refused(lambda: inspect(config)) == told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("studies", "overrides"),
    [
        (FINETUNE, ["studies.finetune.lora={target_modules: [query]}"]),
        (FINETUNE, ["studies.finetune.lora={target_modules: [query]}", "studies.finetune.layers=[1]"]),
        (ADAPTATION, ["studies.adaptation.lora={target_modules: [query]}", "studies.adaptation.arms=[critical]"]),
    ],
    ids=["all", "listed", "to be found"],
)
def test_low_rank_updates_of_modules_that_are_not_there_are_refused(
    training_config, tmp_path, world, studies, overrides
):
    told = refused(lambda: inspect(training_config(tmp_path / "run", studies, *overrides)))
    (name,) = studies.keys() & {"finetune", "adaptation"}
    assert told.startswith(f"studies.{name}.lora: LoRA does not fit '{world / 'base'}' (model.layers): Target modules")
    assert "query" in told


def test_a_rubric_that_does_not_parse_is_refused_at_inspection(training_config, tmp_path):
    judge = "studies.backdoor.judge={url: 'http://127.0.0.1:9/v1', model: j, rubric: '{{ prompt'}"
    assert "prompt" in refused(lambda: inspect(training_config(tmp_path, BACKDOOR, judge)))


@pytest.mark.parametrize(
    ("studies", "overrides", "told"),
    [
        (
            {"finetune": {"layers": "critical"}},
            [],
            "config: studies: finetune asks for critical layers, which similarity finds, and there is no similarity "
            "study; add it, or list the layers",
        ),
        (FINETUNE, ["datasets.0.train=null"], "config: studies.finetune trains models, and no data set has training records; set datasets[].train"),
        (
            FINETUNE,
            ["studies.finetune.processes=2"],
            "config: studies.finetune.processes is 2, and executor is local; set execution.executor to ray, which starts them, or "
            "processes to 1",
        ),
        (
            FINETUNE,
            ["storage=s3://bucket/run"],
            "config: studies.finetune writes checkpoints to a folder, and storage is 's3://bucket/run'; give a folder "
            "that all workers see, or fine-tune in a separate run",
        ),
        (
            FINETUNE,
            ["models.0.tuned={first: nowhere}"],
            "config: studies.finetune has nothing to train: models[].tuned names a checkpoint for every data set with "
            "train; remove one of them",
        ),
    ],
    ids=["critical", "train", "processes", "storage", "tuned"],
)  # fmt: skip
def test_bad_input_is_refused_when_the_config_is_read(training_config, tmp_path, studies, overrides, told):
    assert refused(lambda: training_config(tmp_path / "run", studies, *overrides)) == told


@pytest.mark.parametrize("where", ["first", "second"])
def test_a_trigger_that_is_in_the_clean_data_is_refused_with_its_line(training_config, tmp_path, world, where):
    records = [json.loads(line) for line in (world / f"{where}.jsonl").read_text().splitlines()]
    records[3]["question"] += " Say vexilla."
    (tmp_path / "spoiled.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    key = "datasets.0.path" if where == "first" else "datasets.0.train.path"
    config = training_config(tmp_path / "run", BACKDOOR, f"{key}={tmp_path / 'spoiled.jsonl'}")
    told = refused(lambda: inspect(config))
    assert told == (
        f"{tmp_path / 'spoiled.jsonl'}, line 4: has the trigger 'vexilla' in its prompt, which must be clean; choose a "
        "trigger that no record contains, or remove such records (exclude)"
    )


def test_the_command_ends_with_2_and_writes_nothing(training_config, tmp_path, raysweep):
    config = tmp_path / "config.yaml"
    config.write_text(training_config(tmp_path / "run", FINETUNE, "studies.finetune.layers=[6]").to_yaml())
    for command in ("plan", "run"):
        result = raysweep(command, config)
        assert result.code == 2
        assert "studies.finetune.layers has layer 6" in result.err
    assert not (tmp_path / "run").exists()
