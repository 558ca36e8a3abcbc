"""The tasks that take principal components out of layers, and at which layers. Pure."""

from __future__ import annotations

from raysweep.config_removal import RemovalConfig
from raysweep.engine.facts import Cell, Facts, ModelFacts
from raysweep.engine.graph import Task
from raysweep.engine.keys import chunk_fingerprint, computed
from raysweep.fingerprint import fingerprint
from raysweep.numerics.dynamics import how_many
from raysweep.studies.removal import Removal


def removal_tasks(
    asked: RemovalConfig, facts: Facts, model: ModelFacts, cell: Cell, similarity: list[Task]
) -> list[Task]:
    """A task a layer. Which layers are critical is known when the similarity is there; else nothing is waited for."""
    tuned = [model.tuned[cell.dataset]] if asked.of == "tuned" else []
    same = {
        "study": "removal",
        "model": [checkpoint.fingerprint for checkpoint in (model.base, *tuned)],
        "examples": chunk_fingerprint(tuple(cell.examples), prompts_only=False),
        "removals": [[list(removal.chosen), removal.labels] for removal in removals_of(asked)],
        "texts": [asked.examples, asked.tokens],
        "text": model.texts.identity(model.texts.ends(cell.dataset).of(asked.of == "base")),
        **computed(facts, model, *tuned),
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
