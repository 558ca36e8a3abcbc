"""How large the parts of a checkpoint are, by its shapes and its config: what plans reckon bytes with. Nothing is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from raysweep.models.checkpoint import Checkpoint, text_config
from raysweep.models.same import layer_of

SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes of one value


def hidden_size(config: Mapping[str, Any]) -> int:
    """Width of the states."""
    text = text_config(config)
    return int(text.get("hidden_size") or text.get("n_embd") or 0)


def vocabulary_size(config: Mapping[str, Any]) -> int:
    """Logits of a token; 0 where the config does not tell."""
    return int(text_config(config).get("vocab_size") or 0)


def layer_sizes(checkpoint: Checkpoint, dtype: str) -> tuple[int, int]:
    """(largest layer, everything outside layers), bytes in the dtype; a layer is what carries its number in its name."""
    layers: dict[int, int] = {}
    rest = 0
    for name, shape in checkpoint.shapes.items():
        size = math.prod(shape) * SIZES[dtype]
        layer = layer_of(name)
        if layer is None:
            rest += size
        else:
            layers[layer] = layers.get(layer, 0) + size
    return max(layers.values(), default=0), rest


def widest(checkpoint: Checkpoint) -> int:
    """The most values that a layer makes of one token in one product."""
    shapes = [shape for name, shape in checkpoint.shapes.items() if layer_of(name) is not None and len(shape) > 1]
    return max((max(shape[-2:]) for shape in shapes), default=0)
