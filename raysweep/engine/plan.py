"""Config and facts to a graph of tasks, and what the graph will cost. Pure: no I/O, nothing loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from raysweep.config import Config
from raysweep.config_removal import RemovalConfig
from raysweep.config_substitution import SubstitutionConfig
from raysweep.engine.arms import arms_of
from raysweep.engine.graph import Graph, Task
from raysweep.engine.inspection import Cell, Facts, ModelFacts, asked_changes, chunk_fingerprint, stop_rule
from raysweep.engine.steps import StepModel
from raysweep.engine.training_plan import checkpoint_name, made_key, promised, step_key, training_tasks
from raysweep.fingerprint import fingerprint, fingerprints
from raysweep.models.architecture import tuned_on_paper
from raysweep.models.checkpoint import Checkpoint
from raysweep.models.same import NOTHING
from raysweep.numerics.dynamics import how_many
from raysweep.numerics.measures.registry import MEASURES
from raysweep.studies.interventions import Change, Intervention, identity, to_json
from raysweep.studies.removal import Removal
from raysweep.studies.stopping import Rule
from raysweep.studies.verification import draw
from raysweep.studies.windows import Window, windows_of_widths

_CALCULATION = 1  # raised when a study's arithmetic changes, so that old results are not taken for new ones
_STATISTICS = 4  # likewise for similarity and correlation alone, which are made anew from what is captured and swept


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
        similarity = _similarity_of(config, facts, model, cell)
        key = made_key(facts.trainings, model.base, (name, dataset), asked, arm, similarity, facts.libraries)
        folder = root / checkpoint_name((name, dataset), key)
        made = promised(model.base, asked, folder, key, facts.trainings.dtypes["finetune", name])
        models[name] = _promising(model, dataset, made)
        for step in config.models:
            if isinstance(step, StepModel) and step.of == name:
                at = step_key(key, step.step)
                folder = root / checkpoint_name((name, dataset), at)
                made = promised(model.base, asked, folder, at, facts.trainings.dtypes["finetune", name])
                of_step = _promising(models[step.name], dataset, made)
                models[step.name] = dataclasses.replace(of_step, measured={**of_step.measured, dataset: made})
    return dataclasses.replace(facts, models=models)


def _promising(model: ModelFacts, dataset: str, made: Checkpoint) -> ModelFacts:
    return dataclasses.replace(model, tuned={**model.tuned, dataset: made}, promised=model.promised | {dataset})


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


def _similarity_of(config: Config, facts: Facts, model: ModelFacts, cell: Cell) -> Task | None:
    return _similarity(config, cell, _captured(config, facts, model, cell)) if config.studies.similarity else None


def _training_tasks(config: Config, facts: Facts, model: ModelFacts, cell: Cell, is_tuned: bool) -> list[Task]:
    if not config.studies.trainings:
        return []
    return training_tasks(
        config,
        facts.trainings,
        model.base,
        (cell.model, cell.dataset),
        chunk_fingerprint(tuple(cell.examples), prompts_only=False),
        _similarity_of(config, facts, model, cell),
        facts.libraries,
        is_tuned=is_tuned,
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
    substitutions = _substitutions(config, facts, model, cell) if studies.substitution and is_tuned else []
    tasks = list(substitutions)
    if studies.substitution and studies.substitution.estimator == "gradient" and is_tuned:
        tasks += _estimates(config, facts, model, cell)
    if rule := stop_rule(studies.substitution) if studies.substitution and substitutions else None:
        tasks.append(_stopping(cell, rule, substitutions))
    if studies.substitution and studies.substitution.verify and substitutions:
        tasks.append(_verification(config, cell, substitutions))
    if studies.substitution and studies.substitution.generate and is_tuned:
        tasks += _generations(config, facts, model, cell)
    states = _captured(config, facts, model, cell) if studies.pooling else ()
    if studies.similarity:
        similarity = _similarity(config, cell, states)
        tasks.append(similarity)
        if studies.correlation and substitutions:
            estimates = [task for task in tasks if task.kind == "estimate"]
            tasks.append(_correlation(config, cell, similarity, estimates or substitutions))
    if studies.spectrum:
        tasks.append(_spectrum(config, cell, states))
    if studies.removal and (studies.removal.of == "base" or is_tuned):
        tasks += _removals(studies.removal, facts, model, cell, [task for task in tasks if task.kind == "similarity"])
    return tasks


def _computed(facts: Facts, model: ModelFacts) -> dict[str, Any]:
    """What decides figures beside checkpoints and records: the arithmetic, the dtype, and the libraries' major versions."""
    releases = {name: ".".join(facts.libraries[name].split(".")[:2]) for name in ("torch", "transformers")}
    return {"calculation": _CALCULATION, "dtype": model.dtype, "libraries": releases}


def _substitutions(config: Config, facts: Facts, model: ModelFacts, cell: Cell) -> list[Task]:
    assert config.studies.substitution is not None
    changes = asked_changes(config.studies.substitution, model.base.n_layers)
    if config.studies.substitution.estimator == "gradient":
        changes = sampled(changes, model.base.n_layers, config.studies.substitution.sample)
    return _losses("substitute", facts, model, cell, changes, {"study": "substitution"})


