"""Open a run's log, and complete it after a kill."""

from __future__ import annotations

from functools import partial

from raysweep.engine import events
from raysweep.engine.events import EventLog, Listener
from raysweep.engine.folder import RunFolder


def open_log(folder: RunFolder, listener: Listener | None) -> EventLog:
    """Open the log of the folder; before each event it is checked that the folder is still held."""
    return EventLog(folder.events, listener, check=partial(folder.check_held, ask=False), holder=folder.holder)


def log_unlogged(folder: RunFolder, log: EventLog) -> None:
    """Log the commits that a kill kept from being logged, so that the log has each of them once."""
    logged, keys = set[str](), set[str]()
    for event in events.read_events(folder.events):
        if event["event"] == events.CHUNK_COMMITTED:
            logged.add(event["commit"])
            keys.update(event["keys"])
    for manifest in folder.chunks.manifests():
        # A driver that lost the folder may have committed, under another name, what its successor had logged.
        if manifest.name not in logged and not keys.issuperset(manifest.parts):
            log.emit(events.CHUNK_COMMITTED, commit=manifest.name, keys=list(manifest.parts), **manifest.extra["log"])
