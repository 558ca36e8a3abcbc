"""Arguments of transformers' trainer: the user's, checked before anything runs, and those that raysweep gives.

The names and their meaning are the trainer's own (transformers.TrainingArguments).
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import math
import tempfile
import typing
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from raysweep.errors import InputError, nearest, shortened, shown
from raysweep.models.machine_errors import is_machine_error
from raysweep.studies import sharding

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from raysweep.studies.training import Recipe

DEFAULTS: Mapping[str, Any] = {
    "learning_rate": 2e-5,
    "lr_scheduler_type": "constant",
    "num_train_epochs": 1.0,
    "weight_decay": 0.0,
    "report_to": "none",
    "logging_strategy": "steps",
    "eval_strategy": "steps",
    "save_strategy": "steps",
    "save_total_limit": 2,
}
_POINTS = {"logging_steps": 50, "eval_steps": 10, "save_steps": 4}  # about so many a training
_TRACKERS = ("tensorboard", "mlflow", "wandb")  # what can be kept off the network
_OWN = {
    "output_dir": "raysweep keeps its checkpoints in the run folder",
    **dict.fromkeys(("seed", "data_seed"), "set seed (or seeds) of the study"),
    **dict.fromkeys(("do_train", "do_eval", "do_predict"), "raysweep runs the trainer itself"),
    **dict.fromkeys(
        ("deepspeed", "fsdp", "fsdp_config", "parallelism_config"), "set strategy and processes of the study"
    ),
    **dict.fromkeys(("accelerator_config", "local_rank", "ddp_backend", "use_cpu"), "execution.device sets the device"),
    **dict.fromkeys(
        ("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
        "the weights of the last step are measured",
    ),
    **dict.fromkeys(
        ("resume_from_checkpoint", "ignore_data_skip", "save_only_model", "enable_jit_checkpoint"),
        "raysweep resumes from the last complete checkpoint automatically",
    ),
    "restore_callback_states_from_checkpoint": "raysweep resumes from the last complete checkpoint automatically",
    "auto_find_batch_size": "it would make the result depend on the available memory; set per_device_train_batch_size",
    **dict.fromkeys(("remove_unused_columns", "label_names", "length_column_name"), "raysweep makes the batches"),
    **dict.fromkeys(("eval_on_start", "eval_delay"), "the test loss is always measured before the first step"),
    **dict.fromkeys(
        (
            "prediction_loss_only",
            "include_for_metrics",
            "batch_eval_metrics",
            "eval_do_concat_batches",
            "eval_use_gather_object",
            "eval_accumulation_steps",
        ),
        "raysweep stores one loss per example",
    ),
    "logging_nan_inf_filter": "a loss that is not finite ends the training with an error",
    **dict.fromkeys(("disable_tqdm", "log_level", "log_level_replica", "debug"), "raysweep reports progress itself"),
    **dict.fromkeys(("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"), "raysweep uploads nothing"),
}
_RENAMED = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
_LEAST = {
    "learning_rate": 0,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "save_total_limit": 2,
    "weight_decay": 0,
    "max_grad_norm": 0,
}


@cache
def _types() -> dict[str, Any]:
    """Argument → its type, as TrainingArguments declares it."""
    from transformers import TrainingArguments

    hints = typing.get_type_hints(TrainingArguments)
    return {field.name: hints[field.name] for field in dataclasses.fields(TrainingArguments) if field.init}


def check_arguments(arguments: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The user's arguments with values of their types (YAML reads 1e-4 as text), under the names that are not given up.

    `where` is the config's place, for messages. Needs no GPU, and is for a process that is in no group of others. Raises
    InputError for a name that the trainer does not know, one that is raysweep's to set, a value that the trainer, its
    optimizer or its schedule refuses, and a tracker whose package is not installed.
    """
    checked = named_arguments(arguments, where)
    try:
        from raysweep.studies.process_state import restored_process_state

        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), restored_process_state():
            warnings.simplefilter("ignore")
            _try(checked, Path(folder))
    except Exception as error:  # each value raises what the trainer stumbled over
        if is_machine_error(error):
            raise
        raise _refused(where, error) from error
    return checked


def _refused(where: str, error: Exception) -> InputError:
    return InputError(f"{where} is refused by transformers' trainer: {shortened(' '.join(str(error).split()), 400)}")


def named_arguments(arguments: Mapping[str, Any], where: str) -> dict[str, Any]:
    """As `check_arguments`, as far as names and values alone tell; in any process, and again for what it gave."""
    known = _types()
    checked: dict[str, Any] = {}
    for name, value in arguments.items():
        place = f"{where}.{name}"
        if str(name).startswith(("push_to_hub", "hub_")):
            raise InputError(f"{place} cannot be set: raysweep uploads nothing")
        if name in _OWN:
            raise InputError(f"{place} cannot be set: {_OWN[name]}")
        if name not in known:
            raise InputError(f"{place} is not an argument of transformers' trainer; {nearest(str(name), known)}")
        checked[_RENAMED.get(name, name)] = _typed(place, known[name], value)
    _check_values(checked, where)
    if "report_to" in checked:
        checked["report_to"] = _trackers(checked["report_to"], f"{where}.report_to")
    return checked