def sampled(changes: list[Change], n_layers: int, n: int) -> list[Change]:
    """What is measured exactly where all is estimated: the models that nothing or all is put back in, and `n` at random."""
    always = [c for c in changes if isinstance(c, Window) and c.width in (0, n_layers)]
    drawn = draw([c for c in changes if c not in always], n)
    return [c for c in changes if c in always or c in drawn]


def _estimates(config: Config, facts: Facts, model: ModelFacts, cell: Cell) -> list[Task]:
    asked = config.studies.substitution
    assert asked is not None
    changes = asked_changes(asked, model.base.n_layers)
    return _losses("estimate", facts, model, cell, changes, {"study": "gradient", "points": asked.points})


def _losses(
    kind: Literal["substitute", "estimate"],
    facts: Facts,
    model: ModelFacts,
    cell: Cell,
    changes: list[Change],
    study: dict[str, Any],
) -> list[Task]:
    """A task a change, whose parts are a chunk's losses each."""
    layers, chunks = model.base.n_layers, [chunk_fingerprint(chunk, prompts_only=False) for chunk in cell.swept]
    same = {
        **study,
        "base": model.base.fingerprint,
        "tuned": model.tuned[cell.dataset].fingerprint,
        **_computed(facts, model),
    }
    return [
        Task(
            kind,
            cell.model,
            cell.dataset,
            tuple(fingerprints({**same, **what}, "chunk", chunks)),
            change,
        )
        for change in changes
        for what in [identity(change, layers, model.same.get(cell.dataset, NOTHING))]
    ]


def _generations(config: Config, facts: Facts, model: ModelFacts, cell: Cell) -> list[Task]:
    assert config.studies.substitution is not None
    asked = config.studies.substitution.generate
    assert asked is not None
    same = {
        "study": "generation",
        "base": model.base.fingerprint,
        "tuned": model.tuned[cell.dataset].fingerprint,
        "examples": chunk_fingerprint(tuple(cell.examples[: asked.examples]), prompts_only=False),
        "tokens": asked.tokens,
        **_computed(facts, model),
    }
    return [
        Task(
            "generate",
            cell.model,
            cell.dataset,
            window=change,
            results={"generation": fingerprint({**same, **_words_of(change)})},
        )
        for change in generated_under(config.studies.substitution, model.base.n_layers)
    ]


def _stopping(cell: Cell, rule: Rule, substitutions: list[Task]) -> Task:
    made_from = {
        "study": "stopping",
        "calculation": _CALCULATION,
        "rule": [rule.half_width, rule.top, rule.confidence, rule.width],
        "substitution": [
            [_nameless(task), task.parts] for task in substitutions
        ],  # the set tells the windows' own words
    }
    results = {"stopping": fingerprint(made_from)}
    return Task("stop", cell.model, cell.dataset, results=results, needs=tuple(task.name for task in substitutions))


def generated_under(asked: SubstitutionConfig, n_layers: int) -> list[Change]:
    """What text is generated under: every whole window, or every change that is swept."""
    assert asked.generate is not None
    if asked.generate.changes == "all":
        return asked_changes(asked, n_layers)
    return list[Change](windows_of_widths(n_layers, asked.widths))


def _words_of(change: Change) -> dict[str, Any]:
    """A change as the key of its text has it, without a set's name: rows tell the change's own words."""
    plain = to_json(change)
    return {"window": plain} if isinstance(change, Window) else {"change": {k: plain[k] for k in plain if k != "name"}}


VERIFIED = 4  # examples, of the first chunk, whose losses are taken again


def drawn(config: Config, substitutions: list[Task]) -> list[Task]:
    """The tasks whose losses are taken again."""
    assert config.studies.substitution is not None
    chosen = draw([t.window for t in substitutions if t.window is not None], config.studies.substitution.verify)
    return [task for task in substitutions if task.window in chosen]


def _verification(config: Config, cell: Cell, substitutions: list[Task]) -> Task:
    chosen = drawn(config, substitutions)
    made_from = {
        "study": "verification",
        "examples": chunk_fingerprint(cell.swept[0][:VERIFIED], prompts_only=False),
        "changes": [[_nameless(task), task.parts[0]] for task in chosen],  # the rows tell the changes' own words
    }
    key = fingerprint(made_from)
    needs = tuple(task.name for task in chosen)
    return Task("verify", cell.model, cell.dataset, results={"verification": key}, needs=needs)


def _nameless(task: Task) -> str:
    """The task's name without that of a set, which decides nothing."""
    change = task.window
    if not isinstance(change, Intervention):
        return task.name
    return dataclasses.replace(task, window=dataclasses.replace(change, name="")).name


def _captured(config: Config, facts: Facts, model: ModelFacts, cell: Cell) -> tuple[str, ...]:
    """The keys of the cell's captured states, one a chunk."""
    same = {
        "study": "capture",
        "base": model.compared(cell.dataset).fingerprint,
        "folder": [cell.model, cell.dataset],  # activations lie under these names
        "pooling": config.studies.pooling,
        **_computed(facts, model),
    }
    return tuple(fingerprint({**same, "chunk": chunk_fingerprint(chunk, prompts_only=True)}) for chunk in cell.chunks)


