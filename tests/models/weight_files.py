"""Weight files made by hand, and what is said of a folder that is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from raysweep.errors import InputError
from raysweep.models.checkpoint import describe

UP = "model.layers.2.mlp.up_proj.weight"
AGAIN = "copy or save the checkpoint again"


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        describe(str(folder))
    return str(caught.value).replace(f"{folder}/", "").replace(str(folder), "HERE")


def file_of(path: Path, header: Any, data: bytes = b"") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (2,), at: Any = (0, 8)) -> dict[str, Any]:
    listed = [list(value) if isinstance(value, tuple) else value for value in (shape, at)]
    return {"dtype": dtype, "shape": listed[0], "data_offsets": listed[1]}