def _typed(place: str, kind: Any, value: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError as error:
        told = "; ".join(dict.fromkeys(problem["msg"] for problem in error.errors()))
        raise InputError(f"{place} is {shown(value)}: {told}") from error


def _check_values(arguments: Mapping[str, Any], where: str) -> None:
    for name, least in _LEAST.items():
        value = arguments.get(name, least)
        if value is None or not (math.isfinite(value) and value >= least):
            why = ": while one checkpoint is written, another must be complete" if name == "save_total_limit" else ""
            raise InputError(f"{where}.{name} is {shown(value)}, and must be a number, {least} or more{why}")
    epochs, steps = arguments.get("num_train_epochs", 1.0), arguments.get("max_steps", -1)
    if steps <= 0 and not (math.isfinite(epochs) and epochs > 0):
        raise InputError(f"{where}.num_train_epochs is {epochs}, so nothing would be trained; give more than 0")
    if "max_steps" in arguments and steps < 1:
        raise InputError(f"{where}.max_steps is {steps}; give 1 or more, or num_train_epochs instead")
    for name in _POINTS:
        if not (math.isfinite(value := arguments.get(name) or 1) and value > 0):
            raise InputError(f"{where}.{name} is {value}, and must be more than 0")
    if arguments.get("save_strategy") == "best":
        raise InputError(f"{where}.save_strategy is best: {_OWN['load_best_model_at_end']}; give steps, epoch or no")
    order = arguments.get("train_sampling_strategy", "random")
    if order not in ("random", "sequential"):
        raise InputError(
            f"{where}.train_sampling_strategy is {shown(order)}, and raysweep needs an order that it can restore after "
            "an interruption: random or sequential"
        )


def _trackers(asked: Any, place: str) -> list[str]:
    names = [asked] if isinstance(asked, str) else list(asked or [])
    names = [] if names == ["none"] else names
    for name in names:
        if name not in _TRACKERS:
            raise InputError(
                f"{place} names {shown(name)}, and raysweep can keep {', '.join(_TRACKERS)} off the network; "
                f"{nearest(name, (*_TRACKERS, 'none'))}"
            )
        if not installed(name):
            raise InputError(f"{place} names {name}, whose package is not installed: pip install 'raysweep[trackers]'")
    return names


def installed(tracker: str) -> bool:
    """Whether the package that a tracker writes with can be imported."""
    return importlib.util.find_spec(tracker) is not None


def _try(arguments: Mapping[str, Any], folder: Path) -> None:
    """Make what the trainer makes of the arguments, on a CPU, for one weight; what hardware decides is left out."""
    import torch
    from transformers import Trainer, TrainingArguments, get_scheduler

    elsewhere = {"tf32": None, "report_to": "none"}
    made = TrainingArguments(
        **{**DEFAULTS, "eval_steps": 1, **arguments, **elsewhere}, output_dir=str(folder), use_cpu=True
    )
    chosen, settings = Trainer.get_optimizer_cls_and_kwargs(made, torch.nn.Linear(1, 1))
    optimizer: torch.optim.Optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    if chosen.__module__.startswith("torch."):
        optimizer = chosen([torch.nn.Parameter(torch.zeros(1))], **settings)
    get_scheduler(
        made.lr_scheduler_type,
        optimizer=optimizer,
        num_warmup_steps=made.get_warmup_steps(10),
        num_training_steps=10,
        scheduler_specific_kwargs=made.lr_scheduler_kwargs,
    )


def training_steps(arguments: Mapping[str, Any], n_train: int, processes: int = 1) -> int:
    """Optimizer steps of a training on `n_train` examples, as the trainer counts them."""
    if arguments.get("max_steps", -1) > 0:
        return int(arguments["max_steps"])
    batch = arguments.get("per_device_train_batch_size", 8)
    accumulated = arguments.get("gradient_accumulation_steps", 1)
    batches = n_train // batch if arguments.get("dataloader_drop_last") else -(-n_train // batch)
    each = max(1, -(-batches // processes))
    epochs: float = arguments.get("num_train_epochs", DEFAULTS["num_train_epochs"])
    steps: int = math.ceil(epochs * -(-each // accumulated))
    return steps


def cadence(steps: int) -> dict[str, int]:
    """How often a training of so many steps logs, measures the test loss and saves, unless told otherwise."""
    return {name: max(1, -(-steps // points)) for name, points in _POINTS.items()}


def make_arguments(
    recipe: Recipe,
    folder: Path,
    n_train: int,
    *,
    device: str,
    strategy: Literal["ddp", "fsdp"],
    processes: int,
    resumed: bool,
) -> TrainingArguments:
    """The trainer's arguments for a recipe: the user's (checked), raysweep's defaults, and what raysweep itself decides.

    To be called inside `training_device`. Raises InputError where the trainer refuses them on this hardware.
    """
    from raysweep.studies.training_device import DeviceArguments

    given = recipe.arguments
    steps = training_steps(given, n_train, processes)
    ours = {
        "output_dir": str(folder),
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "use_cpu": device == "cpu",
        "eval_on_start": not resumed,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "log_level": "error",
        "log_level_replica": "error",
        "remove_unused_columns": False,
        "label_names": ["labels"],
    }
    if device.startswith("cuda") and given.get("dataloader_pin_memory", True):
        ours["accelerator_config"] = {"non_blocking": True}  # or each batch's copy waits for all that the GPU has to do
    try:
        return DeviceArguments(**{**DEFAULTS, **cadence(steps), **given, **_distributed(strategy, processes), **ours})
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        if is_machine_error(error):
            raise
        raise _refused("trainer", error) from error


def _distributed(strategy: Literal["ddp", "fsdp"], processes: int) -> dict[str, Any]:
    """Arguments that only several processes need: of one, there is nothing to shard."""
    return copy.deepcopy(sharding.ARGUMENTS) if strategy == "fsdp" and processes > 1 else {}
