"""The tasks made of a cell's captured states: similarity, spectrum, and correlation with its losses. Pure."""

from __future__ import annotations

from typing import Any

from raysweep.config import Config
from raysweep.engine.asked import stop_rule
from raysweep.engine.facts import Cell, Facts, ModelFacts
from raysweep.engine.graph import Task
from raysweep.engine.keys import CALCULATION, STATISTICS, chunk_fingerprint, computed
from raysweep.engine.substitution_plan import stopping_task
from raysweep.fingerprint import fingerprint
from raysweep.numerics.measures.registry import MEASURES
from raysweep.studies.windows import Window


def captured_keys(config: Config, facts: Facts, model: ModelFacts, cell: Cell) -> tuple[str, ...]:
    """The keys of the cell's captured states, one a chunk."""
    same = {
        "study": "capture",
        "base": model.compared(cell.dataset).fingerprint,
        "folder": [cell.model, cell.dataset],  # activations lie under these names
        "pooling": config.studies.pooling,
        **computed(facts, model, model.compared(cell.dataset)),
    }
    return tuple(fingerprint({**same, "chunk": chunk_fingerprint(chunk, prompts_only=True)}) for chunk in cell.chunks)


def similarity_task(config: Config, cell: Cell, parts: tuple[str, ...]) -> Task:
    """Similarity, δ, critical layers and health, of the states with the keys `parts`."""
    asked = config.studies.similarity
    assert asked is not None
    made_from = {
        "study": "similarity",
        "calculation": STATISTICS,
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


def similarity_of(config: Config, facts: Facts, model: ModelFacts, cell: Cell) -> Task | None:
    """The cell's task of similarity; None where the config asks for none."""
    return (
        similarity_task(config, cell, captured_keys(config, facts, model, cell)) if config.studies.similarity else None
    )


def spectrum_task(config: Config, cell: Cell, parts: tuple[str, ...]) -> Task:
    """Spectra of the states with the keys `parts`."""
    assert config.studies.spectrum is not None
    made_from = {
        "study": "spectrum",
        "calculation": CALCULATION,
        "parts": parts,
        "components": list(config.studies.spectrum.components),
    }
    return Task("spectrum", cell.model, cell.dataset, parts, results={"spectrum": fingerprint(made_from)})


def correlation_task(
    config: Config, model: ModelFacts, cell: Cell, similarity: Task, substitutions: list[Task]
) -> Task:
    """Correlation of δ with the losses of windows, which `substitutions` measure or estimate."""
    assert config.studies.correlation is not None
    windows = [task for task in substitutions if isinstance(task.window, Window)]
    made_from = {
        "study": "correlation",
        "calculation": STATISTICS,
        "similarity": similarity.results["similarity"],
        "substitution": [task.parts for task in windows],
        "resampling": _resampling(config),
        "drop_ends": config.studies.correlation.drop_ends,
        **_withheld(model, cell.dataset),
    }
    assert config.studies.substitution is not None
    if rule := stop_rule(config.studies.substitution):  # it decides how many of the chunks are taken, from all changes
        made_from["stop"] = stopping_task(cell, rule, substitutions).results["stopping"]
    needs = (similarity.name, *(task.name for task in windows))
    return Task("correlate", cell.model, cell.dataset, results={"correlation": fingerprint(made_from)}, needs=needs)


def _withheld(model: ModelFacts, dataset: str) -> dict[str, Any]:
    """What withholds ρ, for its key: layers that base and tuned have in common; nothing if all of them were trained."""
    choice = model.choices.get(dataset)
    if choice is not None and choice.found is not None:
        return {"trained": [choice.trained.mode, "critical" if choice.found.critical else "non_critical"]}
    untrained = model.untrained(dataset)
    return {"untrained": sorted(untrained)} if untrained else {}


def _resampling(config: Config) -> dict[str, int]:
    correlation = config.studies.correlation
    return (
        {"resamples": correlation.resamples, "seed": correlation.seed}
        if correlation
        else {"resamples": 1000, "seed": 0}
    )
