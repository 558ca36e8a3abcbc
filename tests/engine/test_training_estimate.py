"""What trainings are reckoned to take: layer calls by a plain count, bytes that they write, devices and room on a disk."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from planned_trainings import ADAPTATION, BACKDOOR, FINETUNE, LAYERS, TRAINER, trainings

from raysweep.engine.calls import TrainCall
from raysweep.engine.disk import bytes_to_write
from raysweep.engine.estimate import reckon
from raysweep.engine.inspection import resolve_device
from raysweep.engine.pending import model_calls
from raysweep.engine.preparation import prepare
from raysweep.engine.rates import Rates
from raysweep.engine.training_estimate import training_of, written
from raysweep.planned import plan_run


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
    assert "fine-tune    1 task" in planned.to_text()
    assert list(tmp_path.iterdir()) == []


def test_an_arm_that_is_not_trained_is_not_reckoned_as_one(training_config, tmp_path):
    def seconds(*arms):
        planned = plan_run(training_config(tmp_path / "run", BACKDOOR, f"studies.backdoor.arms=[{', '.join(arms)}]"))
        (kind,) = (kind for kind in planned.kinds if kind.kind == "backdoor")
        return kind.seconds, planned.batch_applications

    assert seconds("none")[1] < seconds("all")[1] / 2
