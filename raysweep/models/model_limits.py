"""Limits on what a config makes of a model, before it has weights: its number of modules, and the tables that it computes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch.nn.modules.module import register_module_module_registration_hook

from raysweep.limits import MODULES, TABLE_BYTES

if TYPE_CHECKING:
    from torch import nn


@contextlib.contextmanager
def limited_modules(source: str) -> Iterator[None]:
    """Raise InputError from inside the block once a model that this thread builds in it has too many modules."""
    most, n, thread = MODULES.value(), 0, threading.get_ident()

    def count(*_: Any) -> None:
        nonlocal n
        n += threading.get_ident() == thread
        if n > most:
            raise MODULES.error(f"more than {most:.15g}", f"checkpoint '{source}'", most)

    hook = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def check_tables(model: nn.Module, source: str) -> None:
    """Raise InputError for tables (masks, positions) that the model computes, and does not store, beyond the limit."""
    size = sum(
        buffer.numel() * buffer.element_size()
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and name in module._non_persistent_buffers_set
    )
    TABLE_BYTES.check(size, f"checkpoint '{source}'")
