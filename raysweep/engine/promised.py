"""Checkpoints that a run will make, among the facts before they are there: by name and key, and for estimates by size. Pure."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from raysweep.config import Config
from raysweep.config_training import Training
from raysweep.engine.arms import Arm, arms_of, most_critical_of
from raysweep.engine.calls import Choice, Found
from raysweep.engine.facts import Facts, ModelFacts
from raysweep.engine.graph import Task
from raysweep.engine.states_plan import similarity_of
from raysweep.engine.steps import StepModel
from raysweep.engine.training_plan import checkpoint_name, made_key, promised, step_key
from raysweep.models.architecture import tuned_on_paper
from raysweep.models.checkpoint import Checkpoint


def with_promised(config: Config, facts: Facts, root: Path) -> Facts:
    """The facts with the checkpoints that the run in the folder `root` will make among its models' tuned ones."""
    models = dict(facts.models)
    asked, arm = next(((asked, arm) for asked, arm in arms_of(config.studies) if arm.study == "finetune"), (None, None))
    if asked is None or arm is None:
        return facts
    for name, dataset in facts.trainings.examples:
        model = models[name]
        if dataset in model.tuned:
            continue
        cell = facts.cells[name, dataset]
        similarity = similarity_of(config, facts, model, cell)
        key = made_key(facts.trainings, model.base, (name, dataset), asked, arm, similarity, facts.libraries)
        folder = root / checkpoint_name((name, dataset), key)
        made = promised(model.base, asked, folder, key, facts.trainings.dtypes["finetune", name])
        found = found_by(config, asked, arm, similarity, model.base) if arm.found and similarity else None
        choice = Choice(arm.trained, arm.seed, found, facts.trainings.unreached.get(name, frozenset()))
        models[name] = _promising(model, dataset, made, choice)
        for step in config.models:
            if isinstance(step, StepModel) and step.of == name:
                at = step_key(key, step.step)
                folder = root / checkpoint_name((name, dataset), at)
                made = promised(model.base, asked, folder, at, facts.trainings.dtypes["finetune", name])
                of_step = _promising(models[step.name], dataset, made, choice)
                models[step.name] = dataclasses.replace(of_step, measured={**of_step.measured, dataset: made})
    return dataclasses.replace(facts, models=models)


def found_by(config: Config, asked: Training, arm: Arm, similarity: Task, base: Checkpoint) -> Found:
    """Where an arm's layers come from that a similarity task finds."""
    assert config.studies.similarity is not None
    top = most_critical_of(asked, base.n_layers)
    return Found(arm.found == "critical", top, similarity.results["dynamics"], config.studies.similarity.metrics[0])


def _promising(model: ModelFacts, dataset: str, made: Checkpoint, choice: Choice) -> ModelFacts:
    return dataclasses.replace(
        model,
        tuned={**model.tuned, dataset: made},
        promised=model.promised | {dataset},
        choices={**model.choices, dataset: choice},
    )


def as_sized(facts: Facts) -> Facts:
    """The facts for estimates: checkpoints that are still to be made are taken for what their base is."""
    models = {
        name: dataclasses.replace(
            model,
            tuned={**model.tuned, **{d: _sized(model, d) for d in model.promised}},
            measured={d: _sized(model, d) for d in model.measured},
        )
        for name, model in facts.models.items()
    }
    return dataclasses.replace(facts, models=models)


def _sized(model: ModelFacts, dataset: str) -> Checkpoint:
    tuned = model.tuned[dataset]
    return dataclasses.replace(tuned_on_paper(model.base, tuned.source), fingerprint=tuned.fingerprint)
