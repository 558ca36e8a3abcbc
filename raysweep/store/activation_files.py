"""The files of the activation store, which Arrow readers map into memory, and the manifest that names them.

    <folder>/layer=000/part-<part>.arrow     one file a layer and part; the rows come in the same order in every layer
    <folder>/manifest.json                   written last; it alone says which files belong to the store

Columns: example_id int64, token_pos int32, token_id int64, vector fixed_shape_tensor[width]. float16 and float32 vectors
are Arrow's own types. Arrow has no bfloat16: its bits are stored as uint16, and the field's metadata says
`torch_dtype=bfloat16` (it names the dtype for the other two as well). Nothing is widened, on the way in or out. The files
are Arrow IPC files, uncompressed, so that any Arrow reader can map them into memory.

What the vectors are (which position, which models) is the caller's to know and to record in the manifest. Writing is
activation_writing.py's, reading activations.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
import torch

from raysweep.errors import nearest
from raysweep.store.artifacts import FileEntry

if TYPE_CHECKING:
    from raysweep.store.places import Location

MANIFEST = "manifest.json"

TORCH_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_ARROW_TYPES = {"bfloat16": pa.uint16(), "float16": pa.float16(), "float32": pa.float32()}


def schema_of(torch_dtype: str, width: int) -> pa.Schema:
    """The columns of a file. Raises ValueError for a dtype that activations cannot be stored in."""
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


def described(schema: pa.Schema) -> str:
    """A file's columns in words."""
    fields = []
    for field in schema:
        note = b" ".join((field.metadata or {}).values()).decode(errors="replace")
        fields.append(f"{field.name} {field.type}" + (f" ({note})" if note else ""))
    return ", ".join(fields)


def file_path(layer: int, part: str) -> str:
    """The file of a layer and part, below the store's folder."""
    return f"layer={layer:03d}/part-{part}.arrow"


def remedy_of(folder: Location) -> str:
    """What is to be done about a store that is damaged."""
    return f"delete {folder} to capture these activations again"


def count_rows(parts: Sequence[str], files: Sequence[FileEntry], layers: int) -> int:
    """The rows of all parts, once it is sure that each part has one file in each layer, with as many rows in each. Raises ValueError else."""
    rows_of = {entry.path: entry.rows for entry in files}
    expected = {file_path(layer, part): part for part in parts for layer in range(layers)}
    if len(set(parts)) != len(parts):
        raise ValueError("a part is named twice")
    if missing := sorted(expected.keys() - rows_of.keys()):
        raise ValueError(f"the files lack {missing[0]} ({len(missing)} of {len(expected)} are missing)")
    if strangers := sorted(rows_of.keys() - expected.keys()):
        raise ValueError(f"{strangers[0]} is a file of no layer below {layers} and none of the {len(parts)} parts")
    for path, part in expected.items():
        first = file_path(0, part)
        if rows_of[path] != rows_of[first]:
            raise ValueError(f"{path} has {rows_of[path]} rows, {first} has {rows_of[first]}")
    return sum(rows_of[file_path(0, part)] for part in parts)
