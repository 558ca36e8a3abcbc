"""LoRA adapters' updates that are zero, so that the merged layer is the base's: nothing was trained there, or it was saved empty.

Read from the adapter's own tensors. Other types, whose neutral values depend on the type or the base, count as a change.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from raysweep.models.checkpoint import Checkpoint

if TYPE_CHECKING:
    import torch

_FACTORS = ({"lora_A.weight", "lora_B.weight"}, {"lora_embedding_A", "lora_embedding_B"})
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")  # of init_lora_weights: the base stays as it is


def idle_tensors(adapter: Checkpoint) -> frozenset[str]:
    """Find the tensors of those LoRA updates B·A of which a factor is all zeros, by name; none of other types of adapters.

    Magnitudes (DoRA), biases and modules saved as a whole are changes whatever their values.
    """
    config = adapter.config
    if config.get("peft_type") != "LORA" or config.get("init_lora_weights") not in _PLAIN_STARTS:
        return frozenset()
    if any(config.get(f"{variant}_config") for variant in ("kasa", "monteclora", "arrow", "loftq")):
        return frozenset()
    updates: dict[str, set[str]] = defaultdict(set)
    for name in adapter.shapes:
        module, _, leaf = name.partition(".lora_")
        updates[module].add(f"lora_{leaf}" if leaf else name)
    found = {module: leaves for module, leaves in updates.items() if leaves in _FACTORS}
    names = [f"{module}.{leaf}" for module, leaves in found.items() for leaf in leaves]
    values = _read(adapter, names)
    idle = [m for m, leaves in found.items() if not all(values[f"{m}.{leaf}"].any() for leaf in leaves)]
    return frozenset(f"{module}.{leaf}" for module in idle for leaf in found[module])


def _read(adapter: Checkpoint, names: list[str]) -> dict[str, torch.Tensor]:
    import torch
    from safetensors import safe_open

    path = adapter.folder / "adapter_model.safetensors"
    if not path.is_file():
        stored = torch.load(path.with_suffix(".bin"), map_location="cpu", weights_only=True)
        return {name: stored[name] for name in names}
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in names}
