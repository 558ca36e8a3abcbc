"""Which architectures run in `make test`, and models over two pretended GPUs."""

from __future__ import annotations

import pytest
from accelerate import dispatch_model
from transformers import PreTrainedModel

from raysweep.models.blocks import block_path

SAMPLE = ("llama", "gemma3n", "mixtral", "falcon", "bamba", "bert")


def kinds(*tables: dict[str, object]) -> list[object]:
    names = [name for table in tables for name in table]
    return [pytest.param(name, marks=() if name in SAMPLE else pytest.mark.soak) for name in names]


def spread(model: PreTrainedModel, cut: int) -> PreTrainedModel:
    """The model over two GPUs, with the layers from `cut` on on the second, as accelerate does it."""
    path, n = block_path(model), len(model.get_submodule(block_path(model)))
    place: dict[str, int] = {}

    def put(prefix: str) -> None:
        module = model.get_submodule(prefix)
        inside = [f"{prefix}.{name}" if prefix else name for name, _ in module.named_children()]
        if prefix == path:
            place.update({f"{path}.{layer}": int(layer >= cut) for layer in range(n)})
        elif path.startswith(f"{prefix}." if prefix else ""):
            for name in inside:
                put(name)
            place.update({f"{prefix}.{n}" if prefix else n: 0 for n, _ in module.named_parameters(recurse=False)})
        else:
            place[prefix] = 0

    put("")
    keys = getattr(model, "_skip_keys_device_placement", None)
    return dispatch_model(model, device_map=place, main_device=0, skip_keys=keys, force_hooks=True)
