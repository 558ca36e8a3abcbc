"""The doctor: what is left by kills and damage is found and removed, and nothing else is touched."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time

import pytest
from s3_server import CREDENTIALS

from raysweep import api
from raysweep.engine.doctor import examine
from raysweep.engine.driver import drive
from raysweep.engine.folder import RunFolder
from raysweep.errors import FolderInUseError, InputError
from raysweep.store.places import listing, location, put_bytes, read_bytes, remove_below

DEAD = 2**22 + 1  # above Linux's largest process number


@pytest.fixture(params=["folder", "memory", "s3"])
def spoilt(request, finished, tmp_path):
    """A finished run's folder, to be spoilt: a copy of it, or the like in a store."""
    if request.param == "folder":
        shutil.copytree(finished.folder.root, tmp_path / "run")
        yield RunFolder(tmp_path / "run")
        return
    if request.param == "s3":
        s3 = request.getfixturevalue("s3")
        root = location(s3.url(f"doctor/{tmp_path.name}"), s3.options)
    else:
        root = location(f"memory://doctor/{tmp_path.name}")
    local = finished.folder.root
    for path in sorted(local.rglob("*")):
        name = path.relative_to(local).as_posix()
        if path.is_file() and name != ".lock":
            put_bytes(root / ("events/000001-aaaaaaaa.jsonl" if name == "events.jsonl" else name), path.read_bytes())
    yield RunFolder(root)
    remove_below(root)


def files(folder):
    if isinstance(folder.root, type(location("x"))):
        return {p.relative_to(folder.root).as_posix(): p.read_bytes() for p in folder.root.rglob("*") if p.is_file()}
    return {name: read_bytes(folder.root / name) for name in listing(folder.root)}


def kinds(examined):
    return sorted((finding.kind, finding.path) for finding in examined.findings)


def without_lock(content):
    return {name: data for name, data in content.items() if not name.startswith(".lock")}


def test_a_whole_run_has_nothing_to_find(spoilt):
    before = files(spoilt)
    found = examine(spoilt, checksums=True)
    assert (found.findings, found.left) == ((), 0)
    assert found.to_text() == f"'{spoilt.root}': nothing found"
    assert examine(spoilt, remove=True).findings == ()
    assert without_lock(files(spoilt)) == without_lock(before)


def test_orphans_are_found_then_removed(spoilt):
    before = files(spoilt)
    store = "activations/m/first/layer=002/part-99999-0000.arrow"
    put_bytes_anywhere(spoilt.root / store, b"x" * 100)
    put_bytes_anywhere(spoilt.root / "chunks/lost.parquet", b"y" * 50)
    put_bytes_anywhere(spoilt.root / "chunks/notes.txt", b"mine")
    put_bytes_anywhere(spoilt.root / "mine/part-0.arrow", b"mine")
    found = examine(spoilt)
    assert kinds(found) == [("orphan", store), ("orphan", "chunks/lost.parquet")]
    assert (found.left, [f.bytes for f in found.findings]) == (2, [100, 50])
    assert found.to_text().splitlines()[-1] == f"'{spoilt.root}': 2 found, 150 bytes; 2 left; --remove removes them"
    assert examine(spoilt).left == 2, "looking removes nothing"
    removed = examine(spoilt, remove=True)
    assert (kinds(removed), removed.left) == (kinds(found), 0)
    assert examine(spoilt).findings == ()
    now = without_lock(files(spoilt))
    assert now.pop("chunks/notes.txt") == now.pop("mine/part-0.arrow") == b"mine"
    assert now == without_lock(before)


def put_bytes_anywhere(path, data):
    path.parent.mkdir(parents=True, exist_ok=True) if hasattr(path, "__fspath__") else None
    path.write_bytes(data)


