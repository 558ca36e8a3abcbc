"""What inspection finds for trainings: the records, and whether what is asked for can be done. Bad input is refused here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from raysweep.config import Config, ModelConfig
from raysweep.config_backdoor import BackdoorConfig, judgings
from raysweep.config_datasets import DatasetConfig, TrainSource
from raysweep.config_training import FinetuneConfig, Training
from raysweep.engine.arms import arms_of, lora_of
from raysweep.engine.judges import judge_of
from raysweep.engine.reader import Reader
from raysweep.engine.steps import StepModel
from raysweep.engine.training_plan import Trainings
from raysweep.errors import InputError
from raysweep.models.checkpoint import Checkpoint
from raysweep.models.loading import resolve_dtype
from raysweep.studies.endpoint import EndpointJudge
from raysweep.studies.trainer_arguments import check_arguments, training_steps
from raysweep.studies.training import Recipe

if TYPE_CHECKING:
    from raysweep.data.examples import Example


def trained_on(config: Config, model: ModelConfig) -> list[str]:
    """The data sets that the model will be fine-tuned on, for the checkpoints that studies.finetune makes."""
    if not config.studies.finetune:
        return []
    return [dataset.name for dataset in config.datasets if dataset.train and dataset.name not in model.tuned]


def training_source(dataset: DatasetConfig) -> DatasetConfig:
    """The records that models are trained on, as a data set: its format and texts are those of the test unless given."""
    assert dataset.train is not None
    return source_of(dataset, dataset.train)


def source_of(dataset: DatasetConfig, source: TrainSource) -> DatasetConfig:
    """A source of other records as a data set of the same name, with its format and texts unless it has its own."""
    values: dict[str, Any] = source.model_dump(exclude_none=True)
    for key in ("format", "prompt", "response"):
        values.setdefault(key, getattr(dataset, key))
    if source.format not in (None, dataset.format) and source.prompt is None:
        values |= {"prompt": None, "response": None}
    return DatasetConfig.model_validate({"name": dataset.name, **values})


def find_trainings(
    config: Config, bases: Mapping[str, Checkpoint], predicts: Mapping[str, bool], device: str, reader: Reader
) -> Trainings:
    """Read the records of all trainings and check what each of them is told; nothing where no study trains.

    `bases` and `predicts` are by model. Raises InputError.
    """
    asked_for = config.studies.trainings
    if not asked_for:
        return Trainings()
    examples: dict[tuple[str, str], tuple[Example, ...]] = {}
    excluded: dict[tuple[str, str], int] = {}
    poisoned: dict[tuple[tuple[str, str], int], tuple[Example, ...]] = {}
    prompts: dict[tuple[str, str], tuple[tuple[Example, ...], tuple[Example, ...]]] = {}
    unreached: dict[str, frozenset[int]] = {}
    for model in config.models:
        if isinstance(model, StepModel):
            continue
        base = bases[model.name]
        if not predicts[model.name]:
            raise InputError(
                f"model '{model.name}': checkpoint '{base.source}' does not predict the next token (it is an encoder, or lacks "
                f"its head), and {', '.join(asked_for)} trains on the loss of a response's tokens; remove the model"
            )
        for name, asked in asked_for.items():
            _check_layers(config, name, asked, model.name, base)
            places = _check_lora(config, name, asked, base)
            if name == "finetune" and places is not None:
                unreached[model.name] = frozenset(range(base.n_layers)) - places
        for dataset in config.datasets:
            if not dataset.train:
                continue
            source, cell = training_source(dataset), (model.name, dataset.name)
            found, _ = reader.read(model, source)
            examples[cell] = tuple(found.examples)
            excluded[cell] = found.n_excluded
            if found.n_answer_cut:
                reader.warnings.append(
                    f"{dataset.name} (for {model.name}): {found.n_answer_cut} of {len(found.examples)} training "
                    "examples lose a part of their answer, which the chat template leaves out or rewrites"
                )
            if backdoor := config.studies.backdoor:
                for seed in backdoor.seeds:
                    poisoned[cell, seed] = tuple(reader.poisoned(model, source, backdoor, seed).examples)
                own = source_of(dataset, backdoor.prompts) if backdoor.prompts else dataset
                prompts[cell] = reader.prompts(model, own, backdoor)
    if backdoor := config.studies.backdoor:
        _check_judges(backdoor)
    arguments = {name: check_arguments(asked.trainer, f"studies.{name}.trainer") for name, asked in asked_for.items()}
    if finetune := config.studies.finetune:
        _check_along(config, finetune, arguments["finetune"], examples)
    dtypes = {
        (name, model.name): resolve_dtype(asked.dtype, bases[model.name].dtype, device)
        for name, asked in asked_for.items()
        for model in config.models
    }
    return Trainings(examples, arguments, dtypes, excluded, poisoned, prompts, unreached)


def _check_judges(asked: BackdoorConfig) -> None:
    """Refuse a rubric that does not parse, and a key that is not there, before anything is trained for the answers."""
    for name in judgings(asked):
        judge = judge_of(asked, name)
        if isinstance(judge, EndpointJudge):
            judge.endpoint.key()


def _check_along(
    config: Config,
    asked: FinetuneConfig,
    arguments: Mapping[str, Any],
    examples: Mapping[tuple[str, str], tuple[Example, ...]],
) -> None:
    """Refuse steps to be kept that a training does not come to."""
    for model in config.models:
        for dataset in () if isinstance(model, StepModel) else trained_on(config, model):
            n = len(examples[model.name, dataset])
            steps = training_steps(arguments, n, asked.processes)
            if asked.along and asked.along[-1] > steps:
                raise InputError(
                    f"studies.finetune.along has step {asked.along[-1]}, and the training of '{model.name}' on "
                    f"'{dataset}' ends after {steps} steps ({n} records); remove it, or train longer "
                    "(trainer.num_train_epochs, max_steps)"
                )


def _check_lora(config: Config, name: str, asked: Training, base: Checkpoint) -> frozenset[int] | None:
    """Refuse updates that PEFT has no place for in the model, by putting them into it without its weights.

    Return the layers in which some arm's updates have a place; None without LoRA.
    """
    if asked.lora is None:
        return None
    import torch

    from raysweep.models.blocks import find_blocks
    from raysweep.models.skeleton import empty_model
    from raysweep.studies.choosing import choose

    places: set[int] = set()
    for trained in {arm.trained for section, arm in arms_of(config.studies) if section is asked and arm.trains}:
        # which ones are to be found is not known yet: any of them
        placed = (
            trained if trained.layers or trained.mode == "all" else replace(trained, layers=tuple(range(base.n_layers)))
        )
        recipe = Recipe(placed, lora=lora_of(asked))
        try:
            model: Any = choose(empty_model(base, torch.float32), recipe, base.source)
        except InputError as error:
            raise InputError(f"studies.{name}.lora: {error}") from error
        blocks = find_blocks(model.get_base_model())
        places |= {layer for layer, block in enumerate(blocks) if any(p.requires_grad for p in block.parameters())}
    return frozenset(places)


def _check_layers(config: Config, name: str, asked: Training, model: str, base: Checkpoint) -> None:
    """Refuse layers that the model has not, and numbers of critical ones that leave none beside them."""
    for section, arm in arms_of(config.studies):
        if section is not asked:
            continue
        far = [layer for layer in arm.trained.layers if layer >= base.n_layers]
        if far:
            key = "freeze" if isinstance(asked, FinetuneConfig) and asked.freeze is not None else "layers"
            raise InputError(
                f"studies.{name}.{key} has layer {far[0]}, which is not among the {base.n_layers} decoder layers of model "
                f"'{model}'; layers count from 0"
            )
        if arm.trained.mode == "freeze" and len(arm.trained.layers) == base.n_layers:
            raise InputError(
                f"studies.{name}.freeze has all {base.n_layers} decoder layers of model '{model}'; remove at least one"
            )
    if asked.top is not None and 2 * asked.top > base.n_layers and asked.found:
        raise InputError(
            f"studies.{name}.top asks for {asked.top} critical layers and as many others, and model '{model}' has only "
            f"{base.n_layers} layers; set top to {base.n_layers // 2} or less"
        )
