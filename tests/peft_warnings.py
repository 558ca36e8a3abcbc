"""PEFT's own warnings, which tests would take for errors."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def pefts_warnings() -> Iterator[None]:
    """Silence what PEFT warns of in its own code, and that it asks transformers under a name it is giving up."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"peft(\.|$)")
        for text in ("The distutils package is deprecated", "Distutils was imported before", "Setuptools is replacing"):
            warnings.filterwarnings("ignore", text)  # BOFT imports what builds extensions when it is first used
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield
