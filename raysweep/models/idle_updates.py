"""LoRA adapters' updates that are zero, so that the merged layer is the base's: nothing was trained there, or it was saved empty.

Read from the adapter's own tensors. Other types, whose neutral values depend on the type or the base, count as a change.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.models.checkpoint import Checkpoint
from raysweep.models.digest_cache import DigestCache, remembered

if TYPE_CHECKING:
    import torch

_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_FACTORS = ({"lora_A.weight", "lora_B.weight"}, {"lora_embedding_A", "lora_embedding_B"})
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")  # of init_lora_weights: the base stays as it is


def idle_tensors(adapter: Checkpoint, cache: DigestCache | None = None) -> frozenset[str]:
    """Find the tensors of those LoRA updates B·A of which a factor is all zeros, by name; none of other types of adapters.

    With a `cache`, a file that has not changed is not read again. Magnitudes (DoRA), biases and modules saved as a whole are changes whatever their values.
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
    names = sorted(f"{module}.{leaf}" for module, leaves in found.items() for leaf in leaves)
    zeros = _zeros(adapter, names, cache)
    idle = [m for m, leaves in found.items() if any(f"{m}.{leaf}" in zeros for leaf in leaves)]
    return frozenset(f"{module}.{leaf}" for module in idle for leaf in found[module])


def _zeros(adapter: Checkpoint, names: list[str], cache: DigestCache | None) -> frozenset[str]:
    """Which of the tensors have no value but zero."""
    path = next(path for name in _FILES if (path := adapter.folder / name).is_file())

    def find() -> dict[str, list[str]]:
        return {"of": names, "zeros": [name for name, value in _read(path, names).items() if not value.any()]}

    def accept(value: Any) -> frozenset[str] | None:
        return frozenset(value["zeros"]) if value["of"] == names else None

    return remembered(cache, path, "zeros", find, accept)


def _read(path: Path, names: list[str]) -> dict[str, torch.Tensor]:
    import torch
    from safetensors import safe_open

    if path.suffix == ".bin":
        stored = torch.load(path, map_location="cpu", weights_only=True)
        return {name: stored[name] for name in names}
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in names}
