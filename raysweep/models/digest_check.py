"""Whether what is loaded is what was planned: digests compared, and what to say where they differ.

A checkpoint is described once, before a run. Every process that loads it later digests the bytes that it uses, in the pass
that reads them (digesting.py), and asks here whether they are the same.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep.errors import InputError
from raysweep.models.machine_errors import is_machine_error
from raysweep.models.tensors import Tensor, read_header

if TYPE_CHECKING:
    from raysweep.models.checkpoint import Checkpoint

SETTINGS_FILES = ("config.json", "generation_config.json")
VOCABULARY_FILES = (
    *("tokenizer.json", "*.model", "*.tiktoken", "vocab.*", "merges.txt", "tekken.json"),
    *("added_tokens.json", "special_tokens_map.json"),
)
TOKENIZER_FILES = (*VOCABULARY_FILES, "tokenizer_config.json", "*.jinja", "additional_chat_templates/*.jinja")
_SHOWN = 16  # digits of a digest in a message
_GONE = "no such file"


def other_content(checkpoint: Checkpoint, what: str, found: str, planned: str) -> InputError:
    """Return the error for a file or tensor (`what`) that is not the planned one; `found` and `planned` describe both."""
    reason = (
        f"A file of this run's own checkpoint was changed or damaged. Remove {checkpoint.manifest} to create it again"
        if checkpoint.manifest
        else "The checkpoint changed after the run was planned, or this node has another one under the same path. Restore "
        "the planned checkpoint, or run again to plan with the new one"
    )
    return InputError(
        f"checkpoint '{checkpoint.source}' is not the planned one: {what}: planned {planned}, found {found} on host "
        f"{socket.gethostname()}. {reason}."
    )


def compare_digests(checkpoint: Checkpoint, what: str, found: str, planned: str | None) -> None:
    """Raise InputError if two SHA-256 digests differ; `planned` is None if the plan has no such file or tensor."""
    if found != planned:
        raise other_content(checkpoint, what, _shown(found), _shown(planned) if planned else "nothing of that name")


def _shown(digest: str) -> str:
    return digest if digest == _GONE else f"SHA-256 {digest[:_SHOWN]}"


def planned_header(checkpoint: Checkpoint, path: Path) -> list[Tensor]:
    """Read the header of one of the checkpoint's safetensors files. Raises InputError, naming the checkpoint, if it is damaged."""
    try:
        return read_header(path)
    except InputError as error:
        raise InputError(f"checkpoint '{checkpoint.source}' could not be loaded: {error}") from error
    except OSError as error:
        if is_machine_error(error):
            raise
        raise InputError(
            f"checkpoint '{checkpoint.source}' could not be loaded: {path} cannot be read: {error.strerror or error}"
        ) from error


def compare_headers(checkpoint: Checkpoint, entries: Mapping[str, tuple[Path, Tensor]]) -> None:
    """Raise InputError unless safetensors headers name the planned tensors with their dtypes and shapes.

    Does nothing for a checkpoint without digests of tensors.
    """
    if not checkpoint.digests:
        return
    for name, (path, tensor) in entries.items():
        found = f"{tensor.dtype} {list(tensor.shape)}"
        planned = "no such tensor"
        if name in checkpoint.digests:
            planned = f"{checkpoint.dtypes[name]} {list(checkpoint.shapes[name])}"
        if found != planned:
            raise other_content(checkpoint, f"{path}: tensor {name}", found, planned)
    if lacking := sorted(checkpoint.digests.keys() - entries.keys()):
        planned = f"{checkpoint.dtypes[lacking[0]]} {list(checkpoint.shapes[lacking[0]])}"
        raise other_content(checkpoint, f"{checkpoint.folder}: tensor {lacking[0]}", "no such tensor", planned)


def digest_small_files(folder: Path, patterns: Iterable[str] = (*SETTINGS_FILES, *TOKENIZER_FILES)) -> dict[str, str]:
    """Return the SHA-256 of the settings and tokenizer files in a checkpoint's folder, by relative POSIX path."""
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@contextmanager
def unchanged(checkpoint: Checkpoint, patterns: Iterable[str]) -> Iterator[None]:
    """Compare small files with the plan before and after they are read by code that takes a folder's name.

    Raises InputError, naming the file, for one that differs, is new, or is gone. Does nothing for a checkpoint whose files
    have no digests.
    """
    patterns = tuple(patterns)
    _compare_small_files(checkpoint, patterns)
    try:
        yield
    except Exception:
        _compare_small_files(checkpoint, patterns)  # the reason for whatever its reader stumbled over
        raise
    _compare_small_files(checkpoint, patterns)


def _compare_small_files(checkpoint: Checkpoint, patterns: tuple[str, ...]) -> None:
    if not checkpoint.files:
        return
    try:
        found = digest_small_files(checkpoint.folder, patterns)
    except OSError as error:
        if is_machine_error(error):
            raise
        raise InputError(f"{error.filename} cannot be read: {error.strerror or error}") from error
    of_plan = {name for name in checkpoint.files for pattern in patterns if _matches(name, pattern)}
    for name in sorted(of_plan | found.keys()):
        what = str(checkpoint.folder / name)
        compare_digests(checkpoint, what, found.get(name, _GONE), checkpoint.files.get(name))


def _matches(name: str, pattern: str) -> bool:
    return Path(name).match(pattern) and name.count("/") == pattern.count("/")