def _similarity(config: Config, cell: Cell, parts: tuple[str, ...]) -> Task:
    asked = config.studies.similarity
    assert asked is not None
    made_from = {
        "study": "similarity",
        "calculation": _STATISTICS,
        "parts": parts,
        "metrics": list(asked.metrics),
        "parameters": {name: getattr(asked, name) for metric in asked.metrics for name in MEASURES[metric].parameters},
        "neighbourhood": asked.neighbourhood,
        "diagonal": asked.diagonal,
        "resampling": _resampling(config),
    }
    tables = ("similarity", "dynamics", "critical", "health")
    results = {table: fingerprint({**made_from, "table": table}) for table in tables}
    return Task("similarity", cell.model, cell.dataset, parts, results=results)


def _spectrum(config: Config, cell: Cell, parts: tuple[str, ...]) -> Task:
    assert config.studies.spectrum is not None
    made_from = {
        "study": "spectrum",
        "calculation": _CALCULATION,
        "parts": parts,
        "components": list(config.studies.spectrum.components),
    }
    return Task("spectrum", cell.model, cell.dataset, parts, results={"spectrum": fingerprint(made_from)})


def _resampling(config: Config) -> dict[str, int]:
    correlation = config.studies.correlation
    return (
        {"resamples": correlation.resamples, "seed": correlation.seed}
        if correlation
        else {"resamples": 1000, "seed": 0}
    )


def _correlation(config: Config, cell: Cell, similarity: Task, substitutions: list[Task]) -> Task:
    assert config.studies.correlation is not None
    windows = [task for task in substitutions if isinstance(task.window, Window)]
    made_from = {
        "study": "correlation",
        "calculation": _STATISTICS,
        "similarity": similarity.results["similarity"],
        "substitution": [task.parts for task in windows],
        "resampling": _resampling(config),
        "drop_ends": config.studies.correlation.drop_ends,
    }
    assert config.studies.substitution is not None
    if rule := stop_rule(config.studies.substitution):  # it decides how many of the chunks are taken, from all changes
        made_from["stop"] = _stopping(cell, rule, substitutions).results["stopping"]
    needs = (similarity.name, *(task.name for task in windows))
    return Task("correlate", cell.model, cell.dataset, results={"correlation": fingerprint(made_from)}, needs=needs)


def removals_of(asked: RemovalConfig) -> tuple[Removal, ...]:
    """Every removal that the config asks for at a layer."""
    return tuple(
        Removal(chosen, mode, position, keep_mean=asked.mean == "kept")
        for chosen in asked.chosen
        for mode in asked.modes
        for position in asked.positions
    )


def removed_at(asked: RemovalConfig, n_layers: int) -> dict[str, int]:
    """A layer for each task of removals, by what the task is named for; of critical ones its place among them."""
    if asked.layers == "critical":
        top = most_critical(asked, n_layers)
        return {f"critical {place + 1} of {top}": place for place in range(top)}
    return {f"layer {layer}": layer for layer in (range(n_layers) if asked.layers == "all" else map(int, asked.layers))}


def most_critical(asked: RemovalConfig, n_layers: int) -> int:
    """How many critical layers components are removed at."""
    return how_many(n_layers, asked.top)


def _removals(asked: RemovalConfig, facts: Facts, model: ModelFacts, cell: Cell, similarity: list[Task]) -> list[Task]:
    """A task a layer. Which layers are critical is known when the similarity is there; else nothing is waited for."""
    tuned = [model.tuned[cell.dataset].fingerprint] if asked.of == "tuned" else []
    same = {
        "study": "removal",
        "model": [model.base.fingerprint, *tuned],
        "examples": chunk_fingerprint(tuple(cell.examples), prompts_only=False),
        "removals": [[list(removal.chosen), removal.labels] for removal in removals_of(asked)],
        "texts": [asked.examples, asked.tokens],
        **_computed(facts, model),
    }
    critical = asked.layers == "critical"
    tasks = []
    for at, place in removed_at(asked, model.base.n_layers).items():
        which = {"layer": place}
        if critical:
            which = {"place": place, "top": most_critical(asked, model.base.n_layers)}
            same["dynamics"] = similarity[0].results["dynamics"]
        results = {name: fingerprint({**same, **which, "table": name}) for name in ("generation", "removal")}
        needs = (similarity[0].name,) if critical else ()
        tasks.append(Task("removal", cell.model, cell.dataset, results=results, needs=needs, at=at))
    return tasks


def window_names(changes: Collection[Change]) -> str:
    """A short text for the changes of one fused call: the range of layers they cover, or the only one's own."""
    if len(changes) == 1:
        return next(iter(changes)).text
    layers = [layer for c in changes for layer in (range(*c) if isinstance(c, Window) else c.chosen)]
    return Window(min(layers), max(layers) + 1).layers if layers else "none"
