"""How a run was made, from its folder: facts of the plan, timings and failures of the events, warnings of the tables."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from raysweep.engine import events
from raysweep.engine.accuracy import compare
from raysweep.report.accuracy import accuracy_records
from raysweep.report.earlier import results_digest
from raysweep.report.page import Provenance
from raysweep.report.records_words import records_warnings
from raysweep.studies.interventions import Intervention

if TYPE_CHECKING:
    import pandas as pd

    from raysweep.engine.folder import RunFolder
    from raysweep.engine.graph import Graph


def provenance(
    folder: RunFolder, graph: Graph, about: Mapping[str, Any], tables: Mapping[str, pd.DataFrame]
) -> Provenance:
    """Everything the page says of the run's making."""
    latest = events.latest_start(events.read_events(folder.events))
    return Provenance(
        name=about["name"],
        created=latest.first.get("time", ""),
        command=about["command"],
        duration_s=latest.last.get("seconds"),
        versions=about["versions"],
        checkpoints=about["checkpoints"],
        datasets=about["datasets"],
        timings=_timings(folder, graph),
        warnings=_warnings(about, tables),
        failures=latest.failures,
        config_yaml=folder.config.read_text(encoding="utf-8"),
        sets=_set_names(graph),
        accuracy=accuracy_records(compare(about.get("estimate"), events.read_events(folder.events))),
        published_attack=about.get("published_attack", {}),
        published_rho=about.get("published_rho", {}),
        shared=about.get("shared", ()),
        results=results_digest(folder),
    )


def _set_names(graph: Graph) -> dict[str, str]:
    """What the config calls its sets, by their layers."""
    changes = (task.window for task in graph.tasks if isinstance(task.window, Intervention))
    return {change.layers: change.name for change in changes if change.kind == "set" and change.name}


def _timings(folder: RunFolder, graph: Graph) -> list[dict[str, str]]:
    """Seconds of computation by kind of work, summed over the commits that this plan uses."""
    keys = {key for task in graph.tasks for key in task.keys}
    chunks = {manifest.name: manifest for key, manifest in folder.committed().items() if key in keys}
    seconds: dict[str, float] = defaultdict(float)
    applications: dict[str, float] = defaultdict(float)
    kinds = {name: name.split("-")[0] for name in chunks}
    derived = ("dynamics", "critical", "health", "stopping")  # made by the call of the similarity table, or by none
    commits = Counter(kind for kind in kinds.values() if kind not in derived)
    told = set()  # calls that made several commits: chunks of one pass, and what was captured on the way
    for name, manifest in sorted(chunks.items(), key=lambda item: kinds[item[0]] == "capture"):
        log, measured = manifest.extra["log"], manifest.extra["log"]["measured"]
        call = (log.get("call", name), measured.get("seconds"))
        if kinds[name] in commits and call not in told:
            seconds[kinds[name]] += measured.get("seconds", 0.0)
            applications[kinds[name]] += measured.get("layer_applications", 0.0)
            told.add(call)
    return [
        {
            "what": kind,
            "seconds": f"{seconds[kind]:.2f}",
            "detail": f"{commits[kind]} commits"
            + (f", {applications[kind]:,.0f} layer applications on batches" if applications[kind] else ""),
        }
        for kind in commits
    ]


def _warnings(about: Mapping[str, Any], tables: Mapping[str, pd.DataFrame]) -> list[str]:
    warnings = records_warnings(about["datasets"], about.get("warnings", ()))
    losses = tables.get("substitution")
    if losses is not None:
        for (model, dataset), rows in losses.groupby(["model", "dataset"], sort=False)["loss"]:
            where, n = f"{dataset} on {model}", len(rows)
            if missing := int(rows.isna().sum()):
                warnings.append(f"{where}: {missing} of {n} losses are NaN and are skipped in every mean")
            if infinite := int(np.isinf(rows).sum()):
                warnings.append(
                    f"{where}: {infinite} of {n} losses are infinite. They count as the largest, and their windows have no intervals"
                )
    return warnings
