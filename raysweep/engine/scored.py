"""What a plan says of evidence before it is there: pairs without a tuned checkpoint, and ρ that will be withheld. Pure."""

from __future__ import annotations

from collections import defaultdict

from raysweep.config import Config
from raysweep.engine.facts import Facts
from raysweep.engine.graph import Graph
from raysweep.engine.steps import StepModel
from raysweep.studies.correlation import why_withheld

_NAMED = 10  # pairs that are named one by one
_STUDIES = {  # by kind of task
    "similarity": "similarity",
    "spectrum": "spectrum",
    "removal": "removal",
    "adapt": "adaptation",
    "backdoor": "backdoor",
}


def untuned(config: Config, facts: Facts, graph: Graph) -> list[str]:
    """Name the models and data sets that substitution passes over for lack of a tuned checkpoint, by what is measured there."""
    if config.studies.substitution is None:
        return []
    by_studies: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for model in config.models:
        if isinstance(model, StepModel):
            continue
        for dataset in config.datasets:
            if dataset.name in facts.models[model.name].tuned:
                continue
            kinds = {task.kind for task in graph.tasks if (task.model, task.dataset) == (model.name, dataset.name)}
            studies = tuple(study for kind, study in _STUDIES.items() if kind in kinds)
            by_studies[studies].append(f"{model.name} × {dataset.name}")
    lines = []
    for studies, pairs in by_studies.items():
        more = f" and {len(pairs) - _NAMED} more" if len(pairs) > _NAMED else ""
        measured = f"only {' and '.join(studies)} {'is' if len(studies) == 1 else 'are'}" if studies else "nothing is"
        lines.append(f"no tuned checkpoint on: {', '.join(pairs[:_NAMED])}{more}: {measured} measured")
    return lines


def withheld(facts: Facts, graph: Graph) -> list[str]:
    """Say of which models and data sets no ρ will be given, and why."""
    lines = []
    for task in graph.of_kind("correlate"):
        model = facts.models[task.model]
        choice, untrained = model.choices.get(task.dataset), model.untrained(task.dataset)
        if choice is not None and choice.found is not None:
            which = "critical layers" if choice.found.critical else "layers that are not critical"
            verb = "trained" if choice.trained.mode == "only" else "left untrained"
            reason = f"{which}, {choice.found.top} of {model.base.n_layers}, are {verb}, so the costs follow from that choice, not from δ"
        elif untrained:
            reason = why_withheld(untrained, model.base.n_layers)
        else:
            continue
        lines.append(f"no ρ of {task.model} × {task.dataset}: {reason}")
    return lines
