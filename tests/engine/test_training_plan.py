"""What a config with trainings is planned as: its tasks, what decides their keys, and the calls."""

from __future__ import annotations

import yaml
from planned_trainings import ADAPTATION, BACKDOOR, FINETUNE, TRAINER, trainings

from raysweep.config import parse_config
from raysweep.engine.calls import BackdoorCall, TrainCall
from raysweep.engine.inspection import resolve_device
from raysweep.engine.pending import model_calls
from raysweep.engine.preparation import prepare


def test_every_training_is_a_task_and_those_made_of_them_wait_for_it(training_config, tmp_path):
    studies = {**ADAPTATION, **BACKDOOR, **FINETUNE, "substitution": {"widths": [6]}, "correlation": {}}
    facts, graph, _ = prepare(training_config(tmp_path / "run", studies), resolve_device)
    needs = {task.name: task.needs for task in graph.tasks}
    found = "similarity m/first"
    arms = [f"adapt m/first {arm} seed {seed}" for arm in ("critical", "non_critical", "all") for seed in (0, 1)]
    attacked = ["none", "all seed 0", "freeze_non_critical seed 0", "freeze_critical seed 0"]
    attacks = [f"backdoor m/first {at}" for at in attacked]
    assert needs == {
        "finetune m/first": (),
        **{arm: (found,) if "critical" in arm else () for arm in arms},
        **{name: (found,) if "critical" in name else () for name in attacks},
        "adaptation m/first": tuple(arms),
        "judge m/first keywords": tuple(attacks),
        "substitute m/first none": ("finetune m/first",),
        "substitute m/first 0-5": ("finetune m/first",),
        found: (),
        "correlate m/first": (found, "substitute m/first none", "substitute m/first 0-5"),
    }
    assert facts.models["m"].promised == {"first"}
    assert not (tmp_path / "run").exists()


def test_what_decides_the_weights_decides_the_key_and_nothing_else_does(training_config, tmp_path):
    def key(*overrides):
        (call,) = trainings(training_config(tmp_path, FINETUNE, *overrides))
        return call.key

    plain = key()
    other = [
        "seed=7",
        "trainer.max_steps=3",
        "trainer.learning_rate=1e-3",
        "layers=2-3",
        "freeze=2-3",
        "lora={}",
        "dtype=bfloat16",
    ]
    keys = [key(f"studies.finetune.{override}") for override in other]
    keys += [key("datasets.0.train.limit=4"), key("datasets.0.train.max_tokens=20")]
    assert len({plain, *keys}) == 1 + len(keys)
    for same in ("trainer.logging_steps=1", "trainer.eval_steps=1", "trainer.save_steps=1", "along=[1]"):
        assert key(f"studies.finetune.{same}") == plain
    assert key("datasets.0.limit=4") == plain, "the test set is not trained on"


def test_a_config_with_its_defaults_spelled_out_asks_for_the_same(training_config, tmp_path):
    """As `config.yaml` in a run folder has them; a default of 16 is not to be another number than 16.0."""
    judge = {"url": "http://127.0.0.1:9/v1", "model": "j"}
    studies = {
        **BACKDOOR,
        "backdoor": {**BACKDOOR["backdoor"], "judge": judge},
        "finetune": {"trainer": TRAINER, "lora": {}},
    }
    plain = training_config(tmp_path / "run", studies)
    spelled = parse_config(yaml.safe_load(plain.to_yaml()))
    graphs = [prepare(config, resolve_device)[1] for config in (plain, spelled)]
    assert [task.keys for task in graphs[0].tasks] == [task.keys for task in graphs[1].tasks]


def test_a_model_that_is_there_is_tested_in_one_process(training_config, tmp_path):
    """Of a fine-tune over several processes, whose test records alone are others now: it is not trained again."""
    ray = "execution={executor: ray, device: cpu, chunk: 4}"
    config = training_config(tmp_path, FINETUNE, ray, "studies.finetune.processes=2")
    facts, graph, _ = prepare(config, resolve_device)
    (task,) = graph.of_kind("finetune")
    (trained,), (tested,) = (
        [call for call in model_calls(config, facts, graph, done) if isinstance(call, TrainCall)]
        for done in (set(), set(task.parts))
    )
    assert (trained.made, trained.processes) == (None, 2)
    assert (tested.made.fingerprint, tested.processes) == (trained.key, 1)


def test_critical_layers_are_as_the_similarity_that_finds_them(training_config, tmp_path):
    studies = {"similarity": {}, "finetune": {"trainer": TRAINER, "layers": "critical"}}

    def key(*overrides):
        (call,) = trainings(training_config(tmp_path, studies, *overrides))
        return call.key

    keys = [
        key(),
        key("studies.similarity.neighbourhood=5"),
        key("studies.finetune.top=2"),
        key("studies.finetune.layers=non_critical"),
    ]
    assert len(set(keys)) == 4


def test_answers_are_asked_of_the_arms_that_are_planned(training_config, tmp_path):
    calls = trainings(training_config(tmp_path, BACKDOOR))
    assert all(isinstance(call, BackdoorCall) for call in calls)
    assert [call.trains for call in calls] == [False, True, True, True]
    frozen = [call for call in calls if call.found]
    assert [call.found.critical for call in frozen] == [False, True]
