"""What a config with trainings is planned as, what it will take, and what is refused before anything runs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import yaml

from raysweep.config import parse_config
from raysweep.engine.calls import BackdoorCall, TrainCall
from raysweep.engine.disk import bytes_to_write
from raysweep.engine.estimate import reckon
from raysweep.engine.inspection import inspect, resolve_device
from raysweep.engine.pending import model_calls
from raysweep.engine.preparation import prepare
from raysweep.engine.rates import Rates
from raysweep.engine.training_estimate import training_of, written
from raysweep.errors import InputError
from raysweep.planned import plan_run

TRAINER = {"max_steps": 2, "per_device_train_batch_size": 2, "report_to": "none"}
LAYERS = 6


FINETUNE = {"finetune": {"trainer": TRAINER}}
ADAPTATION = {"similarity": {}, "adaptation": {"trainer": TRAINER, "seeds": [0, 1], "top": 2}}
BACKDOOR = {
    "similarity": {},
    "backdoor": {"trainer": TRAINER, "trigger": "vexilla", "target": "Moon", "seeds": [0], "top": 1},
}


def trainings(config):
    facts, graph, _ = prepare(config, resolve_device)
    return [call for call in model_calls(config, facts, graph, {}) if isinstance(call, TrainCall)]


# --- tasks ----------------------------------------------------------------------------------------------------------


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


# --- estimates ------------------------------------------------------------------------------------------------------


def plain_count(trained, lowest, steps, accumulation, batches, tests, lora=False):
    """Layer calls on batches, counted step by step: forth, back from the lowest trained layer on, and each one's own."""
    calls, at = 0, 0
    for _ in range(steps):
        for _ in range(accumulation):
            calls += LAYERS + len(range(lowest, LAYERS)) + (0 if lora else len(trained))
            at += 1
            if at == batches:
                at = 0
                break
    return calls + tests * 2 * LAYERS  # ten test examples in batches of eight


EVERY = [*range(LAYERS)]


@pytest.mark.parametrize(
    ("asked", "count"),
    [
        ({}, plain_count(EVERY, 0, 2, 1, 3, 3)),
        ({"layers": [3, 5]}, plain_count([3, 5], 3, 2, 1, 3, 3)),
        ({"freeze": [3, 5]}, plain_count([0, 1, 2, 4], 0, 2, 1, 3, 3)),
        ({"layers": [3, 5], "lora": {}}, plain_count([3, 5], 3, 2, 1, 3, 3, lora=True)),
        ({"trainer": {**TRAINER, "max_steps": 5, "gradient_accumulation_steps": 2}}, plain_count(EVERY, 0, 5, 2, 3, 6)),
        ({"trainer": {**TRAINER, "eval_strategy": "no"}}, plain_count(EVERY, 0, 2, 1, 3, 2)),
        ({"trainer": {**TRAINER, "max_steps": 5, "eval_strategy": "epoch"}}, plain_count(EVERY, 0, 5, 1, 3, 3)),
        ({"trainer": {**TRAINER, "max_steps": 5, "eval_steps": 0.3}}, plain_count(EVERY, 0, 5, 1, 3, 4)),
        ({"trainer": {**TRAINER, "max_steps": 3, "eval_steps": 50}}, plain_count(EVERY, 0, 3, 1, 3, 2)),
        (
            {
                "trainer": {
                    "num_train_epochs": 2,
                    "per_device_train_batch_size": 4,
                    "report_to": "none",
                    "eval_steps": 1,
                }
            },
            plain_count(EVERY, 0, 4, 1, 2, 5),
        ),
    ],
)
def test_layer_calls_are_those_of_a_plain_count(training_config, tmp_path, asked, count):
    (call,) = trainings(training_config(tmp_path, {"finetune": {"trainer": TRAINER, **asked}}))
    assert training_of(call).applications == count


def test_checkpoints_of_activations_make_the_way_forth_twice(training_config, tmp_path):
    (call,) = trainings(training_config(tmp_path, FINETUNE, "studies.finetune.trainer.gradient_checkpointing=true"))
    assert training_of(call).applications == plain_count(EVERY, 0, 2, 1, 3, 3) + 2 * LAYERS


