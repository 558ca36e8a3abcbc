"""Whether what several drivers did to one run folder is a history that the lock and the commits allow. A plain function.

It knows nothing of the package but the names of three events.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any


def violations(
    history: Iterable[tuple[str, Mapping[str, Any]]],
    log: Iterable[Mapping[str, Any]],
    manifests: Iterable[Collection[str]],
    expected: Collection[str],
) -> list[str]:
    """Return what is wrong with a history, in words; nothing if all is well.

    `history` has (driver, event) pairs of all that drivers wrote, which are sorted here by the events' times; `log` the events
    that count (of a driver that was followed, not what it published afterwards); `manifests` the keys of each manifest that is
    there in the end; `expected` every key of the finished run. A driver holds the folder from its first event (it may log
    commits that a killed one could not) until another driver's first, and commits only while it does.
    """
    found = []
    holder, held = None, set[str]()
    for driver, event in sorted(history, key=lambda pair: str(pair[1]["time"])):
        if driver not in held:
            holder = driver
            held.add(driver)
        if event["event"] == "chunk_committed" and driver != holder:
            found.append(f"{driver} committed {event['commit']} while {holder} held the folder")
        elif event["event"] == "run_finished" and driver != holder:
            found.append(f"{driver} finished while {holder} held the folder")
    committed = Counter(key for event in log if event["event"] == "chunk_committed" for key in event["keys"])
    found += [f"key {key} was committed {n} times" for key, n in committed.items() if n > 1]
    found += [f"key {key} was never committed" for key in expected if key not in committed]
    found += [f"key {key} was committed and is not needed" for key in committed if key not in expected]
    there = {key for keys in manifests for key in keys}
    found += [f"key {key} is in the log and in no manifest" for key in committed if key not in there]
    found += [f"key {key} is in a manifest and not in the log" for key in there if key not in committed]
    return found
