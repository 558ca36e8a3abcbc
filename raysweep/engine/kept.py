"""Checkpoints that this run made, with the digests that their manifest has of them: a plan knows them by their key alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep.errors import InputError

if TYPE_CHECKING:
    from raysweep.engine.folder import RunFolder
    from raysweep.models.checkpoint import Checkpoint


def as_committed(checkpoint: Checkpoint, folder: RunFolder) -> Checkpoint:
    """Give a checkpoint that the run made the digests of its files; any other is returned as it is.

    Raises InputError if no complete commit has it.
    """
    if checkpoint.digests or checkpoint.files or not _is_kept(checkpoint, folder):
        return checkpoint
    manifest = folder.find([checkpoint.fingerprint]).get(checkpoint.fingerprint)
    if manifest is None:
        raise InputError(
            f"checkpoint '{checkpoint.source}', which this run made, is not complete "
            f"({folder.why_lost(checkpoint.fingerprint)}). Run again to recreate it."
        )
    name = f"{checkpoint.folder.name}/"
    files = {entry.path.removeprefix(name): entry.sha256 for entry in manifest.files if entry.path.startswith(name)}
    return replace(checkpoint, files=files, manifest=str(folder.chunks.folder / f"{manifest.name}.json"))


def _is_kept(checkpoint: Checkpoint, folder: RunFolder) -> bool:
    return (
        isinstance(folder.root, Path)
        and (folder.root / "checkpoints").absolute() in checkpoint.folder.absolute().parents
    )
