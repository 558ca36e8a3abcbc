"""Why work that an earlier run of a folder had done is done again: what changed of all that its keys hold, in words. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from raysweep.engine.graph import Graph
from raysweep.engine.keys import CALCULATION, STATISTICS, TRAINING, releases

CALCULATIONS = {
    "losses and states": CALCULATION,
    "statistics": STATISTICS,
    "training": TRAINING,
}  # the releases of raysweep's own arithmetic


def why_redone(
    earlier: Graph, earlier_about: Mapping[str, Any], now: Graph, about: Mapping[str, Any], done: Collection[str]
) -> str:
    """Return one line if tasks of the same name were done and are not any more, with what changed; else an empty text.

    `done` are the committed keys. Both `about`s are what a run's plan says of its origins.
    """
    were_done = {task.name for task in earlier.tasks if task.keys and all(key in done for key in task.keys)}
    again = [task.name for task in now.tasks if task.name in were_done and any(key not in done for key in task.keys)]
    if not again:
        return ""
    changes = "; ".join(_changes(earlier_about, about)) or "the config or the records changed"
    many = "1 completed task is" if len(again) == 1 else f"{len(again)} completed tasks are"
    return f"{many} recomputed ({again[0]}{', …' * (len(again) > 1)}): {changes}. The earlier results are kept"


def _changes(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    before, after = earlier.get("versions", {}), now["versions"]
    known = {name: version for name, version in before.items() if name in after}
    for name, release in releases(after, with_peft=True).items():
        if name not in known:
            yield f"keys now include the version of {name} ({release})"
        elif (was := ".".join(known[name].split(".")[:2])) != release:
            yield f"{name} {was} became {release}"
    calculations = earlier.get("calculations", CALCULATIONS)
    for name, number in CALCULATIONS.items():
        if calculations.get(name) != number:
            yield f"raysweep's arithmetic of {name} is version {number} and was {calculations.get(name, 'another')}"
    fingerprints = {(c["model"], c["role"]): c["fingerprint"] for c in earlier.get("checkpoints", ())}
    for checkpoint in now["checkpoints"]:
        was = fingerprints.get((checkpoint["model"], checkpoint["role"]), checkpoint["fingerprint"])
        if was != checkpoint["fingerprint"]:
            yield f"checkpoint '{checkpoint['path']}' has fingerprint {checkpoint['fingerprint']} and had {was}"
