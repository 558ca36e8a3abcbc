"""The activation store: hidden states of one model on one data set, as Arrow files that are read without a copy.

    <folder>/layer=000/part-<part>.arrow     one file a layer and part; the rows come in the same order in every layer
    <folder>/manifest.json                   written last; it alone says which files belong to the store

Columns: example_id int64, token_pos int32, token_id int64, vector fixed_shape_tensor[width]. float16 and float32 vectors
are Arrow's own types. Arrow has no bfloat16: its bits are stored as uint16, and the field's metadata says
`torch_dtype=bfloat16` (it names the dtype for the other two as well). Nothing is widened, on the way in or out. The files
are Arrow IPC files, uncompressed, so that any Arrow reader can map them into memory.

What the vectors are (which position, which models) is the caller's to know and to record in the manifest.

L: layers, N: rows, D: width.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch.utils.dlpack import from_dlpack

from raysweep.errors import StoreError, nearest
from raysweep.store.artifacts import (
    FileEntry,
    check_content,
    check_file,
    check_files,
    check_safe_name,
    publish_file,
    publish_json,
    read_checked,
)
from raysweep.store.places import for_each, read_bytes
from raysweep.store.stored_layer import Run, StoredLayer

if TYPE_CHECKING:
    from raysweep.store.places import Location

MANIFEST = "manifest.json"
BATCH_BYTES = 64 * 2**20  # of one record batch: what a reader that streams the file must hold

_TORCH_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_ARROW_TYPES = {"bfloat16": pa.uint16(), "float16": pa.float16(), "float32": pa.float32()}


def write_part(
    folder: Location,
    part: str,
    states_LND: torch.Tensor,
    example_ids: npt.NDArray[np.integer[Any]],
    token_pos: npt.NDArray[np.integer[Any]],
    token_ids: npt.NDArray[np.integer[Any]],
) -> list[FileEntry]:
    """Write the rows of one part, a file a layer, each published whole; no reader sees them before `publish_manifest`.

    Args:
        folder: of the store.
        part: a safe file name, unique in the store: a part that a manifest names must never be written again.
        states_LND: bfloat16, float16 or float32, on any device; one layer at a time is brought to the CPU, and for an object
            store a few.
        example_ids: [N], the example of each row.
        token_pos: [N], the position in its prompt of the token whose state the row is.
        token_ids: [N], that token.

    Returns:
        The L files, with paths relative to `folder`. Raises ValueError on another dtype or shapes that disagree.
    """
    check_safe_name(part, "part")
    if states_LND.ndim != 3:
        raise ValueError(f"states must be [layers, rows, width], found shape {tuple(states_LND.shape)}")
    _, rows, width = states_LND.shape
    torch_dtype = str(states_LND.dtype).removeprefix("torch.")
    schema = _schema(torch_dtype, width)
    ids = {"example_id": example_ids, "token_pos": token_pos, "token_id": token_ids}
    for name, values in ids.items():
        if np.shape(values) != (rows,):
            raise ValueError(f"{name} must be [{rows}], one for each row of the states, found {list(np.shape(values))}")
    columns = [pa.array(values, type=schema.field(name).type) for name, values in ids.items()]
    batch_rows = max(1, BATCH_BYTES // (width * states_LND.element_size() + 20))  # 20: the three ids

    def publish_layer(layer: int) -> FileEntry:
        table = pa.table([*columns, _vectors(states_LND[layer], schema.field("vector").type)], schema=schema)
        return publish_file(folder, _file_path(layer, part), partial(_write_table, table, batch_rows), rows=rows)

    return for_each(folder, publish_layer, range(len(states_LND)))


def publish_manifest(
    folder: Location,
    parts: Sequence[str],
    files: Sequence[FileEntry],
    *,
    layers: int,
    width: int,
    torch_dtype: str,
    pooling: str,
    model: str,
    dataset: str,
    extra: Mapping[str, Any] = {},
) -> None:
    """Declare the store whole: its rows are those of `parts`, in this order. Replaces an earlier manifest in one step.

    `files` are what `write_part` returned for these parts, in any order; `torch_dtype` is torch's name without its
    prefix ("bfloat16"); `extra` is JSON that goes along. Raises ValueError when a file is missing from or strange to
    `files`, or layers differ in rows; StoreError when a file on the disk has not the size it should.
    """
    _schema(torch_dtype, width)
    rows = _count_rows(parts, files, layers)
    check_files(folder, files, remedy=_remedy(folder))
    publish_json(
        folder / MANIFEST,
        {
            "model": model,
            "dataset": dataset,
            "pooling": pooling,
            "torch_dtype": torch_dtype,
            "layers": layers,
            "rows": rows,
            "width": width,
            "parts": list(parts),
            "files": [asdict(entry) for entry in files],
            "extra": dict(extra),
        },
    )


@dataclass(frozen=True)
class Activations:
    """A whole store, opened: [n_layers, rows, width] states and, for each row, its example, position and token.

    Nothing is read before it is asked for, and a file's checksum is compared with the manifest's when it is first read
    (StoreError where it differs). Files of a folder are mapped into memory; an object, the rows of one layer and part, is
    brought into memory whole, and of these a few at a time. `open_activations` makes it.
    """

    folder: Location
    model: str
    dataset: str
    pooling: str
    torch_dtype: str
    n_layers: int
    rows: int
    width: int
    parts: tuple[str, ...]
    files: tuple[FileEntry, ...]
    extra: Mapping[str, Any]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the states were given in, and come back in."""
        return _TORCH_TYPES[self.torch_dtype]

    def layer(self, layer: int) -> torch.Tensor:
        """The states of a layer, [N, D].

        A store of one part with one record batch (64 MiB) is not copied: the tensor lies in a private memory map of the
        file, and writing to it changes neither the file nor another tensor. Others are joined into one tensor.
        """
        if not 0 <= layer < self.n_layers:
            raise IndexError(f"layer {layer} is not among the {self.n_layers} layers (0 to {self.n_layers - 1})")
        if len(self.parts) == 1 and len(batches := self._batches(layer, self.parts[0])) == 1:
            return self._tensor(batches[0])
        states_ND = torch.empty((self.rows, self.width), dtype=self.dtype)
        self._read_into(states_ND, layer)
        return states_ND

    def states(self) -> torch.Tensor:
        """The states of every layer in one new tensor, [L, N, D]."""
        states_LND = torch.empty((self.n_layers, self.rows, self.width), dtype=self.dtype)
        for_each(self.folder, lambda layer: self._read_into(states_LND[layer], layer), range(self.n_layers))
        return states_LND

    def __iter__(self) -> Iterator[torch.Tensor]:
        """One layer's states after the other, [N, D] each: a reader need not hold more than one of them."""
        return map(self.layer, range(self.n_layers))

    def stored_layers(self) -> list[StoredLayer]:
        """Every layer as rows on the disk that are read when they are asked for, for a store larger than memory.

        Each file is read through once, to compare its checksum and to find where its rows lie.
        """
        return [StoredLayer(self._runs(layer), self.rows, self.width, self.dtype) for layer in range(self.n_layers)]

    @cached_property
    def example_ids(self) -> npt.NDArray[np.int64]:
        """The example of each row, [N]."""
        return self._column("example_id")

    @cached_property
    def token_pos(self) -> npt.NDArray[np.int32]:
        """The position of each row's token, [N]."""
        return self._column("token_pos")

    @cached_property
    def token_ids(self) -> npt.NDArray[np.int64]:
        """The token of each row, [N]."""
        return self._column("token_id")

    def verify(self) -> None:
        """Read every file and compare its checksum with the manifest's. Raises StoreError naming the first that differs."""
        for entry in self.files:
            check_file(self.folder, entry, remedy=_remedy(self.folder), checksum=True)

    def _column(self, name: str) -> npt.NDArray[Any]:
        values = np.empty(self.rows, dtype=_schema(self.torch_dtype, self.width).field(name).type.to_pandas_dtype())
        start = 0
        for part in self.parts:
            for batch in self._batches(0, part):
                values[start : start + batch.num_rows] = batch.column(name)
                start += batch.num_rows
        return values

    def _read_into(self, states_ND: torch.Tensor, layer: int) -> None:
        start = 0
        for part in self.parts:  # one map at a time: each holds a file descriptor, and there may be thousands of parts
            for batch in self._batches(layer, part):
                states_ND[start : start + batch.num_rows] = self._tensor(batch)
                start += batch.num_rows

    def _runs(self, layer: int) -> list[Run]:
        runs: list[Run] = []
        start = 0
        for part in self.parts:
            mapped, batches = self._mapped(layer, part)
            for batch in batches:
                vectors = batch.column("vector").storage.flatten()
                offset = vectors.buffers()[1].address + vectors.offset * self.dtype.itemsize - mapped.address
                path = self.folder / _file_path(layer, part)
                runs.append(Run(path, start, start + batch.num_rows, offset))
                start += batch.num_rows
        return runs

    def _tensor(self, batch: pa.RecordBatch) -> torch.Tensor:
        values = from_dlpack(batch.column("vector").storage.flatten())
        return values.view(self.dtype).view(batch.num_rows, self.width)

    @cached_property
    def _entries(self) -> dict[str, FileEntry]:
        return {entry.path: entry for entry in self.files}

    def _batches(self, layer: int, part: str) -> list[pa.RecordBatch]:
        return self._mapped(layer, part)[1]

    @cached_property
    def _whole(self) -> set[str]:
        """The files whose checksums were found right."""
        return set()

    def _content(self, entry: FileEntry) -> pa.Buffer:
        """A file's memory map, or an object's content."""
        path, remedy = self.folder / entry.path, _remedy(self.folder)
        if not isinstance(path, Path):
            return pa.py_buffer(read_checked(self.folder, entry, remedy=remedy))
        check_file(self.folder, entry, remedy=remedy)  # a map past a file's end would kill the process
        # A copy-on-write map: a tensor over a read-only one would kill the process at the first write in place.
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        if entry.path not in self._whole:
            check_content(self.folder, entry, mapped, remedy=remedy)
            self._whole.add(entry.path)
        return pa.py_buffer(mapped)

    def _mapped(self, layer: int, part: str) -> tuple[pa.Buffer, list[pa.RecordBatch]]:
        """A file's content, and the record batches in it."""
        entry = self._entries[_file_path(layer, part)]
        path, buffer = self.folder / entry.path, self._content(entry)
        try:
            reader = pa.ipc.open_file(buffer)
            batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        except (pa.ArrowException, OSError) as error:
            raise StoreError(f"{path}: not a readable Arrow file ({error}); {_remedy(self.folder)}") from error
        expected = _schema(self.torch_dtype, self.width)
        if not reader.schema.equals(expected, check_metadata=True):
            raise StoreError(
                f"{path}: expected columns {_describe(expected)}, found {_describe(reader.schema)}; "
                f"{_remedy(self.folder)}"
            )
        rows = sum(batch.num_rows for batch in batches)
        if rows != entry.rows:
            raise StoreError(f"{path}: expected {entry.rows} rows, found {rows}; {_remedy(self.folder)}")
        return buffer, batches


