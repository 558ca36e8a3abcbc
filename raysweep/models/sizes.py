"""How large the parts of a checkpoint are, by its shapes and its config: what plans reckon bytes with. Nothing is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raysweep.models.checkpoint import Checkpoint, text_config
from raysweep.models.same import layer_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_ALIGNED = 64
SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes of one value


def hidden_size(config: Mapping[str, Any]) -> int:
    """Width of the states."""
    text = text_config(config)
    return int(text.get("hidden_size") or text.get("n_embd") or 0)


def vocabulary_size(config: Mapping[str, Any]) -> int:
    """Logits of a token; 0 where the config does not tell."""
    return int(text_config(config).get("vocab_size") or 0)


def probe_bytes(checkpoint: Checkpoint, dtype: str) -> int:
    """What the probe of a loaded model makes at most (adapter.py): logits of 16 tokens, about five times."""
    return 5 * 16 * vocabulary_size(checkpoint.config) * SIZES[dtype]


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


def slot_bytes(checkpoint: Checkpoint, dtype: str) -> int:
    """What a slot for any layer of a streamed checkpoint takes (stream.py), bytes in the dtype."""
    layers: dict[int, int] = {}
    for name, shape in checkpoint.shapes.items():
        if (layer := layer_of(name)) is not None:
            layers[layer] = layers.get(layer, 0) + padded(math.prod(shape) * SIZES[dtype])
    return max(layers.values(), default=0)


def padded(size: int) -> int:
    """Bytes of a tensor in a slot: a multiple of 64, as torch aligns its own memory."""
    return math.ceil(size / _ALIGNED) * _ALIGNED


def pinned_bytes(size: int) -> int:
    """What a pinned buffer of `size` bytes takes on the host: torch's allocator rounds up to a power of two."""
    return 1 << (size - 1).bit_length() if size else 0


def widest(checkpoint: Checkpoint, experts: int = 1) -> int:
    """The most values that a layer makes of one token in one product; `experts` of a mixture take the same token.

    Experts that are stored one by one are computed together, and so are their two products of the same input.
    """
    width, shapes = hidden_size(checkpoint.config), dict[str, Sequence[int]]()
    for name, shape in checkpoint.shapes.items():
        if layer_of(name) is not None:
            one_by_one = _of_experts(name) and len(shape) == 2 and width in shape
            shapes[name] = (2 * math.prod(shape) // width, width) if one_by_one else shape
    return widest_product(shapes, experts)


def widest_product(shapes: Mapping[str, Sequence[int]], experts: int = 1) -> int:
    """The same of layers' tensors by name."""
    return max(
        (max(shape[-2:]) * (experts if _of_experts(name) else 1) for name, shape in shapes.items() if len(shape) > 1),
        default=0,
    )


def _of_experts(name: str) -> bool:
    return "experts" in name and "shared_expert" not in name


def experts_per_token(config: PreTrainedConfig) -> int:
    """How many experts of a mixture take a token; 1 of any other model. `config` is the language model's."""
    names = ("num_experts_per_tok", "top_k_experts", "experts_per_token", "moe_topk", "moe_k")
    return max([1, *(value for name in names if isinstance(value := getattr(config, name, None), int))])


def eager_heads(config: PreTrainedConfig) -> int:
    """The heads of an attention that keeps its scores in memory; 0 if torch's fused attention is used."""
    if config._attn_implementation != "eager":
        return 0
    heads = getattr(config, "num_attention_heads", None)
    return max(heads) if isinstance(heads, list) else int(heads or 0)
