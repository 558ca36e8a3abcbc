"""Disk space freed by choice: what is superseded after a changed config, states, logs; and a removal that is cut off."""

from __future__ import annotations

import json
import shutil

import pytest

from raysweep.engine import cleaning
from raysweep.engine.cleaning import ACTIVATIONS, CHOICES, SUPERSEDED, TRACKERS, clean_folder
from raysweep.engine.doctor import examine
from raysweep.engine.driver import drive
from raysweep.engine.folder import RunFolder
from raysweep.errors import FolderInUseError, InputError
from raysweep.store.places import listing, location, put_bytes, read_bytes, remove_below


@pytest.fixture(scope="module")
def changed(make_config, tmp_path_factory):
    """A run folder whose config changed: first 10 records of `first` in chunks of 4, then 4 of them and other windows."""
    root = tmp_path_factory.mktemp("changed") / "run"
    drive(make_config(root))
    drive(make_config(root, "datasets.0.limit=4", "studies.substitution.widths=[3]"))
    for name in ("trackers/tensorboard/2026/events.out", "trackers/mine/notes.txt", "mine.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * 100)
    return root


@pytest.fixture(params=["folder", "memory"])
def run(request, changed, tmp_path):
    """A copy of it: a folder, or the like in a store."""
    if request.param == "folder":
        shutil.copytree(changed, tmp_path / "run")
        yield RunFolder(tmp_path / "run")
        return
    root = location(f"memory://cleaning/{tmp_path.name}")
    for path in sorted(changed.rglob("*")):
        name = path.relative_to(changed).as_posix()
        if path.is_file() and name != ".lock":
            put_bytes(root / ("events/000001-aaaaaaaa.jsonl" if name == "events.jsonl" else name), path.read_bytes())
    yield RunFolder(root)
    remove_below(root)


@pytest.fixture
def local(changed, tmp_path):
    shutil.copytree(changed, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def files(folder):
    if isinstance(folder.root, type(location("x"))):
        found = {p.relative_to(folder.root).as_posix(): p.read_bytes() for p in folder.root.rglob("*") if p.is_file()}
    else:
        found = {name: read_bytes(folder.root / name) for name in listing(folder.root)}
    return {name: data for name, data in found.items() if not name.startswith(".lock")}


def size(content, names):
    return sum(len(content[name]) for name in names)


def shares(found):
    return {share.choice: share for share in found.shares}


def planned(folder):
    return {key for task in folder.read_plan()[0].tasks for key in task.keys}


def test_without_a_choice_it_only_says_what_each_would_free(run):
    before = files(run)
    found = clean_folder(run.root)
    assert files(run) == before
    assert [share.choice for share in found.shares] == list(CHOICES)
    assert all(share.bytes > 0 and share.files > 0 and not share.removed for share in found.shares)
    assert (shares(found)[TRACKERS].bytes, shares(found)[TRACKERS].files) == (100, 1)
    assert found.to_text().endswith("\nnothing was removed")
    assert json.loads(json.dumps(found.to_json()))["shares"][0]["bytes"] == shares(found)[SUPERSEDED].bytes
    assert max(map(len, found.to_text().replace(str(run.root), "").splitlines())) <= 80


@pytest.mark.parametrize("choices", [[SUPERSEDED], [ACTIVATIONS], [TRACKERS], list(CHOICES)], ids="+".join)
def test_it_removes_what_it_says_and_nothing_else(run, choices):
    before, keys = files(run), planned(run)
    said = shares(clean_folder(run.root, chosen=choices, dry_run=True))
    assert files(run) == before, "a dry run"
    done = run.committed()
    found = shares(clean_folder(run.root, chosen=choices))
    after = files(run)
    assert {name for name in after if after[name] != before.get(name)} == set()
    gone = before.keys() - after.keys()
    stores = {name for name in gone if name.startswith("activations/") and name.endswith("manifest.json")}
    assert size(before, gone - stores) == sum(said[choice].bytes for choice in choices)
    assert len(gone - stores) == sum(said[choice].files for choice in choices)
    assert {choice for choice, share in found.items() if share.removed} == set(choices)
    assert "mine.txt" in after
    assert "trackers/mine/notes.txt" in after
    assert examine(run, checksums=True).findings == (), "nothing that the doctor calls damage"
    now = run.committed()
    assert now.keys() <= done.keys()
    if ACTIVATIONS not in choices:
        assert now.keys() & keys == done.keys() & keys, "the present config lacks nothing"
    again = shares(clean_folder(run.root))
    assert all(again[choice].files == 0 for choice in choices)
    assert all(again[choice].bytes == said[choice].bytes for choice in CHOICES if choice not in choices)


def test_superseded_commits_are_those_of_which_the_plan_uses_nothing(local):
    keys = planned(local)
    manifests = local.chunks.manifests()
    unused = {m.name for m in manifests if not keys & m.parts.keys()}
    partly = {m.name for m in manifests if keys & m.parts.keys() and m.parts.keys() - keys}
    assert len(unused) > 2
    assert partly, "the unchanged model of the first chunk, next to windows of the old width"
    found = clean_folder(local.root, chosen=[SUPERSEDED])
    assert {m.name for m in local.chunks.manifests()} == {m.name for m in manifests} - unused
    assert found.partly_used == len(partly)
    assert f"{len(partly)} more commit" in found.to_text()


def test_the_run_goes_on_with_the_same_tables(local, make_config, tables_of, same_tables):
    config = make_config(local.root, "datasets.0.limit=4", "studies.substitution.widths=[3]")
    before = tables_of(drive(config))
    clean_folder(local.root, chosen=CHOICES)
    same_tables(tables_of(drive(config)), before)
    found = shares(clean_folder(local.root))
    assert found[SUPERSEDED].files == 0
    assert found[ACTIVATIONS].files > 0, "captured again"


@pytest.mark.parametrize("survivors", [0, 1, 7])
def test_a_removal_that_is_killed_leaves_nothing_but_orphans(local, survivors, monkeypatch):
    """Killed after the manifests, and after some of the files."""
    unlinked = []
    unlink = cleaning._Contents._unlink

    def killed(self, paths):
        if len(paths) > 1:
            unlinked.extend(paths[:survivors])
            unlink(self, paths[:survivors])
            raise KeyboardInterrupt
        unlink(self, paths)

    keys = planned(local)
    done = local.committed().keys() & keys
    monkeypatch.setattr(cleaning._Contents, "_unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        clean_folder(local.root, chosen=[SUPERSEDED])
    assert len(unlinked) == survivors
    assert local.committed().keys() & keys == done
    assert {finding.kind for finding in examine(local).findings} <= {"orphan"}
    examine(local, remove=True)
    assert examine(local).findings == ()
    assert shares(clean_folder(local.root))[SUPERSEDED].files == 0


def test_a_folder_in_use_is_looked_at_and_not_cleaned(local):
    before = files(local)
    with local.locked():
        clean_folder(local.root)
        with pytest.raises(
            FolderInUseError, match=r"is in use by another raysweep \(.*\); wait for it to end, or stop it$"
        ):
            clean_folder(local.root, chosen=[TRACKERS])
    assert files(local) == before


def test_what_is_not_a_run_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        clean_folder(str(tmp_path / "gone"), chosen=[TRACKERS])
    (tmp_path / "trackers").mkdir()
    with pytest.raises(InputError):
        clean_folder(str(tmp_path), chosen=[TRACKERS])


@pytest.mark.parametrize("content", [b"{", b"{}", b'{"tasks": [{"kind": "x"}], "about": {}}'])
def test_a_plan_that_is_not_understood_removes_nothing(local, content):
    local.plan.write_bytes(content)
    before = files(local)
    with pytest.raises(InputError, match="is damaged, or from another version"):
        clean_folder(local.root, chosen=[SUPERSEDED])
    assert files(local) == before


def test_links_to_elsewhere_are_not_followed(local, tmp_path):
    shutil.move(local.root / "trackers", tmp_path / "elsewhere")
    (local.root / "trackers").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError):
        clean_folder(local.root, chosen=[TRACKERS])
    assert (tmp_path / "elsewhere" / "tensorboard" / "2026" / "events.out").exists()