def open_activations(folder: Location) -> Activations:
    """Open the store in `folder` as its manifest describes it; files that the manifest does not name do not exist.

    Raises StoreError when there is no manifest, it cannot be read, or a file is missing or has another size than it says.
    """
    path = folder / MANIFEST
    try:
        data = json.loads(read_bytes(path))
    except FileNotFoundError:
        raise StoreError(f"{path}: no such file, so no whole activations are stored here; finish the capture") from None
    except ValueError as error:
        raise StoreError(f"{path}: not a whole manifest ({error}); {_remedy(folder)}") from error
    try:
        activations = _parse_manifest(folder, data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(
            f"{path}: not a manifest of activations ({type(error).__name__}: {error}); {_remedy(folder)}"
        ) from error
    check_files(folder, activations.files, remedy=_remedy(folder))
    return activations


def _parse_manifest(folder: Location, data: dict[str, Any]) -> Activations:
    files = tuple(FileEntry.from_json(entry) for entry in data["files"])
    _schema(data["torch_dtype"], data["width"])
    rows = _count_rows(data["parts"], files, data["layers"])
    if rows != data["rows"]:
        raise ValueError(f"it says {data['rows']} rows, its files have {rows}")
    return Activations(
        folder=folder,
        model=data["model"],
        dataset=data["dataset"],
        pooling=data["pooling"],
        torch_dtype=data["torch_dtype"],
        n_layers=data["layers"],
        rows=rows,
        width=data["width"],
        parts=tuple(data["parts"]),
        files=files,
        extra=dict(data["extra"].items()),
    )


def _file_path(layer: int, part: str) -> str:
    return f"layer={layer:03d}/part-{part}.arrow"


def _remedy(folder: Location) -> str:
    return f"delete {folder} to have these activations captured again"


def _schema(torch_dtype: str, width: int) -> pa.Schema:
    if torch_dtype not in _ARROW_TYPES:
        raise ValueError(f"activations cannot be stored as '{torch_dtype}'; {nearest(torch_dtype, _ARROW_TYPES)}")
    return pa.schema(
        [
            pa.field("example_id", pa.int64(), nullable=False),
            pa.field("token_pos", pa.int32(), nullable=False),
            pa.field("token_id", pa.int64(), nullable=False),
            pa.field(
                "vector",
                pa.fixed_shape_tensor(_ARROW_TYPES[torch_dtype], [width]),
                nullable=False,
                metadata={"torch_dtype": torch_dtype},
            ),
        ]
    )


def _write_table(table: pa.Table, batch_rows: int, path: Path) -> None:
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch_rows)