@pytest.mark.parametrize("damage", ["gone", "cut", "half a manifest", "another's manifest"])
def test_broken_commits_are_taken_back_with_what_they_name(
    spoilt, damage, make_config, tables_of, finished, same_tables
):
    manifest = next(m for m in spoilt.chunks.manifests() if m.name.startswith("capture"))
    path = spoilt.root / "chunks" / f"{manifest.name}.json"
    victim = spoilt.root / manifest.extra["folder"] / manifest.files[3].path
    if damage == "gone":
        victim.unlink()
    elif damage == "cut":
        victim.write_bytes(read_bytes(victim)[:-1])
    elif damage == "half a manifest":
        path.write_bytes(read_bytes(path)[:100])
    else:
        path.write_bytes(json.dumps({**json.loads(read_bytes(path)), "name": "other"}).encode())
    found = examine(spoilt)
    assert [f.path for f in found.findings if f.kind == "commit"] == [f"chunks/{manifest.name}.json"]
    n_files = len(manifest.files) - (damage == "gone")
    assert sum(f.kind == "orphan" for f in found.findings) == n_files
    assert [f.path for f in found.findings if f.kind == "store"] == [f"{manifest.extra['folder']}/manifest.json"]
    assert examine(spoilt, remove=True).left == 0
    assert examine(spoilt, checksums=True).findings == ()
    assert set(manifest.parts).isdisjoint(spoilt.committed())


def test_changed_bytes_are_found_where_checksums_are_asked_for(spoilt):
    manifest = next(m for m in spoilt.chunks.manifests() if m.name.startswith("capture"))
    table = next(m for m in spoilt.chunks.manifests() if m.table is not None)
    victims = [
        spoilt.root / manifest.extra["folder"] / manifest.files[0].path,
        spoilt.root / "chunks" / table.table.path,
    ]
    for victim in victims:
        content = bytearray(read_bytes(victim))
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    assert examine(spoilt).findings == ()
    found = examine(spoilt, checksums=True)
    assert sorted(f.path for f in found.findings if f.kind == "commit") == sorted(
        f"chunks/{m.name}.json" for m in (manifest, table)
    )
    assert all("expected sha256" in f.why for f in found.findings if f.kind == "commit")


def test_torn_lines_are_taken_out_of_the_log(spoilt):
    log = spoilt.events if spoilt.events.name == "events.jsonl" else spoilt.events / "000001-aaaaaaaa.jsonl"
    whole = read_bytes(log)
    lines = whole.splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:2]) + b'{"event": "call_st\n' + b"".join(lines[2:]) + b'{"ev\xce')
    found = examine(spoilt)
    assert kinds(found) == [("events", spoilt.events.name)]
    assert found.findings[0].why == "2 incomplete lines, which readers skip"
    assert examine(spoilt, remove=True).left == 0
    assert read_bytes(log) == whole


