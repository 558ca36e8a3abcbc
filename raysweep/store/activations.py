"""The activation store, read: hidden states of one model on one data set, a layer at a time or all of them.

Its files are described in activation_files.py. L: layers, N: rows, D: width.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch.utils.dlpack import from_dlpack

from raysweep.errors import StoreError
from raysweep.store.activation_files import (
    MANIFEST,
    TORCH_TYPES,
    count_rows,
    described,
    file_path,
    remedy_of,
    schema_of,
)
from raysweep.store.artifacts import (
    FileEntry,
    check_content,
    check_file,
    check_files,
    read_checked,
)
from raysweep.store.places import for_each, read_bytes
from raysweep.store.stored_layer import Run, StoredLayer

if TYPE_CHECKING:
    from raysweep.store.places import Location


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
        return TORCH_TYPES[self.torch_dtype]

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
            check_file(self.folder, entry, remedy=remedy_of(self.folder), checksum=True)

    def _column(self, name: str) -> npt.NDArray[Any]:
        values = np.empty(self.rows, dtype=schema_of(self.torch_dtype, self.width).field(name).type.to_pandas_dtype())
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
                path = self.folder / file_path(layer, part)
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
        path, remedy = self.folder / entry.path, remedy_of(self.folder)
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
        entry = self._entries[file_path(layer, part)]
        path, buffer = self.folder / entry.path, self._content(entry)
        try:
            reader = pa.ipc.open_file(buffer)
            batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        except (pa.ArrowException, OSError) as error:
            raise StoreError(f"{path}: not a readable Arrow file ({error}); {remedy_of(self.folder)}") from error
        expected = schema_of(self.torch_dtype, self.width)
        if not reader.schema.equals(expected, check_metadata=True):
            raise StoreError(
                f"{path}: expected columns {described(expected)}, found {described(reader.schema)}; "
                f"{remedy_of(self.folder)}"
            )
        rows = sum(batch.num_rows for batch in batches)
        if rows != entry.rows:
            raise StoreError(f"{path}: expected {entry.rows} rows, found {rows}; {remedy_of(self.folder)}")
        return buffer, batches


def open_activations(folder: Location) -> Activations:
    """Open the store in `folder` as its manifest describes it; files that the manifest does not name do not exist.

    Raises StoreError when there is no manifest, it cannot be read, or a file is missing or has another size than it says.
    """
    path = folder / MANIFEST
    try:
        data = json.loads(read_bytes(path))
    except FileNotFoundError:
        raise StoreError(
            f"{path}: no such file, so no complete activations are stored here; finish the capture"
        ) from None
    except ValueError as error:
        raise StoreError(f"{path}: not a complete manifest ({error}); {remedy_of(folder)}") from error
    try:
        activations = activations_of(folder, data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(
            f"{path}: not a manifest of activations ({type(error).__name__}: {error}); {remedy_of(folder)}"
        ) from error
    check_files(folder, activations.files, remedy=remedy_of(folder))
    return activations


def activations_of(folder: Location, data: Mapping[str, Any]) -> Activations:
    """Open the store in `folder` that a manifest describes. Raises KeyError, TypeError or ValueError for no such manifest."""
    files = tuple(FileEntry.from_json(entry) for entry in data["files"])
    schema_of(data["torch_dtype"], data["width"])
    rows = count_rows(data["parts"], files, data["layers"])
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
