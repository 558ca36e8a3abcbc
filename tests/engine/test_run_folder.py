"""The run folder: which folders are taken, which are refused, and what survives in them."""

from __future__ import annotations

import json
import shutil

import pytest

from raysweep.engine.folder import RunFolder
from raysweep.engine.inspection import resolve_device
from raysweep.engine.plan import plan
from raysweep.engine.preparation import prepare
from raysweep.errors import InputError


def content(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_naming_a_folder_makes_nothing(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.check_usable()
    assert not folder.is_run
    assert folder.committed() == {}
    assert content(tmp_path) == []


def test_an_empty_folder_is_usable(tmp_path):
    RunFolder(tmp_path).check_usable()


def test_foreign_folders_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError) as caught:
        RunFolder(tmp_path).check_usable()
    assert str(caught.value) == (
        f"storage '{tmp_path}' is neither empty nor a run folder (it has 'notes.txt'); give another folder"
    )
    (tmp_path / "events.jsonl").write_text('{"something": "else"}\n')
    with pytest.raises(InputError, match="neither empty nor a run folder"):
        RunFolder(tmp_path).check_usable()


def test_a_file_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises(InputError) as caught:
        RunFolder(path).check_usable()
    assert str(caught.value) == f"storage '{path}' is a file; give a folder"


@pytest.mark.parametrize("killed_after", ["events.jsonl", "config.yaml"])
def test_a_run_that_was_killed_at_once_can_be_run_again(tmp_path, killed_after):
    (tmp_path / "events.jsonl").write_bytes(b"")
    (tmp_path / killed_after).write_bytes(b"")
    RunFolder(tmp_path).check_usable()
    with pytest.raises(InputError, match="is not a run folder"):
        RunFolder(tmp_path).require_run()


def test_only_a_run_has_a_report(tmp_path):
    with pytest.raises(InputError) as caught:
        RunFolder(tmp_path / "gone").require_run()
    assert str(caught.value) == f"run folder '{tmp_path / 'gone'}' does not exist"
    with pytest.raises(InputError) as caught:
        RunFolder(tmp_path).require_run()
    assert str(caught.value) == f"'{tmp_path}' is not a run folder (it has no events.jsonl and plan.json)"


def test_the_plan_comes_back(tmp_path, small):
    graph = plan(*small)
    folder = RunFolder(tmp_path)
    folder.write_plan("name: x\n", graph, {"name": "é", "layers": {"m": 6}})
    assert folder.read_plan() == (graph, {"name": "é", "layers": {"m": 6}})
    assert folder.config.read_text() == "name: x\n"
    names = [task["name"] for task in json.loads(folder.plan.read_text())["tasks"]]
    assert names == [task.name for task in graph.tasks], "scripts read the names"


def test_what_a_run_leaves(finished):
    top = {path.name for path in finished.folder.root.iterdir()}
    assert top == {".lock", "config.yaml", "plan.json", "events.jsonl", "chunks", "activations"}
    layers = [f"layer={layer:03d}" for layer in range(6)]
    for dataset in ("first", "second"):
        store = finished.folder.activations("m", dataset)
        assert sorted(path.name for path in store.iterdir()) == [*layers, "manifest.json"]
    assert not list(finished.folder.root.rglob(".tmp-*"))


@pytest.fixture
def copied(finished, tmp_path):
    """A finished run's folder, to be spoilt."""
    shutil.copytree(finished.folder.root, tmp_path / "run")
    return RunFolder(tmp_path / "run")


@pytest.mark.parametrize("how", ["gone", "cut"])
def test_a_chunk_without_its_activations_is_not_committed(copied, how):
    before = copied.committed()
    victim = sorted(copied.activations("m", "first").glob("layer=003/*.arrow"))[1]
    if how == "gone":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-1])
    manifests = content(copied.root / "chunks")
    lost = before.keys() - copied.committed().keys()
    assert [before[key].extra["part"][:5] for key in lost] == ["00001"]
    assert content(copied.root / "chunks") == manifests, "looking changes nothing"
    copied.forget_broken()
    assert len(content(copied.root / "chunks")) == len(manifests) - 1
    assert before.keys() - copied.committed().keys() == lost


def test_forgetting_leaves_what_is_whole(copied):
    before = content(copied.root)
    copied.forget_broken()
    assert content(copied.root) == before


def test_clearing_leaves_a_run_folder(copied):
    (copied.root / "mine.txt").write_text("kept")
    copied.clear()
    assert content(copied.root) == [".lock", "config.yaml", "events.jsonl", "mine.txt", "plan.json"]
    copied.check_usable()
    assert copied.committed() == {}


def test_preparing_writes_nothing(make_config, tmp_path):
    facts, graph, folder = prepare(make_config(tmp_path / "run"), resolve_device)
    assert (len(facts.cells), len(graph.tasks), folder.root) == (2, 10, tmp_path / "run")
    assert content(tmp_path) == []
