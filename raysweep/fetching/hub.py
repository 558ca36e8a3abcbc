"""Files of one revision of a Hugging Face hub repository."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

_SECONDS = 10  # for the hub to answer at all; the client's own downloads retry for much longer


class HubUnavailableError(Exception):
    """The hub did not give the files; the message says why in a few words."""


def download_snapshot(repository: str, revision: str, files: Collection[str]) -> Path:
    """Return a folder with these files of a revision: from the hub client's own cache, or from the hub into that cache.

    Raises HubUnavailableError if files are not in that cache and the hub does not give them, or HF_HUB_OFFLINE forbids asking.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import OfflineModeIsEnabled

    asked: dict[str, Any] = {"revision": revision, "allow_patterns": list(files)}
    with contextlib.suppress(Exception):  # raised if nothing of this revision is kept here
        kept = Path(snapshot_download(repository, **asked, local_files_only=True))
        if all((kept / name).is_file() for name in files):
            return kept
    try:
        HfApi().model_info(repository, revision=revision, timeout=_SECONDS)
        folder = Path(snapshot_download(repository, **asked))
    except OfflineModeIsEnabled as error:
        raise HubUnavailableError("HF_HUB_OFFLINE is set") from error
    except Exception as error:  # the hub client raises many types; every one means the same here
        first = next(iter(str(error).splitlines()), "")
        raise HubUnavailableError(first.rstrip(".") or type(error).__name__) from error
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise HubUnavailableError(f"it has no {missing[0]} at revision {revision}")
    return folder