def _vectors(states_ND: torch.Tensor, kind: pa.FixedShapeTensorType) -> pa.ExtensionArray:
    values = states_ND.detach().cpu().contiguous()
    if values.dtype == torch.bfloat16:
        values = values.view(torch.uint16)
    storage = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1).numpy()), states_ND.shape[1])
    return pa.ExtensionArray.from_storage(kind, storage)


def _describe(schema: pa.Schema) -> str:
    fields = []
    for field in schema:
        note = b" ".join((field.metadata or {}).values()).decode(errors="replace")
        fields.append(f"{field.name} {field.type}" + (f" ({note})" if note else ""))
    return ", ".join(fields)


def _count_rows(parts: Sequence[str], files: Sequence[FileEntry], layers: int) -> int:
    """The rows of all parts, once it is sure that each part has one file in each layer, with as many rows in each."""
    rows_of = {entry.path: entry.rows for entry in files}
    expected = {_file_path(layer, part): part for part in parts for layer in range(layers)}
    if len(set(parts)) != len(parts):
        raise ValueError("a part is named twice")
    if missing := sorted(expected.keys() - rows_of.keys()):
        raise ValueError(f"the files lack {missing[0]} ({len(missing)} of {len(expected)} are missing)")
    if strangers := sorted(rows_of.keys() - expected.keys()):
        raise ValueError(f"{strangers[0]} is a file of no layer below {layers} and none of the {len(parts)} parts")
    for path, part in expected.items():
        first = _file_path(0, part)
        if rows_of[path] != rows_of[first]:
            raise ValueError(f"{path} has {rows_of[path]} rows, {first} has {rows_of[first]}")
    return sum(rows_of[_file_path(0, part)] for part in parts)
