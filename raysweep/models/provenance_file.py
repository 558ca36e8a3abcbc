"""A checkpoint's provenance file: where its weights came from, and what was done to them before they were saved.

Its `note` is a short text about the weights (`dequantised from Q4_1`) that plans, reports and tables of runs repeat. Nothing in
the file changes what is computed, and it is no part of a fingerprint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raysweep import limits
from raysweep.errors import InputError, shortened, shown

FILE_NAME = "raysweep_provenance.json"
_LONGEST = 200  # characters of a note; it stands in table cells


def write_provenance(folder: Path, provenance: Mapping[str, Any]) -> None:
    """Write the provenance file of the checkpoint in `folder`."""
    text = json.dumps(provenance, indent=2, ensure_ascii=False)
    (folder / FILE_NAME).write_text(f"{text}\n", encoding="utf-8")


def read_note(folder: Path) -> str:
    """Return the note of the checkpoint in `folder` as one printable line; empty if it has none.

    Raises InputError if there is a provenance file that cannot be read as one.
    """
    path = folder / FILE_NAME
    try:
        provenance = json.loads(limits.read_limited(path, limits.SETTINGS_BYTES).decode())
    except FileNotFoundError:
        return ""
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}; copy it again, or delete it") from error
    note = provenance.get("note", "") if isinstance(provenance, dict) else None
    if not isinstance(note, str):
        found = "`note` " + shown(note) if isinstance(provenance, dict) else shown(provenance)
        raise InputError(
            f"{path} has {found}, and a provenance file is an object whose `note` is text; delete the file"
        )
    printable = "".join(c if c.isprintable() or c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in note)
    return shortened(" ".join(printable.split()), _LONGEST)