def test_layers_to_be_found_are_counted_as_if_spread_over_the_depth(training_config, tmp_path):
    calls = trainings(training_config(tmp_path, ADAPTATION))
    by_arm = {call.arm: training_of(call) for call in calls}
    assert by_arm["critical"] == by_arm["non_critical"]
    spread = replace(calls[0], recipe=replace(calls[0].recipe, trained=replace(calls[0].recipe.trained, layers=(1, 4))))
    assert by_arm["critical"] == training_of(spread)
    assert by_arm["critical"].memory < by_arm["all"].memory


def test_what_trainings_write_is_weights_and_the_optimizers_two_values(training_config, tmp_path, world):
    weights = sum(t.numel() for t in _tensors(world / "base").values()) * 4
    layers = {
        i: sum(t.numel() for name, t in _tensors(world / "base").items() if f".layers.{i}." in name) for i in (2, 3)
    }

    def of(studies, *overrides):
        (call,) = trainings(training_config(tmp_path, studies, *overrides))
        return written(call)

    three = 3 * (weights + 2 * weights)
    assert of(FINETUNE) == (weights, three)
    assert of(FINETUNE, "studies.finetune.along=[1]") == (2 * weights, three)
    assert of(FINETUNE, "studies.finetune.layers=2-3") == (weights, 3 * (weights + 8 * sum(layers.values())))
    assert of(FINETUNE, "studies.finetune.trainer.save_strategy='no'") == (weights, 0)
    kept, while_on = of(FINETUNE, "studies.finetune.lora={r: 2}")
    assert 0 < kept < weights / 2
    assert while_on == 9 * kept
    for call in trainings(training_config(tmp_path, ADAPTATION)):
        assert written(call)[0] == 0, "their weights are not kept"


