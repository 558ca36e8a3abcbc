"""The calls of the trainings that a graph still needs: pure functions of config, facts, graph and what is committed."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import fields

from raysweep.config import Config
from raysweep.config_backdoor import BackdoorConfig
from raysweep.engine.arms import Arm, arms_of, recipe_of
from raysweep.engine.calls import AdaptationCall, BackdoorCall, JudgeCall, Loading, TrainCall
from raysweep.engine.facts import Cell, Facts, ModelFacts
from raysweep.engine.graph import Graph, Task
from raysweep.engine.judges import judge_of
from raysweep.engine.promised import found_by
from raysweep.engine.training_plan import KINDS, checkpoint_name, step_key


def training_calls(
    config: Config, facts: Facts, graph: Graph, cell: Cell, model: ModelFacts, loading: Loading, done: Collection[str]
) -> Iterator[TrainCall]:
    """A call for each training of a cell of which something is not done."""
    of_cell = (cell.model, cell.dataset)
    for asked, arm in arms_of(config.studies):
        for task in graph.cell(KINDS[arm.study], *of_cell):
            if task.at != arm.at or all(key in done for key in task.keys):
                continue
            key = task.parts[0] if task.parts else next(iter(task.results.values()))
            found = None
            if arm.found:
                found = found_by(config, asked, arm, graph.cell("similarity", *of_cell)[0], model.base)
            kept = checkpoint_name(of_cell, key) if task.parts else None
            is_made = bool(task.parts) and all(part in done for part in task.parts)
            recipe = recipe_of(
                asked, arm, dict(facts.trainings.arguments[arm.study]), facts.trainings.dtypes[arm.study, cell.model]
            )
            call = TrainCall(
                task.name,
                *of_cell,
                (task.name,),
                model.base,
                loading,
                facts.trainings.of(of_cell, arm),
                tuple(cell.examples),
                arm.study,
                arm.name,
                recipe,
                found,
                key,
                task.results,
                kept,
                {str(step): step_key(key, step) for step in recipe.keep} if kept else {},
                model.tuned[cell.dataset] if is_made else None,
                asked.processes if arm.trains and not is_made else 1,
                asked.strategy,
            )
            yield _answering(call, arm, asked, facts) if isinstance(asked, BackdoorConfig) else call


def _answering(call: TrainCall, arm: Arm, asked: BackdoorConfig, facts: Facts) -> BackdoorCall:
    """The call that trains so and then answers."""
    ends = facts.models[call.model].texts.base
    clean, triggered = facts.trainings.prompts[call.model, call.dataset]
    own = {field.name: getattr(call, field.name) for field in fields(call)}
    return BackdoorCall(
        **own,
        trains=arm.trains,
        clean=clean,
        triggered=triggered,
        tokens=asked.tokens,
        temperature=asked.temperature,
        top_p=asked.top_p,
        ends=ends,
    )


def judge_call(config: Config, graph: Graph, task: Task) -> JudgeCall:
    """The call that judges in one way the answers of those of a cell's arms that the task needs."""
    asked = config.studies.backdoor
    assert asked is not None
    arms = graph.cell("backdoor", task.model, task.dataset)
    texts = [arm.results["texts"] for arm in arms if arm.name in task.needs]
    return JudgeCall(
        task.name,
        task.model,
        task.dataset,
        (task.name,),
        tuple(texts),
        task.results,
        judge_of(asked, task.at),
        asked.trigger,
    )


def adaptation_call(config: Config, graph: Graph, task: Task) -> AdaptationCall:
    """The call that compares the curves of a cell's arms."""
    assert config.studies.adaptation is not None
    curves = graph.cell("adapt", task.model, task.dataset)
    return AdaptationCall(
        task.name,
        task.model,
        task.dataset,
        (task.name,),
        task.results["adaptation"],
        tuple(curve.results["training"] for curve in curves),
        tuple(config.studies.adaptation.arms),
    )
