"""Checkpoints along a training, as models of their own: `<model>.step-<N>` on the data set that it was trained on. Pure."""

from __future__ import annotations

from raysweep.config import Config, ModelConfig
from raysweep.errors import InputError


class StepModel(ModelConfig):
    """What a model is after so many steps of its fine-tuning: swept as tuned, and its own states compared."""

    of: str
    step: int


def with_steps(config: Config) -> Config:
    """The config with a model for every step whose checkpoint is to be measured; as it is where there is none. Raises InputError for names that clash."""
    asked = config.studies.finetune
    if asked is None or not asked.along:
        return config
    models = [each for model in config.models for each in (model, *(_after(model, step) for step in asked.along))]
    names = [model.name for model in models]
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise InputError(
            f"model '{doubled}' has the name of a step of another model's fine-tuning; give it another name"
        )
    return config.model_copy(update={"models": models})


def _after(model: ModelConfig, step: int) -> StepModel:
    values = {name: getattr(model, name) for name in ModelConfig.model_fields}
    return StepModel.model_construct(**{**values, "name": f"{model.name}.step-{step}", "of": model.name, "step": step})