def test_a_removed_folder_runs_again_to_the_same_tables(finished, tmp_path, make_config, tables_of, same_tables):
    shutil.copytree(finished.folder.root, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    victim = sorted(folder.activations("m", "first").glob("layer=003/*.arrow"))[1]
    victim.write_bytes(victim.read_bytes()[:-1])
    (tmp_path / "run/chunks/lost.parquet").write_bytes(b"x")
    assert examine(folder, remove=True).left == 0
    done = drive(make_config(tmp_path / "run"))
    assert not done.failed
    same_tables(tables_of(done), tables_of(finished), exactly=True)
    assert examine(folder, checksums=True).findings == ()


def test_temporaries_of_dead_writers_only(finished, tmp_path):
    shutil.copytree(finished.folder.root, tmp_path / "run")
    folder, host = RunFolder(tmp_path / "run"), socket.gethostname()
    names = {
        "dead": f"chunks/.tmp-{host}-{DEAD}-0123456789abcdef.parquet",
        "alive": f"chunks/.tmp-{host}-{os.getpid()}-0123456789abcdef.parquet",
        "elsewhere": "activations/m/.tmp-elsewhere-7-0123456789abcdef.arrow",
        "long ago": "results/.tmp-elsewhere-8-0123456789abcdef.parquet",
    }
    for name in names.values():
        put_bytes_anywhere(tmp_path / "run" / name, b"half")
    old = time.time() - 7200
    os.utime(tmp_path / "run" / names["long ago"], (old, old))
    assert kinds(examine(folder, remove=True)) == [("temporary", names["dead"]), ("temporary", names["long ago"])]
    assert (tmp_path / "run" / names["alive"]).exists()
    assert (tmp_path / "run" / names["elsewhere"]).exists()


def test_probes_of_dead_writers_in_a_store(tmp_path):
    root = location(f"memory://doctor/{tmp_path.name}")
    put_bytes(root / "events/000001-aaaaaaaa.jsonl", b"")
    put_bytes(root / ".raysweep-probe-0123456789abcdef", b"x")
    put_bytes(root / ".lock/000003", json.dumps({"pid": DEAD, "host": "h", "since": "then", "machine": "m"}).encode())
    folder = RunFolder(root)
    with pytest.raises(FolderInUseError, match=r"is in use by another raysweep \(process \d+ on h, since then\)"):
        examine(folder, remove=True)
    from raysweep.store.object_lock import machine

    put_bytes(
        root / ".lock/000003", json.dumps({"pid": DEAD, "host": "h", "since": "then", "machine": machine()}).encode()
    )
    assert kinds(examine(folder)) == [("lock", ".lock"), ("temporary", ".raysweep-probe-0123456789abcdef")]
    assert examine(folder, remove=True).left == 0
    assert examine(folder).findings == ()
    remove_below(root)


def test_a_folder_that_a_run_is_in_is_left_alone(spoilt):
    put_bytes_anywhere(spoilt.root / "chunks/in-flight.parquet", b"x")
    before = files(spoilt)
    with RunFolder(spoilt.root).locked():
        for remove in (False, True):
            with pytest.raises(FolderInUseError, match=f"is in use by another raysweep .process {os.getpid()} on"):
                examine(spoilt, remove=remove)
    assert without_lock(files(spoilt)) == without_lock(before)


@pytest.mark.parametrize("what", ["chunks/lost.parquet", ".tmp-h-1-0123456789abcdef"])
def test_what_is_no_run_folder_is_never_touched(tmp_path, what):
    put_bytes_anywhere(tmp_path / what, b"x")
    put_bytes_anywhere(tmp_path / "events.jsonl", b'{"mine": 1}\n')
    with pytest.raises(InputError, match="is not a run folder; nothing was changed"):
        examine(RunFolder(tmp_path), remove=True)
    assert (tmp_path / what).read_bytes() == b"x"


def test_a_link_out_of_the_folder_is_not_followed(finished, tmp_path):
    shutil.copytree(finished.folder.root, tmp_path / "run")
    (tmp_path / "mine.parquet").write_bytes(b"mine")
    (tmp_path / "run/chunks/mine.parquet").symlink_to(tmp_path / "mine.parquet")
    assert examine(RunFolder(tmp_path / "run")).findings == ()
    with pytest.raises(InputError, match=r"chunks/mine\.parquet' is a symbolic link to "):
        examine(RunFolder(tmp_path / "run"), remove=True)
    assert (tmp_path / "mine.parquet").read_bytes() == b"mine"


def test_the_command_tells_what_is_left_by_its_exit_code(finished, tmp_path, raysweep, s3):
    shutil.copytree(finished.folder.root, tmp_path / "run")
    clean = raysweep("doctor", tmp_path / "run", "--checksums")
    assert (clean.code, clean.out) == (0, f"'{tmp_path / 'run'}': nothing found\n")
    (tmp_path / "run/chunks/lost.parquet").write_bytes(b"x")
    found = raysweep("doctor", tmp_path / "run", "--json")
    told = json.loads(found.out)
    assert (found.code, told["left"]) == (1, 1)
    assert told["findings"] == [
        {
            "kind": "orphan",
            "path": "chunks/lost.parquet",
            "bytes": 1,
            "why": "no complete commit names it",
            "removed": False,
        }
    ]
    removed = raysweep("doctor", tmp_path / "run", "--remove")
    assert removed.code == 0
    assert removed.out.splitlines() == [
        "orphan     chunks/lost.parquet (1 bytes): no complete commit names it; removed",
        f"'{tmp_path / 'run'}': 1 found, 1 bytes; all removed",
    ]
    refused = raysweep("doctor", s3.url("nothing-here"), "--option", f"endpoint_url={s3.endpoint}")
    assert (refused.code, refused.err) == (
        2,
        "error: 's3://runs/nothing-here' is not a run folder; nothing was changed\n",
    )


def test_no_secret_is_needed_to_look(s3):
    assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in repr(location(s3.url("x"), s3.options).storage_options)
    with pytest.raises(InputError, match="may be a secret"):
        api.examine(s3.url("x"), {"secret": "hush"})
