"""Which of the trainer's checkpoints are whole."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from raysweep.errors import InputError
from raysweep.studies.training_checkpoints import last_whole, mark_whole, remove_torn, step_of


def write(folder: Path, step: int, *, whole: bool = True, training: str = "this") -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    (checkpoint / "shards").mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    (checkpoint / "shards" / "0.distcp").write_bytes(b"part")
    if whole:
        mark_whole(checkpoint, training)
    return checkpoint


def test_the_whole_one_of_the_most_steps_is_found_and_torn_ones_go(tmp_path: Path) -> None:
    assert last_whole(tmp_path, "this") is None
    nine, ten = write(tmp_path, 9), write(tmp_path, 10)
    torn, grown, short = write(tmp_path, 11, whole=False), write(tmp_path, 12), write(tmp_path, 13)
    (tmp_path / "checkpoint-last").mkdir()
    (grown / "model.safetensors").write_bytes(b"weights, and more")
    (short / "shards" / "0.distcp").unlink()
    assert last_whole(tmp_path, "this") == ten
    assert step_of(ten) == 10
    remove_torn(tmp_path)
    assert sorted(tmp_path.glob("checkpoint-*")) == sorted([ten, nine, tmp_path / "checkpoint-last"])
    assert not torn.exists()
    shutil.rmtree(ten)
    assert last_whole(tmp_path, "this") == nine


def test_one_of_another_training_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 3, training="other")
    with pytest.raises(InputError, match=r"checkpoint-3 is of another training .* remove the folder, or give another"):
        last_whole(tmp_path, "this")
