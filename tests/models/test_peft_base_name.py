"""The base that an adapter's config records, compared with the one that is given."""

from __future__ import annotations

from pathlib import Path

import pytest

from raysweep.models.checkpoint import Checkpoint
from raysweep.models.peft_base_name import base_warning

SNAPSHOT = "hub/models--acme--llama-7b/snapshots/0123abcd"


def warning(recorded: object, source: str, folder: Path, revision: str | None = None, **config: str) -> str | None:
    base = Checkpoint(source, folder, config, {}, 0, False, "")
    names = {"base_model_name_or_path": recorded, "revision": revision}
    return base_warning(Checkpoint("adapter", folder, names, {}, 0, True, ""), base)


@pytest.mark.parametrize(
    ("recorded", "source", "folder"),
    [
        (None, "models/llama", "models/llama"),
        ("", "models/llama", "models/llama"),
        (["not a name"], "models/llama", "models/llama"),
        ("acme/llama-7b", "acme/llama-7b", SNAPSHOT),
        ("ACME/Llama-7B", "acme/llama-7b", SNAPSHOT),
        ("acme/llama-7b", "llama-7b", "models/llama-7b"),
        ("/elsewhere/models/llama-7b/", "llama-7b", "models/llama-7b"),
        (f"/home/me/.cache/{SNAPSHOT}", "acme/llama-7b", SNAPSHOT),
        (f"/home/me/.cache/{SNAPSHOT}", "/data/llama-7b", "models/llama-7b"),
        (r"C:\models\llama-7b", "llama-7b", "models/llama-7b"),
        ("/old/run/checkpoint-500", "run/checkpoint-500", "run/checkpoint-500"),
    ],
)
def test_names_of_the_same_base(recorded: object, source: str, folder: str, tmp_path: Path) -> None:
    assert warning(recorded, source, tmp_path / folder) is None


@pytest.mark.parametrize(
    ("recorded", "source", "folder"),
    [
        ("acme/llama-7b-chat", "acme/llama-7b", SNAPSHOT),
        ("acme/llama-7b-chat", "/data/llama-7b", "models/llama-7b"),
        ("other/llama-7b", "acme/llama-7b", SNAPSHOT),
        ("/elsewhere/models/llama-13b", "llama-7b", "models/llama-7b"),
        ("/old/one/checkpoint-500", "other/checkpoint-500", "other/checkpoint-500"),
        ("/old/run/checkpoint-1000", "run/checkpoint-500", "run/checkpoint-500"),
    ],
)
def test_names_of_other_bases(recorded: str, source: str, folder: str, tmp_path: Path) -> None:
    found = warning(recorded, source, tmp_path / folder)
    assert found is not None
    assert f"was trained on '{recorded}'" in found
    assert f"is merged into '{source}'" in found


def test_a_folder_is_the_same_under_any_name(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert warning(str(tmp_path / "real"), "lab://something", tmp_path / "link") is None


def test_a_copy_whose_config_records_where_it_is_from(tmp_path: Path) -> None:
    assert warning("acme/llama", "/data/copy", tmp_path / "copy", _name_or_path="acme/llama") is None


def test_a_revision_that_is_not_known_to_be_the_bases(tmp_path: Path) -> None:
    found = warning("acme/llama-7b", "acme/llama-7b", tmp_path / SNAPSHOT, revision="v2")
    assert found is not None
    assert "'acme/llama-7b' (revision v2)" in found
    assert warning("acme/llama-7b", "acme/llama-7b", tmp_path / SNAPSHOT, revision="main") is None
    assert warning("acme/llama-7b", "acme/llama-7b", tmp_path / SNAPSHOT, revision="0123abcd") is None
