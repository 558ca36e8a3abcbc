"""The checkpoints that a commit was made from: recorded with it, and compared later with what is on disk by then."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.engine.calls import (
    AdaptationCall,
    Call,
    Commit,
    JudgeCall,
    ModelCall,
    PairCall,
    RemovalCall,
    SimilarityCall,
    SpectrumCall,
)
from raysweep.errors import InputError
from raysweep.models.checkpoint import fingerprint_of

if TYPE_CHECKING:
    from raysweep.engine.facts import Facts
    from raysweep.models.checkpoint import Checkpoint

INPUTS = "inputs"  # of a commit's `extra`


def inputs_of(call: Call, facts: Facts) -> list[dict[str, str]]:
    """Return source, folder and fingerprint of each checkpoint that a call's results are made from. Plain values.

    Checkpoints that the run itself made are left out: their own commit has digests of their files.
    """
    found: list[Checkpoint | None] = []
    if isinstance(call, ModelCall):
        found = [call.base, call.tuned if isinstance(call, PairCall | RemovalCall) else None]
    elif (model := facts.models.get(call.model)) is None:
        return []
    elif isinstance(call, SimilarityCall | SpectrumCall):  # of states of one checkpoint
        found = [model.compared(call.dataset)]
    elif isinstance(call, JudgeCall | AdaptationCall):  # of what was trained from the base
        found = [model.base]
    else:
        found = [model.base, model.tuned.get(call.dataset), model.measured.get(call.dataset)]
    named = {c.fingerprint: c for c in found if c is not None and c.files and not c.on_paper}
    return [{"source": c.source, "folder": str(c.folder.absolute()), "fingerprint": key} for key, c in named.items()]


def with_inputs(commit: Commit, call: Call, facts: Facts) -> Commit:
    """Give a call's commit the record of its inputs."""
    return replace(commit, extra={**commit.extra, INPUTS: inputs_of(call, facts)})


class InputCheck:
    """Compares recorded inputs with the disk, reading each checkpoint once; `unchecked` says which could not be compared."""

    def __init__(self) -> None:
        self.unchecked: list[str] = []
        self._now = cache(self._fingerprint_now)

    def changes(self, inputs: Any) -> list[str]:
        """Describe each of a commit's inputs that is another checkpoint by now; nothing of one that is gone."""
        return [text for each in _records(inputs) if (text := self._change(each)) is not None]

    def _change(self, record: Mapping[str, str]) -> str | None:
        now = self._now(record["source"], record["folder"])
        if now in (None, record["fingerprint"]):
            return None
        return (
            f"computed from checkpoint '{record['source']}' with fingerprint {record['fingerprint'][:16]}, and "
            f"{record['folder']} "
            f"now has {now[:16] if len(now) == 64 else now}. The results are correct for that earlier checkpoint, and "
            "are kept"
        )

    def _fingerprint_now(self, source: str, folder: str) -> str | None:
        try:
            found = fingerprint_of(Path(folder), source)
        except InputError as error:
            return f"files that cannot be read ({error})"
        except OSError as error:
            found, why = None, f"{error.filename or folder} cannot be read: {error.strerror or error}"
        else:
            why = f"{folder} is not on this machine, or has no weights"
        if found is None:
            self.unchecked.append(f"checkpoint '{source}' cannot be checked: {why}")
        return found


def _records(inputs: Any) -> Iterable[Mapping[str, str]]:
    """The records that can be understood: a later release may write others."""
    for each in inputs if isinstance(inputs, list) else []:
        if isinstance(each, dict) and all(
            isinstance(each.get(key), str) for key in ("source", "folder", "fingerprint")
        ):
            yield each
