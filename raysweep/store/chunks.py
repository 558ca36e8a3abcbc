"""The chunks a run commits: one Parquet file of rows, then one small JSON manifest, which alone makes the chunk exist.

A table's file name is unique to its writer and a manifest is created exclusively, so a writer that was paused, lost its lock and
wakes up cannot change what another one has committed. Which chunks there are, and what their rows mean, is the caller's to know.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysweep.errors import StoreError
from raysweep.store.artifacts import (
    FileEntry,
    check_file,
    check_files,
    check_safe_name,
    json_bytes,
    publish_all_new,
    publish_files,
    read_checked,
)
from raysweep.store.places import for_each, listing, read_bytes, read_many

if TYPE_CHECKING:
    from upath import UPath

    from raysweep.store.places import Location

_REMEMBERED = 1024  # manifests of expected chunks that stay in memory


@dataclass(frozen=True)
class Manifest:
    """A committed chunk: which parts it holds, and what its table and its other files must look like.

    `parts` maps a part's key to a small JSON value about it. `table` is the Parquet file, relative to the chunks' folder; None if
    the chunk has none. `files` lists what was written in addition to the table, with paths relative to a folder that the caller
    knows; they are recorded here, and checked by whoever reads them (`check_file`).
    """

    name: str
    parts: Mapping[str, Any]
    table: FileEntry | None
    files: tuple[FileEntry, ...]
    extra: Mapping[str, Any]


@dataclass(frozen=True)
class NewChunk:
    """A chunk to be committed; see Manifest. `files` must have been published before."""

    name: str
    table: pa.Table | None
    parts: Mapping[str, Any]
    files: tuple[FileEntry, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raise ValueError unless the chunk can be committed."""
        check_safe_name(self.name, "chunk name")
        try:
            json.dumps(self._description, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"chunk {self.name!r}: parts and extra must be JSON ({error})") from error
        if self.table is not None:
            _check_parts(self.name, self.table, self.parts)

    def described(self, writer: str, table: FileEntry | None) -> dict[str, Any]:
        """What its manifest says, with its table as it was written."""
        return {
            "name": self.name,
            "writer": writer,
            "table": table.path if table else None,
            "rows": table.rows if table else 0,
            "bytes": table.bytes if table else 0,
            "sha256": table.sha256 if table else None,
            **self._description,
        }

    @property
    def _description(self) -> dict[str, Any]:
        return {"files": [asdict(entry) for entry in self.files], "extra": dict(self.extra), "parts": dict(self.parts)}


class AlreadyCommittedError(StoreError):
    """Another writer has committed a chunk of this name."""


