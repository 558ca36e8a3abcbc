"""The tasks of substitution, and of what comes with it: estimates, where to stop, losses taken again, text. Pure."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from raysweep.config import Config
from raysweep.config_substitution import SubstitutionConfig
from raysweep.engine.asked import asked_changes
from raysweep.engine.facts import Cell, Facts, ModelFacts
from raysweep.engine.graph import Task
from raysweep.engine.keys import CALCULATION, chunk_fingerprint, computed
from raysweep.fingerprint import fingerprint, fingerprints
from raysweep.models.same import NOTHING
from raysweep.studies.interventions import Change, Intervention, identity, to_json
from raysweep.studies.stopping import Rule
from raysweep.studies.verification import draw
from raysweep.studies.windows import Window, windows_of_widths

VERIFIED = 4  # examples, of the first chunk, whose losses are taken again


def substitution_tasks(config: Config, facts: Facts, model: ModelFacts, cell: Cell) -> list[Task]:
    """A task for each change whose losses are measured."""
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


def estimate_tasks(config: Config, facts: Facts, model: ModelFacts, cell: Cell) -> list[Task]:
    """A task for each change whose losses are estimated."""
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
        **computed(facts, model, model.tuned[cell.dataset]),
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


def generation_tasks(config: Config, facts: Facts, model: ModelFacts, cell: Cell) -> list[Task]:
    """A task for each change that text is generated under."""
    assert config.studies.substitution is not None
    asked = config.studies.substitution.generate
    assert asked is not None
    same = {
        "study": "generation",
        "base": model.base.fingerprint,
        "tuned": model.tuned[cell.dataset].fingerprint,
        "examples": chunk_fingerprint(tuple(cell.examples[: asked.examples]), prompts_only=False),
        "tokens": asked.tokens,
        **computed(facts, model, model.tuned[cell.dataset]),
    }
    ends = model.texts.ends(cell.dataset)
    text = {in_base: model.texts.identity(ends.of(in_base)) for in_base in (False, True)}
    return [
        Task(
            "generate",
            cell.model,
            cell.dataset,
            window=change,
            results={"generation": fingerprint({**same, "text": text[change.in_base], **_words_of(change)})},
        )
        for change in generated_under(config.studies.substitution, model.base.n_layers)
    ]


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


def stopping_task(cell: Cell, rule: Rule, substitutions: list[Task]) -> Task:
    """The task that says where the cell's sweep stops."""
    made_from = {
        "study": "stopping",
        "calculation": CALCULATION,
        "rule": [rule.half_width, rule.top, rule.confidence, rule.width],
        "substitution": [
            [_nameless(task), task.parts] for task in substitutions
        ],  # the set tells the windows' own words
    }
    results = {"stopping": fingerprint(made_from)}
    return Task("stop", cell.model, cell.dataset, results=results, needs=tuple(task.name for task in substitutions))


def drawn(config: Config, substitutions: list[Task]) -> list[Task]:
    """The tasks whose losses are taken again."""
    assert config.studies.substitution is not None
    chosen = draw([t.window for t in substitutions if t.window is not None], config.studies.substitution.verify)
    return [task for task in substitutions if task.window in chosen]


def verification_task(config: Config, cell: Cell, substitutions: list[Task]) -> Task:
    """The task that takes losses again, of changes drawn at random."""
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
