"""Provenance files of checkpoints: their note in the description, and nothing else changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from raysweep.errors import InputError
from raysweep.models.architecture import tuned_on_paper
from raysweep.models.checkpoint import Checkpoint, describe
from raysweep.models.provenance_file import FILE_NAME, read_note, write_provenance

Save = Callable[..., Checkpoint]


def test_the_note_is_all_that_differs_in_a_description(save: Save) -> None:
    plain = save("a")
    assert plain.note == ""
    write_provenance(plain.folder, {"note": "dequantised from Q4_1", "sha256": "0f", "model": "somebody/model"})
    noted = describe(plain.source)
    assert noted.note == "dequantised from Q4_1"
    assert dataclasses.replace(noted, note="") == plain, "its fingerprint, too"


def test_a_checkpoint_on_paper_does_not_inherit_its_bases_note(save: Save) -> None:
    base = dataclasses.replace(save("a"), note="dequantised from Q4_1")
    assert tuned_on_paper(base, "somebody/tuned").note == ""


@pytest.mark.parametrize("provenance", [{}, {"note": ""}, {"source": "a hub"}])
def test_a_file_without_a_note(save: Save, provenance: dict[str, str]) -> None:
    folder = save("a").folder
    write_provenance(folder, provenance)
    assert read_note(folder) == ""


def test_a_note_is_one_printable_line(save: Save) -> None:
    folder = save("a").folder
    write_provenance(folder, {"note": "  from\nQ4_1\t\x1b[31m" + "x" * 5000})
    note = read_note(folder)
    assert note.startswith("from Q4_1 �[31mxxx")
    assert len(note) == 200


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", rf"{FILE_NAME} is not JSON: .*; copy it again, or delete it"),
        ("[1]", rf"{FILE_NAME} has \[1\], and a provenance file is an object whose `note` is text; delete the file"),
        ('{"note": 3}', rf"{FILE_NAME} has `note` 3, and a provenance file is an object whose `note` is text"),
        ('{"note": null}', rf"{FILE_NAME} has `note` None, and"),
    ],
)
def test_what_is_no_provenance_is_refused_by_name(save: Save, text: str, message: str) -> None:
    checkpoint = save("a")
    (checkpoint.folder / FILE_NAME).write_text(text)
    with pytest.raises(InputError, match=message):
        describe(checkpoint.source)
