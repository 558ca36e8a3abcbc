"""Publishing files whole, and the chunks a run commits.

A file is written under a temporary name in its own folder, flushed to the disk, and renamed: whatever the moment of a
kill, readers see the old content, the new content or no file, never a part of one. To an object store it is sent whole, under
its own name, which comes to the same there. A chunk commit is one Parquet file of rows followed by one small JSON manifest;
only the manifest makes the chunk exist. Which chunks there are, and what their rows mean, is the caller's to know. POSIX file
systems (local disks and NFS) and the stores that places.py takes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import socket
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysweep.errors import StoreError
from raysweep.store.places import BLOCK_BYTES, listing, put, read_bytes, read_many, read_range, sizes_below

if TYPE_CHECKING:
    from upath import UPath

    from raysweep.store.places import Location

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=-]{0,199}")
_TEMPORARY = re.compile(r"\.tmp-(?P<host>.+)-(?P<pid>\d+)-[0-9a-f]{16}(?:\..*)?")


def check_safe_name(name: str, what: str) -> None:
    """Raise ValueError unless `name` can be part of a file name on any file system and hides nothing."""
    if not _SAFE_NAME.fullmatch(name):
        raise ValueError(
            f"{what} {name!r} is not a safe file name: 1 to 200 letters, digits and . _ = -, a letter or digit first"
        )


# --- publishing ---------------------------------------------------------------------------------------------------


def publish(path: Location, write: Callable[[Path], object]) -> None:
    """Make `path` appear whole, replacing what was there in one step.

    `write` is given a temporary name in the same folder (for an object store, in this machine's folder for such files), with
    the suffix of `path`, and must create that file. Missing parent folders are made. When anything is raised
    (KeyboardInterrupt too) the temporary file is removed, `path` is as it was, and the exception goes on.
    """
    if not isinstance(path, Path):
        with tempfile.TemporaryDirectory(prefix="raysweep-") as folder:
            local = Path(folder) / f"file{path.suffix}"
            write(local)
            put(local, path)
        return
    _make_folder(path.parent)
    temporary = path.parent / f".tmp-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(8)}{path.suffix}"
    try:
        write(temporary)
        _flush(temporary)
        os.replace(temporary, path)  # noqa: PTH105 - the name says that an existing file is replaced
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush(path.parent)  # the rename itself must survive a power cut before anything refers to the file


def publish_bytes(path: Location, data: bytes) -> None:
    """Publish `data` as the content of `path`; see `publish`."""
    publish(path, lambda temporary: temporary.write_bytes(data))


def publish_json(path: Location, data: Any) -> None:
    """Publish `data` as UTF-8 JSON. Raises TypeError or ValueError, before writing, on what JSON has no word for (NaN)."""
    publish_bytes(path, _json_bytes(data))


def sweep_temporaries(folder: Location) -> list[Path]:
    """Remove the temporary files that killed writers left in `folder` and below, and say which; an object store has none.

    Only those of processes of this host that are no longer alive: a temporary file of another host, or of a process
    number in use, may still be written to. Readers never look at temporary files, so sweeping only frees space.
    """
    if not isinstance(folder, Path):
        return []
    removed = [path for path in sorted(folder.rglob(".tmp-*")) if is_left_over(path)]
    for path in removed:
        path.unlink(missing_ok=True)
    return removed


def is_left_over(path: Path) -> bool:
    """Whether a file is the temporary one of a process of this host that is no longer alive."""
    match = _TEMPORARY.fullmatch(path.name)
    return bool(match and match["host"] == socket.gethostname() and not is_alive(int(match["pid"])))


def _json_bytes(data: Any) -> bytes:
    """Half a surrogate pair, which UTF-8 has no bytes for, is written as JSON's own escape."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False, indent=1).encode("utf-8", "backslashreplace") + b"\n"


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _flush(folder.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_alive(pid: int) -> bool:
    """Whether this host has a process of this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # alive, and someone else's
        return True
    return True


# --- describing and checking files --------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileEntry:
    """What a manifest says of a file: its POSIX path relative to a folder, its rows, its bytes and its checksum."""

    path: str
    rows: int
    bytes: int
    sha256: str

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FileEntry:
        """The entry that `dataclasses.asdict` made `data` of. Raises KeyError or TypeError on anything else."""
        entry = cls(data["path"], data["rows"], data["bytes"], data["sha256"])
        if [type(value) for value in (entry.path, entry.rows, entry.bytes, entry.sha256)] != [str, int, int, str]:
            raise TypeError(f"{dict(data)} does not describe a file")
        return entry


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def publish_file(root: Location, path: str, write: Callable[[Path], object], *, rows: int) -> FileEntry:
    """Publish `root / path` (see `publish`) and return its entry, measured before the file became visible."""
    measured: list[FileEntry] = []

    def write_and_measure(temporary: Path) -> None:
        write(temporary)
        measured.append(FileEntry(path, rows, temporary.stat().st_size, sha256_file(temporary)))

    publish(root / path, write_and_measure)
    return measured[0]


def check_file(root: Location, entry: FileEntry, *, remedy: str, checksum: bool = False) -> None:
    """Raise StoreError, which ends with `remedy`, unless `root / entry.path` has the size its entry says.

    With `checksum` its content is read and compared as well.
    """
    path = root / entry.path
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        size = None
    _compare(path, entry, size, remedy)
    if checksum:
        digest = sha256_file(path) if isinstance(path, Path) else _sha256_object(path, entry.bytes)
        _compare_digests(path, entry, digest, remedy)


def check_files(
    root: Location, entries: Iterable[FileEntry], *, remedy: str, sizes: Callable[[str], int | None] | None = None
) -> None:
    """`check_file` of sizes for many files, which costs an object store one listing; `sizes` is one made before."""
    sizes = sizes or sizes_below(root)
    for entry in entries:
        _compare(root / entry.path, entry, sizes(entry.path), remedy)


def read_checked(root: Location, entry: FileEntry, *, remedy: str) -> bytes | bytearray:
    """The content of `root / entry.path`, once its size and checksum are those of its entry; else StoreError is raised."""
    path = root / entry.path
    try:
        content = path.read_bytes() if isinstance(path, Path) else read_range(path, 0, entry.bytes + 1)
    except FileNotFoundError:
        _compare(path, entry, None, remedy)
        raise
    if len(content) != entry.bytes:
        check_file(root, entry, remedy=remedy)  # it knows the size of all of it
    _compare_digests(path, entry, hashlib.sha256(content).hexdigest(), remedy)
    return content


def check_content(root: Location, entry: FileEntry, content: Any, *, remedy: str) -> None:
    """Raise StoreError unless `content`, of the file that `entry` tells of, has its checksum."""
    _compare_digests(root / entry.path, entry, hashlib.sha256(content).hexdigest(), remedy)


def _sha256_object(path: UPath, size: int) -> str:
    digest, start = hashlib.sha256(), 0
    while start < size and (block := read_range(path, start, min(size, start + BLOCK_BYTES))):
        digest.update(block)
        start += len(block)
    return digest.hexdigest()


def _compare(path: Location, entry: FileEntry, size: int | None, remedy: str) -> None:
    if size is None:
        raise StoreError(f"{path}: expected {entry.bytes} bytes, found no file; {remedy}") from None
    if size != entry.bytes:
        raise StoreError(f"{path}: expected {entry.bytes} bytes, found {size}; {remedy}")


def _compare_digests(path: Location, entry: FileEntry, digest: str, remedy: str) -> None:
    if digest != entry.sha256:
        raise StoreError(f"{path}: expected sha256 {entry.sha256}, found {digest}; {remedy}")


# --- chunks -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Manifest:
    """A committed chunk: which parts it holds, and what its table and its other files must look like.

    `parts` maps a part's key to a small JSON value about it. `rows`, `bytes` and `sha256` are those of the Parquet
    file; `sha256` is None when the chunk has no table. `files` lists what was written beside the table, with paths
    relative to a folder that the caller knows; they are recorded here, and checked by whoever reads them (`check_file`).
    """

    name: str
    parts: Mapping[str, Any]
    rows: int
    bytes: int
    sha256: str | None
    files: tuple[FileEntry, ...]
    extra: Mapping[str, Any]

    @property
    def table(self) -> FileEntry | None:
        """The entry of the Parquet file, relative to the chunks' folder."""
        return None if self.sha256 is None else FileEntry(f"{self.name}.parquet", self.rows, self.bytes, self.sha256)


class ChunkStore:
    """The commits in one folder: `<name>.parquet` and then `<name>.json`, which alone makes the chunk exist.

    The column `part` of a chunk's table says which of its parts a row belongs to. Several processes may commit to one
    folder, each under names of its own.
    """

    def __init__(self, folder: Location) -> None:
        self.folder = folder
        self._known: dict[
            str, tuple[tuple[Any, ...], Manifest]
        ] = {}  # of an object store: what was read, and of which version

    def commit(
        self,
        name: str,
        table: pa.Table | None,
        *,
        parts: Mapping[str, Any],
        files: Sequence[FileEntry] = (),
        extra: Mapping[str, Any] = {},
    ) -> Manifest:
        """Commit a chunk; `files` must have been published before.

        Raises ValueError, with nothing written, when the name is unsafe, `parts` or `extra` is not JSON, or the table
        has rows of no part named in `parts`; StoreError when the name is taken.
        """
        check_safe_name(name, "chunk name")
        path = self._manifest_path(name)
        if path.exists():
            raise StoreError(f"{path}: this chunk is committed already; commit under another name, or delete it first")
        description = {"files": [asdict(entry) for entry in files], "extra": dict(extra), "parts": dict(parts)}
        try:
            _json_bytes(description)
        except (TypeError, ValueError) as error:
            raise ValueError(f"chunk {name!r}: parts and extra must be JSON ({error})") from error

        written = None
        if table is not None:
            _check_parts(name, table, parts)
            written = publish_file(
                self.folder, f"{name}.parquet", lambda temporary: pq.write_table(table, temporary), rows=table.num_rows
            )
        described = {
            "name": name,
            "rows": written.rows if written else 0,
            "bytes": written.bytes if written else 0,
            "sha256": written.sha256 if written else None,
            **description,
        }
        publish_json(path, described)
        return self._load(path) if isinstance(path, Path) else self.parse(path, _json_bytes(described))

    def manifests(self) -> list[Manifest]:
        """Every committed chunk, by name.

        Raises StoreError, naming the file, on a manifest that cannot be read and on a table that is missing or has
        another size than its manifest says.
        """
        if isinstance(self.folder, Path):
            return [self._load(path) for path in sorted(self.folder.glob("*.json")) if not path.name.startswith(".")]
        return self._listed(self.folder)

    def _listed(self, folder: UPath) -> list[Manifest]:
        """The manifests in an object store: one listing, and those that are not known yet are read."""
        found = {name: info for name, info in listing(folder).items() if "/" not in name}
        versions = {name: _version(info) for name, info in found.items() if name.endswith(".json")}
        new = {
            name: found[name]["size"]
            for name, version in versions.items()
            if self._known.get(name, ((),))[0] != version
        }
        for name, content in read_many(folder, new).items():
            self._known[name] = versions[name], self.parse(folder / name, content)
        there = sorted(versions.keys() & self._known.keys())
        manifests = [self._known[name][1] for name in there]
        for manifest in manifests:
            if (table := manifest.table) is not None:
                size = int(found[table.path]["size"]) if table.path in found else None
                _compare(folder / table.path, table, size, self._remedy(manifest.name))
        return manifests

    def read(self, manifest: Manifest) -> pa.Table:
        """The rows of a chunk. Raises StoreError when size or checksum differ, ValueError when it has no table."""
        if manifest.table is None:
            raise ValueError(f"chunk {manifest.name!r} has no table")
        content = read_checked(self.folder, manifest.table, remedy=self._remedy(manifest.name))
        with pq.ParquetFile(pa.BufferReader(content)) as file:
            return file.read()

    def done(self) -> dict[str, Manifest]:
        """The chunk that holds each part. Of chunks that hold the same part, the first by name."""
        done: dict[str, Manifest] = {}
        for manifest in self.manifests():
            for key in manifest.parts:
                done.setdefault(key, manifest)
        return done

    def read_parts(self, keys: Iterable[str]) -> pa.Table:
        """The rows of the parts `keys`, in the order of `keys` and, inside a part, of its chunk's table.

        Each Parquet file is read once. Columns that only some chunks have are null in the others; parts of chunks
        without a table have no rows, and if there is no table at all the result has no columns. Raises StoreError when
        a part is not committed, a file is damaged, or two chunks disagree about a column; ValueError when a key is
        given twice.
        """
        wanted = list(keys)
        if len(set(wanted)) != len(wanted):
            raise ValueError("a part is asked for twice")
        done = self.done()
        missing = [key for key in wanted if key not in done]
        if missing:
            raise StoreError(
                f"{self.folder}: {len(missing)} of {len(wanted)} parts are not committed, the first is "
                f"{missing[0]!r}; run again to have them computed"
            )

        chunks = {done[key].name: done[key] for key in wanted}
        keys_of = defaultdict(list)
        for key in wanted:
            keys_of[done[key].name].append(key)
        tables, schema = [], pa.schema([])
        for name, manifest in chunks.items():
            if manifest.table is None:
                continue
            table = self.read(manifest)
            tables.append(table.filter(pc.is_in(table["part"], value_set=_like(keys_of[name], table["part"]))))
            try:
                schema = pa.unify_schemas([schema, table.schema])
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise StoreError(
                    f"{self.folder / manifest.table.path}: its columns differ from those of the other chunks ({error}); "
                    f"{self._remedy(name)}"
                ) from error
        if not tables:
            return pa.table({})
        rows = pa.concat_tables(tables, promote_options="default")
        rank = pc.index_in(rows["part"], value_set=_like(wanted, rows["part"])).to_numpy()
        return rows.take(np.argsort(rank, kind="stable"))

    def forget(self, manifest: Manifest) -> None:
        """Take a commit back: its manifest is removed, so its parts count as not done and its name is free."""
        self._manifest_path(manifest.name).unlink(missing_ok=True)

    def sweep_temporaries(self) -> list[Path]:
        """Remove what killed writers left here; see the function of this name."""
        return sweep_temporaries(self.folder)

    def _manifest_path(self, name: str) -> Location:
        return self.folder / f"{name}.json"

    def _remedy(self, name: str) -> str:
        return f"delete {self._manifest_path(name)} to have the chunk recomputed"

    def _load(self, path: Location) -> Manifest:
        manifest = self.parse(path, read_bytes(path))
        if manifest.table is not None:
            check_file(self.folder, manifest.table, remedy=self._remedy(path.stem))
        return manifest

    def parse(self, path: Location, content: bytes) -> Manifest:
        """The manifest that `content`, read at `path`, is. Raises StoreError where it is none, or another chunk's."""
        remedy = self._remedy(path.stem)
        try:
            manifest = _parse_manifest(json.loads(content))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"{path}: not a whole manifest ({type(error).__name__}: {error}); {remedy}") from error
        if manifest.name != path.stem:
            raise StoreError(f"{path}: expected the manifest of chunk '{path.stem}', found '{manifest.name}'; {remedy}")
        return manifest


def _version(info: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells an object from a later one of its name, as far as the store says."""
    said = ("size", "ETag", "etag", "generation", "md5Hash", "LastModified", "last_modified", "updated", "created")
    return tuple(str(info.get(key)) for key in said)


def _parse_manifest(data: dict[str, Any]) -> Manifest:
    if data["sha256"] is not None:  # the same four facts as any file's, under the same rules
        FileEntry.from_json({"path": data["name"], **{key: data[key] for key in ("rows", "bytes", "sha256")}})
    return Manifest(
        name=data["name"],
        parts=dict(data["parts"].items()),
        rows=data["rows"],
        bytes=data["bytes"],
        sha256=data["sha256"],
        files=tuple(FileEntry.from_json(entry) for entry in data["files"]),
        extra=dict(data["extra"].items()),
    )


def _check_parts(name: str, table: pa.Table, parts: Mapping[str, Any]) -> None:
    kind = table.schema.field("part").type if "part" in table.column_names else None
    if kind is None or not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ValueError(f"chunk {name!r}: the table needs a column 'part' of strings, found {kind}")
    strangers = [key for key in table["part"].unique().to_pylist() if key not in parts]
    if strangers:
        raise ValueError(f"chunk {name!r}: the table has rows of part {strangers[0]!r}, which is not among its parts")


def _like(keys: Sequence[str], column: pa.ChunkedArray) -> pa.Array:
    return pa.array(keys, type=column.type)
