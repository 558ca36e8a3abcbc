"""Config and facts to a graph of tasks. Pure: no I/O, nothing loaded.

Which tasks there are of a model and a data set, and what waits for what, is told here; what each kind of work has for tasks,
and their keys, in a module each.
"""

from __future__ import annotations

import dataclasses

from raysweep.config import Config
from raysweep.engine.asked import stop_rule
from raysweep.engine.facts import Cell, Facts, ModelFacts
from raysweep.engine.graph import Graph, Task
from raysweep.engine.keys import chunk_fingerprint
from raysweep.engine.removal_plan import removal_tasks
from raysweep.engine.states_plan import captured_keys, correlation_task, similarity_of, similarity_task, spectrum_task
from raysweep.engine.steps import StepModel
from raysweep.engine.substitution_plan import (
    estimate_tasks,
    generation_tasks,
    stopping_task,
    substitution_tasks,
    verification_task,
)
from raysweep.engine.training_plan import training_tasks


def plan(config: Config, facts: Facts) -> Graph:
    """Every task that the config asks for, with the keys of its parts and results."""
    tasks: list[Task] = []
    for model in config.models:
        of_model = facts.models[model.name]
        for dataset in config.datasets:
            cell = facts.cells.get((model.name, dataset.name))
            if cell is None:
                continue
            is_tuned = dataset.name in model.tuned
            trained = _training_tasks(config, facts, of_model, cell, is_tuned)
            makes = [task.name for task in trained if task.kind == "finetune"]
            if isinstance(model, StepModel):
                makes = [task.name for task in tasks if task.kind == "finetune" and _is_of(task, model, dataset.name)]
            made = _cell_tasks(config, facts, of_model, cell, is_tuned or bool(makes))
            tasks += trained
            tasks += [_after(config, task, makes, of_model) if makes else task for task in made]
    return Graph(tuple(tasks))


def _is_of(task: Task, model: StepModel, dataset: str) -> bool:
    return (task.model, task.dataset) == (model.of, dataset)


def _training_tasks(config: Config, facts: Facts, model: ModelFacts, cell: Cell, is_tuned: bool) -> list[Task]:
    if not config.studies.trainings:
        return []
    return training_tasks(
        config,
        facts.trainings,
        model.base,
        (cell.model, cell.dataset),
        chunk_fingerprint(tuple(cell.examples), prompts_only=False),
        similarity_of(config, facts, model, cell),
        facts.libraries,
        is_tuned=is_tuned,
        text=model.texts.identity(model.texts.base),
    )


def _after(config: Config, task: Task, makes: list[str], model: ModelFacts) -> Task:
    """The task, waiting for its checkpoint to be made where it needs that."""
    of_measured = bool(model.measured) and task.kind in ("similarity", "spectrum")
    of_tuned = (
        of_measured
        or task.kind in ("substitute", "estimate", "generate", "verify")
        or (task.kind == "removal" and config.studies.removal is not None and config.studies.removal.of == "tuned")
    )
    return dataclasses.replace(task, needs=(*makes, *task.needs)) if of_tuned else task


def _cell_tasks(config: Config, facts: Facts, model: ModelFacts, cell: Cell, is_tuned: bool) -> list[Task]:
    studies = config.studies
    substitutions = substitution_tasks(config, facts, model, cell) if studies.substitution and is_tuned else []
    tasks = list(substitutions)
    if studies.substitution and studies.substitution.estimator == "gradient" and is_tuned:
        tasks += estimate_tasks(config, facts, model, cell)
    if rule := stop_rule(studies.substitution) if studies.substitution and substitutions else None:
        tasks.append(stopping_task(cell, rule, substitutions))
    if studies.substitution and studies.substitution.verify and substitutions:
        tasks.append(verification_task(config, cell, substitutions))
    if studies.substitution and studies.substitution.generate and is_tuned:
        tasks += generation_tasks(config, facts, model, cell)
    states = captured_keys(config, facts, model, cell) if studies.pooling else ()
    if studies.similarity:
        similarity = similarity_task(config, cell, states)
        tasks.append(similarity)
        if studies.correlation and substitutions:
            estimates = [task for task in tasks if task.kind == "estimate"]
            tasks.append(correlation_task(config, model, cell, similarity, estimates or substitutions))
    if studies.spectrum:
        tasks.append(spectrum_task(config, cell, states))
    if studies.removal and (studies.removal.of == "base" or is_tuned):
        tasks += removal_tasks(
            studies.removal, facts, model, cell, [task for task in tasks if task.kind == "similarity"]
        )
    return tasks
