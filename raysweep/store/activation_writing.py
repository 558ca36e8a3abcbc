"""Writing into the activation store: a part's rows, a file a layer, and at last the manifest that makes them one store.

L: layers, N: rows, D: width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from raysweep.store.activation_files import MANIFEST, count_rows, file_path, remedy_of, schema_of
from raysweep.store.artifacts import FileEntry, check_files, check_safe_name, publish_file, publish_json

if TYPE_CHECKING:
    from raysweep.store.places import Location

BATCH_BYTES = 64 * 2**20  # of one record batch: what a reader that streams the file must hold
WRITERS = (
    8  # files that are written and flushed at once: most of a small file's time is waiting for the disk to flush it
)


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
        states_LND: bfloat16, float16 or float32, on any device; a few layers at a time are brought to the CPU.
        example_ids: [N], the example of each row.
        token_pos: [N], the position in its prompt of the token whose state the row is.
        token_ids: [N], that token.

    Returns:
        The L files, with paths relative to `folder`, all of them flushed. Raises ValueError on another dtype or shapes that
        disagree, and the first layer's error if files cannot be written; no thread writes any more then.
    """
    check_safe_name(part, "part")
    if states_LND.ndim != 3:
        raise ValueError(f"states must be [layers, rows, width], found shape {tuple(states_LND.shape)}")
    _, rows, width = states_LND.shape
    torch_dtype = str(states_LND.dtype).removeprefix("torch.")
    schema = schema_of(torch_dtype, width)
    ids = {"example_id": example_ids, "token_pos": token_pos, "token_id": token_ids}
    for name, values in ids.items():
        if np.shape(values) != (rows,):
            raise ValueError(f"{name} must be [{rows}], one for each row of the states, found {list(np.shape(values))}")
    columns = [pa.array(values, type=schema.field(name).type) for name, values in ids.items()]
    batch_rows = max(1, BATCH_BYTES // (width * states_LND.element_size() + 20))  # 20: the three ids

    def publish_layer(layer: int) -> FileEntry:
        table = pa.table([*columns, _vectors(states_LND[layer], schema.field("vector").type)], schema=schema)
        return publish_file(folder, file_path(layer, part), partial(_write_table, table, batch_rows), rows=rows)

    with ThreadPoolExecutor(WRITERS, thread_name_prefix="raysweep-writers") as pool:
        return list(pool.map(publish_layer, range(len(states_LND))))  # an error cancels what has not begun


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
) -> dict[str, Any]:
    """Declare the store whole: its rows are those of `parts`, in this order. Replaces an earlier manifest in one step.

    Returns the manifest, from which `activations_of` opens this very store, whoever publishes another one meanwhile.

    `files` are what `write_part` returned for these parts, in any order; `torch_dtype` is torch's name without its
    prefix ("bfloat16"); `extra` is JSON that goes along. Raises ValueError when a file is missing from or strange to
    `files`, or layers differ in rows; StoreError when a file on the disk has not the size it should.
    """
    schema_of(torch_dtype, width)
    rows = count_rows(parts, files, layers)
    check_files(folder, files, remedy=remedy_of(folder))
    manifest = {
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
    }
    publish_json(folder / MANIFEST, manifest)
    return manifest


def _write_table(table: pa.Table, batch_rows: int, path: Path) -> None:
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch_rows)


def _vectors(states_ND: torch.Tensor, kind: pa.FixedShapeTensorType) -> pa.ExtensionArray:
    values = states_ND.detach().cpu().contiguous()
    if values.dtype == torch.bfloat16:
        values = values.view(torch.uint16)
    storage = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1).numpy()), states_ND.shape[1])
    return pa.ExtensionArray.from_storage(kind, storage)
