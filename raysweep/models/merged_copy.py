"""A PEFT adapter merged onto a copy of a base that is already loaded, checked as one that is merged onto a checkpoint."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep.errors import InputError
from raysweep.models.checkpoint import Checkpoint, read_config
from raysweep.models.given import is_dispatched
from raysweep.models.loading import in_dtype
from raysweep.models.peft_check import check_adapter
from raysweep.models.peft_merge import merge_adapter
from raysweep.models.peft_types import read_peft_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def merge_onto_copy(adapter: Checkpoint, model: PreTrainedModel) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Merge the adapter onto a copy of the model, in float32, and round to the model's dtype once; also warnings in words.

    The model itself is not changed. Raises InputError for an adapter that does not fit the model or cannot be merged, and for a
    model whose weights accelerate moves between devices.
    """
    if is_dispatched(model):
        raise InputError(
            f"PEFT adapter '{adapter.source}' cannot be merged onto a base that is spread over devices; give base by "
            "its name or "
            "folder"
        )
    dtype = str(model.dtype).removeprefix("torch.")
    config = read_peft_config(adapter)
    with tempfile.TemporaryDirectory() as folder:
        base = _described(model, Path(folder))
        facts = check_adapter(adapter, base)
        copied = copy.deepcopy(model)
        if dtype in ("float32", "float64"):
            return merge_adapter(adapter, base, config, copied), facts.warnings
        merged = merge_adapter(adapter, base, config, copied.float())
    options = {"generation_config": model.generation_config} if model.can_generate() else {}
    why = f"the layers of base share weights, which PEFT adapter '{adapter.source}' changes separately"
    return in_dtype(merged, dtype, {"": str(model.device)}, why=why, options=options), facts.warnings


def _described(model: PreTrainedModel, folder: Path) -> Checkpoint:
    """The loaded model as a checkpoint whose config alone is in the folder: what an adapter is checked against."""
    model.config.save_pretrained(folder)
    weights = {name: tensor for name, tensor in model.state_dict().items() if not tensor.is_meta}
    return Checkpoint(
        source=model.name_or_path or "base",
        folder=folder,
        config=read_config(folder / "config.json", folder),
        shapes={name: tuple(tensor.shape) for name, tensor in weights.items()},
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in weights.values()),
        adapter=False,
        fingerprint="",
    )
