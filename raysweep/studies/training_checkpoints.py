"""The trainer's own checkpoints in a training's folder: which of them are whole, and of this training.

The trainer writes checkpoint-N file by file, and takes old ones away file by file. One is whole once its list of files and
sizes, written last, is there and true.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from raysweep.errors import InputError
from raysweep.models.shards import OPTIMIZER, WEIGHTS, check_plain
from raysweep.store.artifacts import files_below, flush_below, publish_json

_LIST = "whole.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    found = _NAME.fullmatch(checkpoint.name)
    if found is None:
        raise ValueError(f"{checkpoint} is not a checkpoint-N")
    return int(found[1])


def mark_whole(checkpoint: Path, training: str) -> None:
    """Write the list that tells that a checkpoint is whole, once its files are on the disk; `training` identifies what it is of."""
    flush_below(checkpoint)
    publish_json(checkpoint / _LIST, {"training": training, "files": _sizes(checkpoint)})


def last_whole(folder: Path, training: str) -> Path | None:
    """The whole checkpoint of the most steps in `folder`, or None.

    Raises InputError where it is of another training: of another base, recipe or data, or on as many processes.
    """
    for checkpoint in sorted(_checkpoints(folder), key=step_of, reverse=True):
        listed = _listed(checkpoint)
        if listed is None:
            continue
        if listed["training"] != training:
            raise InputError(
                f"{checkpoint} is of another training (another base, recipe, number of processes or data), and cannot "
                "be resumed by this one; remove the folder, or give another"
            )
        return checkpoint
    return None


def remove_torn(folder: Path) -> None:
    """Take away checkpoints that are not whole: the trainer counts them among those it keeps."""
    for checkpoint in _checkpoints(folder):
        if _listed(checkpoint) is None:
            shutil.rmtree(checkpoint)


def start_from(folder: Path, training: str) -> Path | None:
    """The checkpoint to resume from, once those that are not whole are taken away.

    Raises InputError for one of another training, and for shards that are more than tensors and plain values.
    """
    start = last_whole(folder, training)
    remove_torn(folder)
    for shards in (start / WEIGHTS, start / OPTIMIZER) if start is not None else ():
        if shards.is_dir():
            check_plain(shards)
    return start


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in folder.glob("checkpoint-*") if path.is_dir() and _NAME.fullmatch(path.name)]


def _listed(checkpoint: Path) -> dict[str, object] | None:
    """A checkpoint's list, where its files are as it tells."""
    try:
        listed = json.loads((checkpoint / _LIST).read_bytes())
    except (OSError, ValueError):
        return None
    whole = isinstance(listed, dict) and listed.get("files") == _sizes(checkpoint)
    return listed if whole else None


def _sizes(checkpoint: Path) -> dict[str, int]:
    """Every file below a checkpoint but its list, and its bytes."""
    return {
        path.relative_to(checkpoint).as_posix(): path.stat().st_size
        for path in files_below(checkpoint)
        if not path.name.startswith((_LIST, ".tmp-"))
    }