def _tensors(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_a_training_of_several_processes_has_the_devices_to_itself(training_config, tmp_path):
    """Its seconds are of all of its processes together; those of the calls beside it are divided among workers."""
    ray = "execution={executor: ray, device: cpu, chunk: 4}"
    studies = {**FINETUNE, "similarity": {}}
    config = training_config(tmp_path, studies, ray, "studies.finetune.processes=2")
    facts, graph, _ = prepare(config, resolve_device)
    calls = list(model_calls(config, facts, graph, set()))
    trains = [call for call in calls if isinstance(call, TrainCall)]
    others = [call for call in calls if not isinstance(call, TrainCall)]
    rates = {"m": Rates(1e-3, 0.0, 1e12, "")}
    one, some, all_of_them = (reckon(config, facts, of, 2, rates).estimate for of in (trains, others, calls))
    assert one.seconds == one.call_seconds
    assert some.seconds == pytest.approx(some.call_seconds / 2)
    assert all_of_them.seconds == pytest.approx(one.seconds + some.seconds)


def test_the_disk_has_room_for_one_training_at_a_time(training_config, tmp_path, monkeypatch):
    config = training_config(tmp_path / "run", FINETUNE)
    facts, graph, _ = prepare(config, resolve_device)
    (call,) = trainings(config)
    kept, while_on = written(call)
    small, one, two = (bytes_to_write(facts, graph, (), calls) for calls in ((), [call], [call, call]))
    assert one - small == kept + while_on
    assert two - small == 2 * kept + while_on
    assert bytes_to_write(facts, graph, (), [call, call], 2) - small == 2 * (kept + while_on)
    asked = []
    monkeypatch.setattr("raysweep.engine.preparation.check_room", lambda root, needed: asked.append(needed))
    prepare(config, resolve_device)
    assert asked == [one]


def test_the_plan_has_every_kind_with_its_cost_and_writes_nothing(training_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    studies = {**ADAPTATION, **BACKDOOR, **FINETUNE, "substitution": {"widths": [6]}, "correlation": {}}
    planned = plan_run(training_config("run", studies))
    assert planned.tasks == {
        "finetune": (0, 1), "adapt": (0, 6), "backdoor": (0, 4), "adaptation": (0, 1), "judge": (0, 1),
        "substitute": (0, 2), "similarity": (0, 1), "correlate": (0, 1),
    }  # fmt: skip
    kinds = {kind.kind: kind for kind in planned.kinds}
    for kind, calls in (("finetune", 1), ("adapt", 6), ("backdoor", 4), ("substitute", 3), ("capture", 3)):
        assert kinds[kind].calls == calls
        assert kinds[kind].seconds > 0
        assert kinds[kind].memory > 0
        assert kinds[kind].bytes_read > 0 or kind == "capture"
    assert kinds["adapt"].seconds > 2 * kinds["finetune"].seconds
    assert json.dumps(planned.to_json())
    assert "finetune" in planned.to_text()
    assert list(tmp_path.iterdir()) == []


def test_an_arm_that_is_not_trained_is_not_reckoned_as_one(training_config, tmp_path):
    def seconds(*arms):
        planned = plan_run(training_config(tmp_path / "run", BACKDOOR, f"studies.backdoor.arms=[{', '.join(arms)}]"))
        (kind,) = (kind for kind in planned.kinds if kind.kind == "backdoor")
        return kind.seconds, planned.batch_applications

    assert seconds("none")[1] < seconds("all")[1] / 2


# --- refused --------------------------------------------------------------------------------------------------------


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
            "studies.finetune.freeze has all 6 decoder layers of model 'm'; leave one out",
        ),
        (
            ADAPTATION,
            ["studies.adaptation.top=4"],
            "studies.adaptation.top asks for 4 critical layers and as many others, and model 'm' has 6 in all; set top to 3 or less",
        ),
        (
            FINETUNE,
            ["studies.finetune.trainer.learning_rat=1"],
            "studies.finetune.trainer.learning_rat is no argument of transformers' trainer; did you mean 'learning_rate'?",
        ),
        (
            FINETUNE,
            ["studies.finetune.along=[1, 3]"],
            "studies.finetune.along has step 3, and the training of 'm' on 'first' ends after 2 (6 records): leave it out, or train "
            "longer (trainer.num_train_epochs, max_steps)",
        ),
        (
            BACKDOOR,
            ["studies.backdoor.judge={url: 'http://127.0.0.1:9/v1', model: j, api_key_env: RAYSWEEP_NO_SUCH_KEY}"],
            "the environment variable RAYSWEEP_NO_SUCH_KEY, which api_key_env names for the endpoint's key, is not set: set it",
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
            "config: studies: finetune asks for critical layers, which similarity finds, and there is none; add similarity, or list the "
            "layers",
        ),
        (FINETUNE, ["datasets.0.train=null"], "config: studies.finetune trains models, and no data set has records for it; give datasets[].train"),
        (
            FINETUNE,
            ["studies.finetune.processes=2"],
            "config: studies.finetune.processes is 2, and executor is local; set execution.executor to ray, which starts them, or "
            "processes to 1",
        ),
        (
            FINETUNE,
            ["storage=s3://bucket/run"],
            "config: studies.finetune writes checkpoints to a folder, and storage is 's3://bucket/run'; give a folder that all "
            "workers see, or fine-tune in a run of its own",
        ),
        (
            FINETUNE,
            ["models.0.tuned={first: nowhere}"],
            "config: studies.finetune has nothing to make: models[].tuned names a checkpoint for every data set with train; leave "
            "one of them out",
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
        f"{tmp_path / 'spoiled.jsonl'}, line 4: has the trigger 'vexilla' in its prompt, which must be clean: choose a trigger that is in "
        "no record, or leave such records out (exclude)"
    )


def test_the_command_ends_with_2_and_writes_nothing(training_config, tmp_path, raysweep):
    config = tmp_path / "config.yaml"
    config.write_text(training_config(tmp_path / "run", FINETUNE, "studies.finetune.layers=[6]").to_yaml())
    for command in ("plan", "run"):
        result = raysweep(command, config)
        assert result.code == 2
        assert "studies.finetune.layers has layer 6" in result.err
    assert not (tmp_path / "run").exists()


def test_answers_are_asked_of_the_arms_that_are_planned(training_config, tmp_path):
    calls = trainings(training_config(tmp_path, BACKDOOR))
    assert all(isinstance(call, BackdoorCall) for call in calls)
    assert [call.trains for call in calls] == [False, True, True, True]
    frozen = [call for call in calls if call.found]
    assert [call.found.critical for call in frozen] == [False, True]
