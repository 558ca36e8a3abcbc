"""How many layer applications a graph still needs, and what windows share: counts, the same on every machine. Pure.

Bytes, memory and seconds depend on where the weights are, and are estimate.py's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from raysweep.config import Config
from raysweep.engine.facts import Facts
from raysweep.engine.graph import Graph
from raysweep.models.same import NOTHING
from raysweep.studies.gradient import points_of
from raysweep.studies.schedule import layer_applications, shared_rows


@dataclass(frozen=True)
class Cost:
    """Layer applications that are still to do, counted for a whole data set each. `identical` tells by model and data set
    how many layers base and tuned have in common, and how many changes are another's for that."""

    layer_applications: int
    identical: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def cost(config: Config, facts: Facts, graph: Graph, done: Collection[str]) -> Cost:
    """Cost of what is not done yet. A layer application is counted once a data set and shared where windows share it.

    Of an estimate, a way there and back counts three a layer and point (a fourth where the way there is made anew is not in it).
    """
    applications = 0
    identical: dict[str, tuple[int, int]] = {}
    points = config.studies.substitution.points if config.studies.substitution else 1
    for model_name, dataset in facts.cells:
        model = facts.models[model_name]
        layers, same = model.base.n_layers, model.same.get(dataset, NOTHING)
        swept, estimated = (graph.cell(kind, model_name, dataset) for kind in ("substitute", "estimate"))
        changes = [task.window for task in estimated or swept if task.window is not None]
        if changes and (same.layers or same.rest):
            identical[f"{model_name}/{dataset}"] = (len(same.layers), shared_rows(layers, changes, same))
        most = 0
        for index in range(len(swept[0].parts) if swept else 0):
            missing = [t.window for t in swept if t.window is not None and t.parts[index] not in done]
            most = max(most, layer_applications(layers, missing, same) if missing else 0)
        applications += most
        lacking = [t.window for t in estimated if t.window is not None and not done_with(t.parts, done)]
        applications += 3 * layers * len(points_of(lacking, points, layers)) if lacking else 0
        for task in graph.captured(model_name, dataset)[:1]:
            applications += 0 if done_with(task.parts, done) else layers
    return Cost(applications, identical)


def done_with(parts: Collection[str], done: Collection[str]) -> bool:
    """Whether all parts are committed."""
    return all(key in done for key in parts)