class ChunkStore:
    """The commits in one folder: `<name>.<token>.parquet` and then `<name>.json`, which alone makes the chunk exist.

    The column `part` of a chunk's table says which of its parts a row belongs to. Several processes may commit to one
    folder; of those that commit the same name, the first succeeds.
    """

    def __init__(self, folder: Location) -> None:
        self.folder = folder
        self._token = secrets.token_hex(4)  # of this writer
        # Manifests that were read, by file name, each with the version of the file
        self._known: dict[str, tuple[tuple[Any, ...], Manifest]] = {}
        self._expected: tuple[str, ...] = ()  # chunks that `find` looks in first
        self._read: dict[str, Manifest] = {}  # those that it has read lately, by chunk name

    def commit(
        self,
        name: str,
        table: pa.Table | None,
        *,
        parts: Mapping[str, Any],
        files: Sequence[FileEntry] = (),
        extra: Mapping[str, Any] = {},
        check: Callable[[], None] = lambda: None,
    ) -> Manifest:
        """Commit one chunk (see `commit_all`). Raises AlreadyCommittedError when its name is taken."""
        (manifest,) = self.commit_all([NewChunk(name, table, parts, tuple(files), extra)], check=check)
        if manifest is None:
            raise AlreadyCommittedError(
                f"{self._manifest_path(name)}: this chunk is already committed; commit under another name, or delete "
                "that file first"
            )
        return manifest

    def commit_all(
        self, chunks: Sequence[NewChunk], *, check: Callable[[], None] = lambda: None
    ) -> list[Manifest | None]:
        """Commit chunks together, so that the disk is waited for once; None for one whose name is taken.

        All tables are published, then `check` is called, then the manifests are created. Whatever is raised or killed
        meanwhile, each chunk is committed or not. Raises ValueError, with nothing written, when a name is unsafe or given
        twice, `parts` or `extra` is not JSON, or a table has rows of no part named in `parts`.
        """
        if len({chunk.name for chunk in chunks}) != len(chunks):
            raise ValueError("a chunk is to be committed twice")
        for chunk in chunks:
            chunk.check()
        tables = {
            f"{chunk.name}.{self._token}.parquet": (partial(pq.write_table, chunk.table), chunk.table.num_rows)
            for chunk in chunks
            if chunk.table is not None
        }
        entries = {entry.path: entry for entry in publish_files(self.folder, tables)} if tables else {}
        written = [entries.get(f"{chunk.name}.{self._token}.parquet") for chunk in chunks]
        contents = {
            f"{chunk.name}.json": json_bytes(chunk.described(self._token, entry))
            for chunk, entry in zip(chunks, written, strict=True)
        }
        check()
        created = publish_all_new(self.folder, contents)
        for entry, made in zip(written, created, strict=True):
            if not made and entry is not None:
                (self.folder / entry.path).unlink(missing_ok=True)
        return [
            self.parse(self.folder / name, content) if made else None
            for (name, content), made in zip(contents.items(), created, strict=True)
        ]

    def load(self, name: str) -> Manifest:
        """Read one manifest. Raises StoreError if it is damaged or its table is not as it says, FileNotFoundError if there is none."""
        return self._load(self._manifest_path(name))

    def manifests(self) -> list[Manifest]:
        """Every committed chunk, by name. A manifest that this object has read before is not read again.

        Raises StoreError, naming the file, on a manifest that cannot be read and on a table that is missing or has
        another size than its manifest says.
        """
        folder = self.folder
        found, sizes = _listed(folder) if isinstance(folder, Path) else _listed_objects(folder)
        self._known = {name: known for name, known in self._known.items() if found.get(name) == known[0]}
        new = {name: sizes(name) or 0 for name in found if name not in self._known}
        for name, content in self._contents(new):
            self._known[name] = found[name], self.parse(folder / name, content)
        manifests = [self._known[name][1] for name in sorted(found.keys() & self._known.keys())]
        for manifest in manifests:
            if manifest.table is not None:
                check_files(folder, [manifest.table], remedy=self._remedy(manifest.name), sizes=sizes)
        return manifests

    def _contents(self, sizes: Mapping[str, int]) -> Iterable[tuple[str, bytes]]:
        """The contents of manifests of these sizes, by file name."""
        if isinstance(self.folder, Path):
            return ((name, read_bytes(self.folder / name)) for name in sorted(sizes))
        return read_many(self.folder, sizes).items()

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

    def expect(self, names: Iterable[str]) -> None:
        """Have `find` look in these chunks before it lists all of them; whoever committed the parts knows the names."""
        self._expected = tuple(sorted(names))

    def find(self, keys: Iterable[str]) -> dict[str, Manifest]:
        """The chunk that holds each of `keys`; one that is not committed is missing from the result.

        Reads only the manifests of the expected chunks if these hold all keys, and each of them once. Their tables are
        checked when they are read.
        """
        wanted = dict.fromkeys(keys)
        found: dict[str, Manifest] = {}
        for manifest in self._expected_chunks() if wanted else ():
            found |= dict.fromkeys(wanted.keys() & manifest.parts.keys() - found.keys(), manifest)
        if len(found) < len(wanted):
            done = self.done()
            found = {key: done[key] for key in wanted if key in done}
        return found

    def _expected_chunks(self) -> list[Manifest]:
        """The expected chunks that are there, by name."""

        def read(name: str) -> Manifest | None:
            path = self._manifest_path(name)
            with contextlib.suppress(FileNotFoundError):
                return self.parse(path, read_bytes(path))
            return None

        new = [name for name in self._expected if name not in self._read]
        read_now = dict(zip(new, for_each(self.folder, read, new), strict=True))
        known = {**self._read, **{name: manifest for name, manifest in read_now.items() if manifest}}
        self._read = dict(list(known.items())[-_REMEMBERED:])
        return [known[name] for name in self._expected if name in known]

    def read_parts(self, keys: Iterable[str], done: Mapping[str, Manifest] | None = None) -> pa.Table:
        """The rows of the parts `keys`, in the order of `keys` and, inside a part, of its chunk's table.

        `done` has the chunk of each key, for a caller that has looked before; by default they are found (see `find`). Each
        Parquet file is read once. Columns that only some chunks have are null in the others; parts of chunks
        without a table have no rows, and if there is no table at all the result has no columns. Raises StoreError when
        a part is not committed, a file is damaged, or two chunks disagree about a column; ValueError when a key is
        given twice.
        """
        wanted = list(keys)
        if len(set(wanted)) != len(wanted):
            raise ValueError("a part is asked for twice")
        done = self.find(wanted) if done is None else done
        missing = [key for key in wanted if key not in done]
        if missing:
            raise StoreError(
                f"{self.folder}: {len(missing)} of {len(wanted)} parts are not committed, the first is "
                f"{missing[0]!r}; run again to compute them"
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

    def forget(self, name: str) -> None:
        """Take a commit back: its manifest is removed, so its parts count as not done and its name is free."""
        self._read.pop(name, None)
        self._known.pop(f"{name}.json", None)
        self._manifest_path(name).unlink(missing_ok=True)

    def forget_all(self) -> None:
        """Take every commit back, whole or broken."""
        self._read.clear()
        self._known.clear()
        found, _ = _listed(self.folder) if isinstance(self.folder, Path) else _listed_objects(self.folder)
        for_each(self.folder, lambda name: (self.folder / name).unlink(missing_ok=True), found)

    def _manifest_path(self, name: str) -> Location:
        return self.folder / f"{name}.json"

    def _remedy(self, name: str) -> str:
        return f"delete {self._manifest_path(name)} to recompute the chunk"

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
            raise StoreError(f"{path}: not a complete manifest ({type(error).__name__}: {error}); {remedy}") from error
        if manifest.name != path.stem:
            raise StoreError(f"{path}: expected the manifest of chunk '{path.stem}', found '{manifest.name}'; {remedy}")
        return manifest


_Listed = tuple[dict[str, tuple[Any, ...]], Callable[[str], int | None]]


def _listed(folder: Path) -> _Listed:
    """The version of each manifest in a folder, and what gives the size of each file. glob would hide an unreadable folder."""
    try:
        with os.scandir(folder) as entries:
            found = {entry.name: entry for entry in entries}
    except FileNotFoundError:
        found = {}

    def size(name: str) -> int | None:
        return found[name].stat().st_size if name in found else None

    versions = {}
    for name, entry in found.items():
        if name.endswith(".json") and not name.startswith("."):
            with contextlib.suppress(FileNotFoundError):  # it was taken back just now
                stat = entry.stat()
                versions[name] = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
    return versions, size


def _listed_objects(folder: UPath) -> _Listed:
    """The same in an object store, from one listing."""
    found = {name: info for name, info in listing(folder).items() if "/" not in name}
    versions = {name: _version(info) for name, info in found.items() if name.endswith(".json")}
    return versions, {name: int(info["size"]) for name, info in found.items()}.get


def _version(info: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells an object from a later one of its name, as far as the store says."""
    said = ("size", "ETag", "etag", "generation", "md5Hash", "LastModified", "last_modified", "updated", "created")
    return tuple(str(info.get(key)) for key in said)


def _parse_manifest(data: dict[str, Any]) -> Manifest:
    table = None
    if data["sha256"] is not None:  # the same four facts as any file's, under the same rules
        file = data.get("table", f"{data['name']}.parquet")  # older manifests name no file: it has the chunk's own name
        if not file or PurePosixPath(file).name != file or file.startswith("."):
            raise ValueError(f"the table {file!r} is not a file name")
        table = FileEntry.from_json({"path": file, **{key: data[key] for key in ("rows", "bytes", "sha256")}})
    return Manifest(
        name=data["name"],
        parts=dict(data["parts"].items()),
        table=table,
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
