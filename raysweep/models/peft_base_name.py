"""Whether an adapter was trained on the base that it is given with, by the names that its config recorded.

Names tell less than weights: a folder may have been moved or renamed. So a difference is a warning, never an error.
"""

from __future__ import annotations

import re
from pathlib import Path

from raysweep.models.checkpoint import Checkpoint

_SNAPSHOT = re.compile(r"models--([^/]+)--([^/]+)/snapshots/([0-9a-f]+)")  # where the hub's cache keeps a repository
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_LONGEST = 4096  # characters of a path
_MAIN = (None, "", "main")


def base_warning(adapter: Checkpoint, base: Checkpoint) -> str | None:
    """A warning with both names if the adapter's config records another base or revision than the given one, else None.

    Equal are the same folder, the same hub id, a repository and its folder in the hub's cache, and folders of the same name in
    different places.
    """
    recorded, revision = adapter.config.get("base_model_name_or_path"), adapter.config.get("revision")
    if not isinstance(recorded, str) or not recorded:
        return None
    recorded = recorded[:_LONGEST]
    asked = f"'{recorded}'" + ("" if revision in _MAIN else f" (revision {revision})")
    if not _same_name(recorded, base):
        return (
            f"adapter '{adapter.source}' was trained on {asked} according to its adapter_config.json, and is merged "
            f"into '{base.source}'; if these are different models, its losses are meaningless"
        )
    if revision in _MAIN or _revision(base) == revision:
        return None
    return (
        f"adapter '{adapter.source}' was trained on {asked} according to its adapter_config.json; make sure that "
        f"'{base.source}', into which it is merged, is that revision"
    )


def _same_name(recorded: str, base: Checkpoint) -> bool:
    path = Path(recorded).expanduser()
    if path.is_dir() and path.resolve() == base.folder.resolve():
        return True
    ours = [base.source, str(base.folder.resolve()), str(base.config.get("_name_or_path") or "")]
    theirs = _hub_id(recorded)
    known = {found for name in ours if (found := _hub_id(name))}
    if theirs and known:
        return theirs in known
    return _short(recorded) in {_short(name) for name in ours if name}


def _hub_id(name: str) -> str | None:
    """The `owner/name` that a hub id or a folder of the hub's cache stands for, in lower case; None for other paths."""
    if found := _SNAPSHOT.search(f"{name}/"):
        return f"{found[1]}/{found[2]}".lower()
    return name.lower() if _HUB_ID.fullmatch(name) and not Path(name).exists() else None


def _short(name: str) -> str:
    """What is left of a name when a folder is moved: its last part, or a repository's name without its owner.

    `checkpoint-500` says little by itself, so the folder above it counts too.
    """
    if found := _hub_id(name):
        return found.partition("/")[2]
    parts = [part for part in re.split(r"[/\\]+", name.strip().rstrip("/\\").lower()) if part not in ("", ".")]
    last = parts[-1] if parts else ""
    return "/".join(parts[-2:]) if re.fullmatch(r"(checkpoint|step|epoch)[-_]?\d+", last) else last


def _revision(base: Checkpoint) -> str | None:
    found = _SNAPSHOT.search(f"{base.folder.resolve()}/")
    return found[3] if found else None
