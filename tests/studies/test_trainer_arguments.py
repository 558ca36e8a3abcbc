"""Arguments of the trainer, checked before anything runs and on any machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raysweep.errors import InputError
from raysweep.studies import trainer_arguments
from raysweep.studies.trainer_arguments import check_arguments, make_arguments, training_steps
from raysweep.studies.training import Recipe


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"lerning_rate": 1},
            r"^here\.lerning_rate is not an argument of transformers' trainer; did you mean 'learning_rate'\?",
        ),
        ({"learning_rate": "fast"}, r"^here\.learning_rate is 'fast': Input should be a valid number"),
        ({"learning_rate": -1}, r"^here\.learning_rate is -1\.0, and must be a number, 0 or more"),
        ({"learning_rate": ".nan"}, r"^here\.learning_rate is '\.nan': Input should be a valid number"),
        ({"optim": "adamx"}, r"^here is refused by transformers' trainer: adamx is not a valid OptimizerNames"),
        ({"lr_scheduler_type": "cosin"}, r"^here is refused by transformers' trainer: cosin is not a valid Scheduler"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, r"One of min_lr or min_lr_rate should be set"),
        ({"adam_beta1": 2}, r"^here is refused by transformers' trainer: Invalid beta parameter"),
        ({"bf16": True, "fp16": True}, r"At most one of fp16 and bf16 can be True"),
        ({"max_steps": 0}, r"^here\.max_steps is 0; give 1 or more"),
        ({"num_train_epochs": 0}, r"^here\.num_train_epochs is 0\.0, so nothing would be trained"),
        (
            {"save_total_limit": 1},
            r"save_total_limit is 1, and must be a number, 2 or more: while one checkpoint is written",
        ),
        ({"save_strategy": "best"}, r"save_strategy is best: the weights of the last step are measured"),
        ({"train_sampling_strategy": "group_by_length"}, r"an order that it can restore after an interruption"),
        ({"seed": 1}, r"^here\.seed cannot be set: set seed \(or seeds\) of the study"),
        ({"output_dir": "x"}, r"^here\.output_dir cannot be set: raysweep keeps its checkpoints in the run folder"),
        ({"fsdp": "full_shard"}, r"^here\.fsdp cannot be set: set strategy and processes of the study"),
        ({"hub_model_id": "x"}, r"^here\.hub_model_id cannot be set: raysweep uploads nothing"),
        (
            {"report_to": "comet_ml"},
            r"^here\.report_to names 'comet_ml', and raysweep can keep tensorboard, mlflow, wandb off",
        ),
    ],
)
def test_what_the_trainer_or_raysweep_refuses_is_told(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_arguments(arguments, "here")


def test_a_tracker_without_its_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_arguments, "installed", lambda name: False)
    with pytest.raises(
        InputError,
        match=r"here\.report_to names mlflow, whose package is not installed: pip install 'raysweep\[trackers\]'",
    ):
        check_arguments({"report_to": ["mlflow"]}, "here")
    monkeypatch.setattr(trainer_arguments, "installed", lambda name: True)
    assert check_arguments({"report_to": "wandb"}, "here") == {"report_to": ["wandb"]}


def test_values_get_their_types_and_old_names_their_new_ones() -> None:
    given = {"learning_rate": "1e-4", "gradient_checkpointing": True, "bf16": True, "tf32": True, "max_steps": 7}
    assert check_arguments(given, "here") == {
        "learning_rate": 1e-4,
        "activation_checkpointing": True,
        "bf16": True,
        "tf32": True,
        "max_steps": 7,
    }


@pytest.mark.parametrize(
    ("arguments", "processes", "steps"),
    [
        ({}, 1, 13),
        ({"num_train_epochs": 2.5}, 1, 33),
        ({"max_steps": 5, "num_train_epochs": 2}, 1, 5),
        ({"per_device_train_batch_size": 16, "gradient_accumulation_steps": 3}, 1, 3),
        ({"per_device_train_batch_size": 16, "dataloader_drop_last": True}, 1, 6),
        ({}, 2, 7),
    ],
)
def test_steps_are_counted_as_the_trainer_counts_them(arguments: dict[str, Any], processes: int, steps: int) -> None:
    assert training_steps(arguments, 100, processes) == steps


def test_defaults_make_a_curve_of_any_length_and_give_way_to_the_user(tmp_path: Path) -> None:
    def made(n_train: int, **arguments: Any) -> Any:
        recipe = Recipe(seed=7, arguments=arguments)
        return make_arguments(recipe, tmp_path, n_train, device="cpu", strategy="ddp", processes=1, resumed=False)

    long, short, own = made(8000), made(8), made(8000, learning_rate=1.0, eval_steps=3, lr_scheduler_type="linear")
    assert (long.logging_steps, long.eval_steps, long.save_steps) == (20, 100, 250)
    assert (short.logging_steps, short.eval_steps, short.save_steps) == (1, 1, 1)
    assert (long.learning_rate, long.lr_scheduler_type, long.num_train_epochs, long.weight_decay) == (
        2e-5,
        "constant",
        1,
        0,
    )
    assert (own.learning_rate, own.eval_steps, own.lr_scheduler_type, own.save_steps) == (1.0, 3, "linear", 250)
    assert (long.seed, long.data_seed, long.report_to, long.eval_on_start) == (7, 7, [], True)
