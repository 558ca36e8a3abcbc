"""A run that a signal ends: logged, and its lock released, also if the process has to be ended by force; see signals.py."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from raysweep import signals
from raysweep.engine import events

if TYPE_CHECKING:
    from raysweep.engine.events import EventLog
    from raysweep.engine.folder import RunFolder


@contextmanager
def interrupts_logged(log: EventLog) -> Iterator[None]:
    """Log a signal that ends what is done meanwhile, with its name; the exception goes on.

    A handler of the application's own that raises SystemExit counts, too.
    """
    logged = threading.Event()

    def cut_off(number: int) -> None:
        if not logged.is_set():
            log.cut_off(events.RUN_INTERRUPTED, signal=signals.name_of(number))

    with signals.last_action(cut_off):
        try:
            yield
        except (KeyboardInterrupt, SystemExit) as error:
            logged.set()
            number = signals.number_of(error)
            with contextlib.suppress(Exception):  # of a lost lock, or a full disk: the run ends as it was asked to
                log.emit(events.RUN_INTERRUPTED, signal=None if number is None else signals.name_of(number))
            raise


@contextmanager
def lock_released(folder: RunFolder) -> Iterator[None]:
    """Release the folder's lock if the process is ended by force meanwhile, so that a successor gets in at once."""
    with signals.last_action(lambda number: folder.let_go()):
        yield
